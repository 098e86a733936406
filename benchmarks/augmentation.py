"""What augmentation brings a small DeiT on few images: CIFAR-10 at its own 32 px, from scratch.

    python benchmarks/augmentation.py --data=FOLDER --output=benchmarks/results/augmentation.json

FOLDER has an image folder for each class in `train/` and `test/`. The network has 16 patches of 8 px and learns from
the first `--examples` images, an equal number a class; accuracy is over all test images, of the last step's weights.
All rows see as many images and take as many steps, with the same optimizer, label smoothing and stochastic depth; of a
seed they share the initial weights and the order of the images but for `repeats`. cosub computes each image twice. A
difference under two standard errors is called a tie.
"""

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from distillation import summary, verdict
from ml_collections import ConfigDict
from PIL import Image

from deit_jax import cli, parallel
from deit_jax.config import recipes
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.config.schema import Config
from deit_jax.data.memory import MemorySource
from deit_jax.run.build import build
from deit_jax.run.evaluate import Evaluator

FULL = {
    "data": {"augment": "rand-m9-mstd0.5-inc1", "repeats": 3},
    "erasing": {"probability": 0.25},
    "mixing": {"mixup": 0.8, "cutmix": 1.0},
}
PLAIN = {"data": {"crop": "random_resized", "crop_scale": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "flip": 0.0}}
# row: what differs from flip and crop
ROWS: dict[str, dict[str, Any]] = {
    "none": PLAIN,
    "flip and crop": {},
    "flip and crop, cosub": {"cosub": {"weight": 0.5}},
    "full recipe": FULL,
    "full recipe, cosub": FULL | {"cosub": {"weight": 0.5}},
}
PAIRS = [
    ("flip and crop", "none"),
    ("flip and crop, cosub", "flip and crop"),
    ("full recipe", "flip and crop"),
    ("full recipe, cosub", "full recipe"),
]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    arguments.add_argument("--examples", type=int, default=5_000)
    arguments.add_argument("--epochs", type=float, default=40.0)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    given = arguments.parse_args()
    cli.start_jax()
    bench = Bench(given)
    found: dict[str, list[dict[str, float]]] = {row: [] for row in given.rows}
    for seed in range(given.seeds):
        for row in given.rows:
            found[row].append(bench.trained(row, seed))
            print(f"seed {seed}, {row}: {found[row][-1]}", flush=True)
        write(given, found)


class Bench:
    """The data, and the compiled steps that all seeds share."""

    def __init__(self, given: argparse.Namespace):
        self.given, self.mesh = given, parallel.make_mesh()
        self.train, self.test = source(given.data / "train", given.examples), source(given.data / "test", None)
        self.steps: dict[str, Any] = {}

    def trained(self, row: str, seed: int) -> dict[str, float]:
        """Top-1 in percent on the test images and on the training images, the last loss in nats, and seconds."""
        start = time.perf_counter()
        config = self.config(row, seed)
        run = build(config, self.mesh, self.train)
        step = self.steps.setdefault(row, run.train_step())
        state, losses = run.first_state(), []
        for batch, _ in run.batches(0, run.total):
            state, metrics = step(state, batch, np.uint32(seed))
            losses.append(metrics["loss"])
        tops = {}
        for name, data in (("test", self.test), ("train", self.train)):
            evaluator = Evaluator(config, run.predict, data, self.mesh)
            tops[name] = evaluator({"eval": state.params | state.stats})["eval"].summary()["top1"]
        loss = float(np.mean([float(x) for x in losses[-len(losses) // 20 :]]))
        return {**tops, "loss": round(loss, 4), "seconds": round(time.perf_counter() - start)}

    def config(self, row: str, seed: int) -> Config:
        config = recipes.deit("deit_tiny_patch16_224", dataset="folder")
        recipes.crop_and_flip(config)
        config.seed, config.batch_size = seed, 128
        recipes.set_duration(config, "total", epochs=self.given.epochs)
        config.model.update(patch_size=8, width=96, depth=4, heads=3)
        config.data.update(image_size=32, crop="pad", crop_ratio=1.0, threads=1)
        config.mixing.update(mixup=0.0, cutmix=0.0, group=32)
        config.optim.update(learning_rate=1e-3, scale_by_batch=False, schedule_per_epoch=False)
        recipes.set_duration(config.optim, "warmup", epochs=self.given.epochs / 10)
        config.ema.decay = 0.0
        config.update(ConfigDict(ROWS[row]))
        return for_platform(resolve(config), jax.default_backend())


def source(folder: Path, count: int | None) -> MemorySource:
    """The first images of every class, decoded; `count` of them in all."""
    names = sorted(path.name for path in folder.iterdir())
    images, labels = [], []
    for label, name in enumerate(names):
        files = sorted((folder / name).iterdir())[: count and count // len(names)]
        images += [np.asarray(Image.open(file).convert("RGB")) for file in files]
        labels += [label] * len(files)
    return MemorySource(np.stack(images), np.array(labels), names, name=folder.name)


def write(given: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> None:
    """The JSON file, after every seed anew: what it has is whole."""
    rows = {
        row: {
            what: summary(np.array([run[what] for run in runs])) | {"runs": [run[what] for run in runs]}
            for what in ("test", "train", "loss", "seconds")
        }
        for row, runs in found.items()
    }
    tests = {row: np.array([run["test"] for run in runs]) for row, runs in found.items()}
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "settings": {name: value for name, value in vars(given).items() if isinstance(value, int | float)},
        "rows": rows,
        "differences": {f"{a} - {b}": verdict(tests[a] - tests[b]) for a, b in PAIRS if {a, b} <= tests.keys()},
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
    }
    given.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
