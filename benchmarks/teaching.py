"""What a teacher costs: training steps without one, with one beside the student, and with one that was recorded.

    python benchmarks/teaching.py --output=benchmarks/results/cpu_teaching.json

All in one process and in turns, on the same stream: digits enlarged to 224 pixels, augmented and mixed as by the DeiT
recipe. A turn is timed from asking for its first batch, what was recorded included, to the end of its last update. A
ratio is the median over the turns of a turn's time over that of the turn without a teacher; its quartiles tell how
quiet the machine was. The teacher's weights are random, which costs the same.
"""

import argparse
import dataclasses
import itertools
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from deit_jax import cli, convert, precompute
from deit_jax.config import recipes
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.config.schema import Config
from deit_jax.data import Source
from deit_jax.distill.teaching import open_teaching
from deit_jax.models import create_model, entry, flatten
from deit_jax.run.build import build, open_mesh
from deit_jax.run.stream import train_source
from deit_jax.weights import Card, Weights

WARM_UP = 2  # steps, of which the first compiles


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="deit_tiny_distilled_patch16_224")
    arguments.add_argument("--teacher", default="regnety_016")
    arguments.add_argument("--batch_size", type=int, default=16)
    arguments.add_argument("--turns", type=int, default=40)
    arguments.add_argument("--steps", type=int, default=1, help="of a turn")
    arguments.add_argument("--output", type=Path, required=True)
    given = arguments.parse_args()
    cli.start_jax()
    with tempfile.TemporaryDirectory() as folder:
        times = measure(given, Path(folder))
    alone = times.pop("without a teacher")
    ratios = {name: np.divide(values, alone) for name, values in times.items()}
    result = {
        "command": shlex.join(["python", *sys.argv]),
        **{name: getattr(given, name) for name in ("model", "teacher", "batch_size", "turns", "steps")},
        "step_ms": {
            name: round(1e3 * statistics.median(values), 2) for name, values in {"alone": alone, **times}.items()
        },
        "ratio": {name: round(float(np.median(values)), 4) for name, values in ratios.items()},
        "ratio_quartiles": {
            name: np.quantile(values, (0.25, 0.75)).round(4).tolist() for name, values in ratios.items()
        },
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "jax": jax.__version__,
    }
    given.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def measure(given: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds a step of every turn, by what teaches."""
    weights, store = folder / "teacher.safetensors", folder / "store"
    beside = config_of(given, weights)
    source = train_source(beside)
    write_weights(given.teacher, source, weights)
    precompute.Recording(beside, "stream").write(store)
    recorded = dataclasses.replace(beside.distillation, store=str(store))
    configs = {
        "without a teacher": dataclasses.replace(
            beside, distillation=dataclasses.replace(beside.distillation, kind="none")
        ),
        "beside": beside,
        "recorded": dataclasses.replace(beside, distillation=recorded),
    }
    running = {name: run(config, source) for name, config in configs.items()}
    for metrics in running.values():
        advance(metrics, WARM_UP)
    times: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(given.turns):
        for name, metrics in running.items():
            start = time.perf_counter()
            advance(metrics, given.steps)
            times[name].append((time.perf_counter() - start) / given.steps)
    return times


def advance(metrics: Iterator[dict[str, jax.Array]], steps: int) -> None:
    """Takes so many steps, and waits for the end of the last."""
    jax.block_until_ready(list(itertools.islice(metrics, steps)))


def run(config: Config, source: Source) -> Iterator[dict[str, jax.Array]]:
    """The metrics of each step of a training run, which are there when the step has ended."""
    parts = build(config, open_mesh(config), source)
    teaching = open_teaching(config, source, parts.mesh, rows=parts.total * config.batch_size)
    state, step = parts.first_state(), parts.train_step(teaching.logits)
    for batch, _ in parts.batches(0, parts.total, teaching.store):
        state, metrics = step(state, batch, np.uint32(config.seed), teaching.variables)
        yield metrics


def config_of(given: argparse.Namespace, weights: Path) -> Config:
    config: Any = recipes.deit(given.model, dataset="digits")
    recipes.crop_and_flip(config)
    config.batch_size, config.mixing.group = given.batch_size, min(config.mixing.group, given.batch_size)
    recipes.set_duration(config, "total", steps=WARM_UP + given.turns * given.steps)
    config.data.update(threads=min(config.data.threads, os.cpu_count() or 1), prefetch=1)
    config.distillation.update(kind="soft", top_k=5)
    config.distillation.teacher.update(name=given.teacher, weights=str(weights))
    return for_platform(resolve(config), jax.default_backend())


def write_weights(name: str, source: Source, path: Path) -> None:
    """Random weights of a model for the classes of a source."""
    model = create_model(name, rngs=nnx.Rngs(0), num_classes=len(source.class_names))
    card = Card(name, {"num_classes": len(source.class_names)}, source.class_names, entry(name).preprocessing)
    convert.write_timm(path, Weights({path: np.asarray(value) for path, value in flatten(model).items()}, card))


if __name__ == "__main__":
    main()
