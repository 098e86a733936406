"""What random erasing and mixing cost in the training step of DeiT's recipe: with both, and with normalisation alone.

    python benchmarks/mixing.py --output=benchmarks/results/cpu_mixing.json

Two compiled steps take one update each in turn, on one batch that stays on the devices. A ratio is the median over the
turns of a turn's time over that of the other step; its quartiles tell how quiet the machine was.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from deit_jax import cli
from deit_jax.config import recipes
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.data.memory import MemorySource
from deit_jax.run.build import build, open_mesh
from deit_jax.step import step as step_module

WARM_UP = 2  # turns


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="deit_tiny_patch16_224")
    arguments.add_argument("--batch_size", type=int, default=32)
    arguments.add_argument("--turns", type=int, default=60)
    arguments.add_argument("--output", type=Path, required=True)
    given = arguments.parse_args()
    cli.start_jax()
    both, alone = measure(given)
    ratios = np.divide(both, alone)
    result = {
        "command": shlex.join(["python", *sys.argv]),
        **{name: getattr(given, name) for name in ("model", "batch_size", "turns")},
        "step_ms": {name: round(1e3 * statistics.median(t), 2) for name, t in (("both", both), ("neither", alone))},
        "ratio": round(float(np.median(ratios)), 4),
        "ratio_quartiles": np.quantile(ratios, (0.25, 0.75)).round(4).tolist(),
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "jax": jax.__version__,
    }
    given.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def measure(given: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Seconds of the step with erasing and mixing, and without, of every turn."""
    tree = recipes.deit(given.model)
    tree.batch_size, tree.mixing.group = given.batch_size, given.batch_size // 4
    config = for_platform(resolve(tree), jax.default_backend())
    noise = np.random.default_rng(0).integers(0, 256, (given.batch_size * 8, 224, 224, 3), np.uint8)
    names = [str(i) for i in range(1000)]
    run = build(config, open_mesh(config), MemorySource(noise, np.arange(len(noise)) % 1000, names, name="noise"))
    batch = next(run.batches(0, 1))[0]
    steps = [turn(run, batch), turn(run, batch)]
    with mock.patch.object(step_module, "student_images", lambda batch, normalize: normalize(batch["image"])):
        steps[1]()  # is traced here
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(WARM_UP + given.turns):
        for step, spent in zip(steps, times, strict=True):
            spent.append(step())
    return times[0][WARM_UP:], times[1][WARM_UP:]


def turn(run: Any, batch: Any) -> Any:
    """A function that takes one update, and returns its seconds."""
    jitted, state = run.train_step(), run.first_state()

    def step() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = jitted(state, batch, np.uint32(0))
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    return step


if __name__ == "__main__":
    main()
