"""The command as a user runs it, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALL = (
    "--config=configs/quickstart.py",
    "--config.model.width=24",
    "--config.model.depth=2",
    "--config.data.image_size=8",
    "--config.model.patch_size=4",
    "--config.total_steps=2",
)
# Both seem to be installed, whether or not they are; looking for them is allowed, importing them is told.
AND_TELL = """
import importlib.machinery, sys

class Finder:
    imported = set()
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "torch"):
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        self.imported.add(spec.name)
        raise ImportError(spec.name)

sys.meta_path.insert(0, Finder())
from deit_jax.main import main
for more in ([], ["--mode=evaluate"]):
    print("status", main([*sys.argv[1:], *more]))
print(sorted(Finder.imported), file=sys.stderr)
"""


def test_train_and_evaluate_without_torch_and_tensorflow(tmp_path):
    command = [sys.executable, "-c", AND_TELL, *SMALL, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "[]"
    lines = done.stdout.splitlines()
    ends = [i for i, line in enumerate(lines) if line == "status 0"]
    assert len(ends) == 2
    for end in ends:
        result = json.loads(lines[end - 1])
        assert result.keys() >= {"top1", "top5", "loss", "examples", "ema"}
        assert result["examples"] == 360
    assert "devices" in done.stdout
    assert "2/2" in done.stderr  # the progress bar
    assert (tmp_path / "run" / "tensorboard").is_dir()
