"""What it takes to convert, open and use a DeiT-B: seconds and peak memory of whole processes, photos a second.

    python benchmarks/weights.py --photos=FOLDER --output=benchmarks/results/weights.json

The weights are random and float32. Every row is a process of its own, imports included; `peak_over_file` is its peak of
resident memory over the size of the safetensors file. Photos are classified in batches of 1 and of 32, whose largest
difference in a probability is told.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

MODEL = "deit_base_patch16_224"
MAKE = f"""
import sys
from flax import nnx
import deit_jax
from deit_jax.models import flatten
from deit_jax.weights import Card, Weights
from deit_jax.convert import write_timm
from pathlib import Path
model = deit_jax.create_model({MODEL!r}, rngs=nnx.Rngs(0))
variables = {{path: value.__array__() for path, value in flatten(model).items()}}
write_timm(Path(sys.argv[1]), Weights(variables, Card({MODEL!r})))
"""
OPEN = "import sys, deit_jax.weights as w; w.open_model(sys.argv[1])"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--photos", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file, orbax, hf = Path(folder, "a.safetensors"), Path(folder, "b"), Path(folder, "c")
        run(["-c", MAKE, str(file)])
        size = file.stat().st_size
        convert = ["-m", "deit_jax.convert"]
        rows = {
            "import": run(["-c", "import deit_jax"]),
            "safetensors to Orbax": run([*convert, str(file), str(orbax)]),
            "Orbax to Hugging Face": run([*convert, str(orbax), str(hf), "--format=hf"]),
            "Orbax to safetensors": run([*convert, str(orbax), str(Path(folder, "d.safetensors"))]),
            "Hugging Face to Orbax": run([*convert, str(hf), str(Path(folder, "e"))]),
            "open safetensors": run(["-c", OPEN, str(file)]),
            "open Orbax": run(["-c", OPEN, str(orbax)]),
        }
        tiny = ["-m", "deit_jax.predict", "--model=deit_tiny_patch16_224", f"--weights={folder}/t.safetensors"]
        run(["-c", MAKE.replace(MODEL, "deit_tiny_patch16_224"), f"{folder}/t.safetensors"])
        photos = {n: predict([*tiny, f"--batch_size={n}", str(given.photos)]) for n in (1, 32)}
    apart = [abs(a - b) for a, b in zip(*(probabilities for _, probabilities in photos.values()), strict=True)]
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "model": MODEL,
        "file_bytes": size,
        "processes": {
            name: {"seconds": round(seconds, 2), "peak_over_file": round(peak / size, 2)}
            for name, (seconds, peak) in rows.items()
        },
        "predict_deit_tiny": {f"batch {n}": {"images_per_second": speed} for n, (speed, _) in photos.items()},
        "predict_largest_difference": max(apart),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
    }
    given.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def run(arguments: Sequence[str]) -> tuple[float, int]:
    """Seconds, and the peak of resident memory in bytes, of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{shlex.join(arguments)} failed")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def predict(arguments: Sequence[str]) -> tuple[float, list[float]]:
    """Images a second, and the probability of every image's best class."""
    done = subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    speed = json.loads(done.stdout.splitlines()[-1])["images_per_second"]
    told = subprocess.run([sys.executable, *arguments, "--json"], check=True, stdout=subprocess.PIPE, text=True)
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    return speed, [row["predictions"][0]["probability"] for row in rows]


if __name__ == "__main__":
    main()
