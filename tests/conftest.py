"""The environment of every test: set before JAX is imported, and inherited by the processes that tests start."""

import atexit
import gc
import logging
import os
import shutil
import sys
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
os.environ.setdefault("MPLBACKEND", "agg")

# Compiling dominates the tests: unoptimised code halves it, the emitters of before halve the rest (a newer jaxlib has
# them no more, and ends where it does not know a flag), and what one process has compiled the next one reads.
# A cache of the session's own, since a killed process may leave a torn entry; to keep one over several sessions,
# set JAX_COMPILATION_CACHE_DIR. What compiles in no time takes longer to write.
FAST = ["--xla_backend_optimization_level=0"]
if version("jaxlib").startswith("0.10."):
    FAST.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FAST]).strip()
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="deit_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
# In it each worker has a folder: JAX writes entries in place, so that one worker would now and then read half of what
# the other is writing, and JAX's warning of that is an error here. What they have in common compiles in seconds.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] += f"/{worker}"

# As commands have it: where a save fails, Orbax leaves what asyncio tells of in the midst of some later test.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)

# Bytecode is kept, wherever the environment says otherwise: some hundred processes import the package.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Where arrays are annotated, every argument and result is checked, shapes included, in tests only: the messages are
# long. What mypy knows of the other modules' types is not asked again here, which would take as long as the tests. As
# for type checkers, an int is a float (PEP 484's numeric tower).
ROOT = Path(__file__).parents[1]
ANNOTATED = [path for path in (ROOT / "deit_jax").rglob("*.py") if "from jaxtyping import" in path.read_text()]
install_import_hook(
    [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ANNOTATED],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


def pytest_collection_finish() -> None:
    """Python does not look through what was imported again and again, which takes 3 % of the tests' time."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny run takes a quarter of its time to draw, and does it for tests that are marked `pictures` alone."""
    if "pictures" not in request.keywords:
        for name in ("save_curves", "save_confusion"):
            monkeypatch.setattr(f"deit_jax.run.plots.{name}", lambda *_, **__: None)


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """The URL of a place in a bucket that no other test uses."""
    from emulator import new_bucket

    return f"{new_bucket('tests')}/{zlib.crc32(request.node.nodeid.encode())}"
