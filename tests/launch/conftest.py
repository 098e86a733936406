"""A world of fakes: programs that take what the real ones document, and what they were called with."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKES = Path(__file__).parent / "fakes"
sys.path.insert(0, str(FAKES))


@dataclass(frozen=True)
class World:
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A script of `launch`, or another program, from the world's folder."""
        path = [str(ROOT / command[0])] if command[0].startswith("launch/") else [command[0]]
        environment = self.environment | more
        return subprocess.run([*path, *command[1:]], cwd=self.folder, env=environment, capture_output=True, text=True)

    def calls(self) -> list[list[str]]:
        """The calls of fakes, in order, and forgets them."""
        file = self.folder / "calls"
        calls = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return calls


@pytest.fixture
def worlds(tmp_path):
    """Makes a world at every call."""
    path = os.pathsep.join([str(FAKES), str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TPU_POD"))}
    made = itertools.count()

    def make():
        folder = tmp_path / f"world{next(made)}"
        folder.mkdir()
        more = {
            "PATH": path,
            "FAKES": str(folder),
            "TPU_POD_PAUSE": "0",
            "TMPDIR": str(tmp_path),
            "XDG_STATE_HOME": str(folder),
        }
        return World(folder, kept | more)

    return make


@pytest.fixture
def world(worlds):
    return worlds()
