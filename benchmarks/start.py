"""How long the commands take to start, beside another checkout of this project:

    python benchmarks/start.py --before=DIR [--turns=5] [--output=FILE.json]

Both are run by this Python, in turn, with a compilation cache of their own: `import deit_jax`, `main --help`, `main` on
the quickstart to its first row of metrics with what it compiles in the cache, and `predict` of one photo by a DeiT-Ti
with nothing in it. The last line of stdout is a JSON object: of each the median seconds, and the ratios now / before of
the turns with their median.
"""

import argparse
import json
import os
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = """
import sys
import numpy as np
from pathlib import Path
from safetensors.numpy import save_file
from deit_jax.models import abstract_model, flatten
from deit_jax.weights import tables
random = np.random.default_rng(0)
shapes = flatten(abstract_model("deit_tiny_patch16_224"))
variables = {path: random.normal(0, 0.02, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
tensors = tables.scatter(variables, tables.TIMM)
save_file({name: np.ascontiguousarray(value) for name, value in tensors}, sys.argv[1])
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--before", type=Path, required=True, help="the other checkout")
    arguments.add_argument("--turns", type=int, default=5)
    arguments.add_argument("--output", type=Path)
    given = arguments.parse_args()
    if not (given.before / "deit_jax" / "main.py").is_file():
        arguments.error(f"--before: {given.before} is no checkout of this project")
    if given.turns < 1:
        arguments.error(f"--turns: is {given.turns}, should be at least 1")
    if given.output and not given.output.parent.is_dir():
        arguments.error(f"--output: there is no folder {given.output.parent}; make it first")
    with tempfile.TemporaryDirectory() as folder:
        result = measure({"before": given.before.resolve(), "now": ROOT}, given.turns, Path(folder))
    command = shlex.join(["python", "benchmarks/start.py", *sys.argv[1:]])
    result |= {"command": command, "cpus": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2)}
    result |= {"python": platform.python_version(), "jax": metadata.version("jax")}
    if given.output:
        given.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def measure(checkouts: dict[str, Path], turns: int, folder: Path) -> dict[str, object]:
    photo, weights = folder / "photo.jpg", folder / "weights.safetensors"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(375, 500, 3), dtype=np.uint8)).save(photo)
    subprocess.run([sys.executable, "-c", WEIGHTS, weights], cwd=ROOT, check=True)
    starts: dict[str, Callable[[Path, Path], float]] = {
        "import": lambda checkout, cache: seconds(checkout, cache, "-c", "import deit_jax"),
        "help": lambda checkout, cache: seconds(checkout, cache, "-m", "deit_jax.main", "--help"),
        "first_step_warm": first_row,
        "predict_cold": lambda checkout, cache: predict(checkout, cache / "cold", weights, photo),
    }
    result: dict[str, object] = {}
    for name, start in starts.items():
        times: dict[str, list[float]] = {which: [] for which in checkouts}
        for turn in range(turns + 1):
            for which, checkout in checkouts.items():
                took = start(checkout, folder / which)
                if turn:  # the first fills the caches
                    times[which].append(took)
        ratios = [now / before for now, before in zip(times["now"], times["before"], strict=True)]
        result[name] = {which: round(statistics.median(values), 3) for which, values in times.items()}
        result[name] |= {"ratio": round(statistics.median(ratios), 3), "ratios": [round(r, 3) for r in sorted(ratios)]}
        print(name, result[name], flush=True)
    return result


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu"}


def seconds(checkout: Path, cache: Path, *command: str | Path) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command], cwd=checkout, env=environment(cache), check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def predict(checkout: Path, cache: Path, weights: Path, photo: Path) -> float:
    shutil.rmtree(cache, ignore_errors=True)
    flags = ["--model=deit_tiny_patch16_224", f"--weights={weights}"]
    return seconds(checkout, cache, "-m", "deit_jax.predict", *flags, photo)


def first_row(checkout: Path, cache: Path) -> float:
    """Seconds until the first step's row is on the disk; the run is ended there."""
    workdir = cache / "run"
    shutil.rmtree(workdir, ignore_errors=True)
    command = [sys.executable, "-m", "deit_jax.main", "--config=configs/quickstart.py", f"--workdir={workdir}"]
    command += ["--config.log.every_steps=1", "--config.log.progress=False"]
    rows, start = workdir / "metrics.jsonl", time.perf_counter()
    with subprocess.Popen(command, cwd=checkout, env=environment(cache), stdout=subprocess.DEVNULL) as process:
        while not (rows.exists() and rows.stat().st_size) and process.poll() is None:
            time.sleep(0.005)
        took = time.perf_counter() - start
        process.kill()
    if not (rows.exists() and rows.stat().st_size):
        raise RuntimeError(f"the run in {checkout} ended with status {process.returncode} before its first step")
    return took


if __name__ == "__main__":
    main()
