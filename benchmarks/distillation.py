"""Table 3 of the DeiT paper (arXiv:2012.12877) in miniature: what each kind of distillation brings, on Fashion-MNIST.

    python benchmarks/distillation.py --data=FOLDER --output=benchmarks/results/distillation.json

FOLDER holds the four IDX files of Fashion-MNIST (in Debian's package dataset-fashion-mnist). A small DeiT of 16 tokens
learns from the first 10,000 images of the training set, alone and from teachers that know more, having learnt from all
60,000: a RegNetY, and to compare kinds of teachers a ViT and a lesser RegNetY that is about as good as that. All runs
of a seed see the same batches, so that differences are paired; accuracy is over the 10,000 test images. Soft rows take
tau 3, weight 0.1 and the KL's mean over the batch, hard rows weight 0.5, as in the paper. A difference under two
standard errors is called a tie. The errors are those of the students' seeds: each teacher is one network.
"""

import argparse
import dataclasses
import gzip
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deit_jax import cli, parallel
from deit_jax.config import recipes
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.config.schema import Config
from deit_jax.data.memory import MemorySource
from deit_jax.run.build import Run, build
from deit_jax.run.evaluate import Evaluator, Result
from deit_jax.step.state import TrainState

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SOFT = {"kind": "soft", "tau": 3.0, "alpha": 0.1, "kl_reduction": "batchmean"}
HARD = {"kind": "hard", "alpha": 0.5}
# row: with a token, teacher, settings
ROWS: dict[str, tuple[bool, str, dict[str, Any]]] = {
    "none": (False, "", {"kind": "none"}),
    "usual soft": (False, "convnet", SOFT),
    "usual hard": (False, "convnet", HARD),
    "usual hard, no labels": (False, "convnet", HARD | {"alpha": 1.0}),
    "token soft": (True, "convnet", SOFT),
    "token hard": (True, "convnet", HARD),
    "token hard, transformer teacher": (True, "transformer", HARD),
    "token hard, equal convnet teacher": (True, "equal_convnet", HARD),
}
STUDENT = {"patch_size": 7, "width": 64, "depth": 4, "heads": 4, "drop_path": 0.0}
TEACHERS = {
    "convnet": ("regnety_002", {"stem": "cifar", "drop_path": 0.0}),
    "equal_convnet": ("regnety_002", {"drop_path": 0.0}),
    "transformer": ("deit_tiny_patch16_224", {"patch_size": 4, "width": 64, "depth": 6, "heads": 4, "drop_path": 0.0}),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--output", type=Path, required=True)
    arguments.add_argument("--examples", type=int, default=10_000, help="training images of the students")
    arguments.add_argument("--epochs", type=int, default=8, help="of the students")
    arguments.add_argument("--convnet_epochs", type=float, default=2.0)
    arguments.add_argument("--equal_convnet_epochs", type=float, default=1.6)
    arguments.add_argument("--transformer_epochs", type=float, default=4.0)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="of the table")
    given = arguments.parse_args()
    cli.start_jax()
    bench = Bench(given)
    needed = {ROWS[row][1] for row in given.rows}
    teachers = {name: bench.teacher(name) for name in TEACHERS if name in needed}
    found: dict[str, list[dict[str, float]]] = {row: [] for row in given.rows}
    for seed in range(given.seeds):
        start = time.perf_counter()
        shown = bench.taught_batches(seed, teachers)
        print(f"seed {seed}: batches and teachers in {time.perf_counter() - start:.0f} s", flush=True)
        for row in given.rows:
            start = time.perf_counter()
            found[row].append(bench.taught(row, seed, shown))
            print(f"seed {seed}, {row}: {found[row][-1]}, {time.perf_counter() - start:.0f} s", flush=True)
        write(given, {name: teacher.accuracy for name, teacher in teachers.items()}, found)


def batches(run: Run) -> Iterator[Any]:
    return (batch for batch, _ in run.batches(0, run.total))


@dataclasses.dataclass(frozen=True)
class Trained:
    """A teacher: a jitted function of uint8 images to logits, and its top-1 accuracy in percent."""

    logits: Callable[[Any], Any]
    accuracy: float


class Bench:
    """The data, and the compiled steps that all seeds share."""

    def __init__(self, given: argparse.Namespace):
        self.given, self.mesh = given, parallel.make_mesh()
        self.train, self.test = source(given.data, "train", given.examples), source(given.data, "t10k", None)
        self.all = source(given.data, "train", None)  # what the teachers learn from
        self.steps = {row: self.step(self.student(row, 0)) for row in given.rows}

    def teacher(self, name: str) -> Trained:
        model, changes = TEACHERS[name]
        config = self.config(model, changes, epochs=getattr(self.given, f"{name}_epochs"))
        run = build(config, self.mesh, self.all)
        state, accuracy = self.fit(run, self.step(run), batches(run))
        print(f"{name} teacher: {accuracy}", flush=True)
        variables = state.params | state.stats
        return Trained(jax.jit(lambda images: run.predict(variables, images)[0]), accuracy["mean"])

    def taught_batches(self, seed: int, teachers: Mapping[str, Trained]) -> list[tuple[Any, dict[str, Any]]]:
        """Every batch of a seed, with what each teacher says of it: made once for all rows."""
        return [
            (batch, {name: teacher.logits(batch["image"]) for name, teacher in teachers.items()})
            for batch in batches(self.student("none", seed))
        ]

    def taught(self, row: str, seed: int, batches: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, float]:
        """The accuracies of one run."""
        teacher = ROWS[row][1]
        taught = (batch | {"teacher": {"logits": told[teacher]} if teacher else {}} for batch, told in batches)
        return self.fit(self.student(row, seed), self.steps[row], taught)[1]

    def student(self, row: str, seed: int) -> Run:
        token, _, settings = ROWS[row]
        name = "deit_tiny_distilled_patch16_224" if token else "deit_tiny_patch16_224"
        config = self.config(name, STUDENT, epochs=self.given.epochs, seed=seed)
        config = dataclasses.replace(config, distillation=dataclasses.replace(config.distillation, **settings))
        return build(config, self.mesh, self.train)

    def step(self, run: Run) -> Any:
        taught = run.config.distillation.kind != "none"
        return run.train_step((lambda variables, images, recorded: recorded["logits"]) if taught else None)

    def fit(self, run: Run, step: Any, batches: Iterable[Any]) -> tuple[TrainState, dict[str, float]]:
        state = run.first_state()
        for batch in batches:
            state, _ = step(state, batch, np.uint32(run.config.seed))
        evaluator = Evaluator(run.config, run.predict, self.test, self.mesh)
        return state, accuracies(evaluator({"eval": state.params | state.stats})["eval"])

    def config(self, model: str, changes: Mapping[str, Any], *, epochs: float, seed: int = 0) -> Config:
        config = recipes.deit(model, dataset="folder")
        recipes.crop_and_flip(config)
        config.seed, config.batch_size = seed, 128
        recipes.set_duration(config, "total", epochs=epochs)
        config.model.update(changes)
        config.data.update(image_size=28, crop_scale=(0.6, 1.0), crop_ratio=1.0, threads=1)
        config.mixing.update(mixup=0.0, cutmix=0.0, label_smoothing=0.1, group=128)
        config.optim.update(learning_rate=4e-3, schedule_per_epoch=False)
        recipes.set_duration(config.optim, "warmup", epochs=epochs / 10)
        config.ema.decay = 0.0
        return for_platform(resolve(config), jax.default_backend())


def source(folder: Path, part: str, count: int | None) -> MemorySource:
    """Images of an IDX file pair."""

    def read(kind: str, header: int) -> np.ndarray:
        data = gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes())
        return np.frombuffer(data, np.uint8, offset=header)

    images, labels = read("images-idx3", 16).reshape(-1, 28, 28)[:count], read("labels-idx1", 8)[:count]
    return MemorySource(images, labels, CLASSES, name=f"fashion {part}")


def accuracies(result: Result) -> dict[str, float]:
    summary = result.summary()
    heads = {"class": summary["top1_cls"], "distillation": summary["top1_dist"]} if "top1_cls" in summary else {}
    return {"mean": summary["top1"], **heads}


def write(given: argparse.Namespace, teachers: dict[str, float], found: dict[str, list[dict[str, float]]]) -> None:
    """The JSON file, after every seed anew: what it has is whole."""
    values = {
        (row, head): np.array([run[head] for run in runs]) for row, runs in found.items() for head in (runs or [{}])[0]
    }
    pairs = [((row, "mean"), ("none", "mean")) for row in ROWS if row != "none"]
    pairs += [((f"token {kind}", "mean"), (f"usual {kind}", "mean")) for kind in ("soft", "hard")]
    pairs += [(("token hard", "mean"), ("token soft", "mean"))]
    pairs += [
        (("token hard", "distillation"), ("token hard", "class")),
        (("token hard", "mean"), ("token hard", "class")),
    ]
    pairs += [(("token hard, equal convnet teacher", "mean"), ("token hard, transformer teacher", "mean"))]
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "settings": {name: value for name, value in vars(given).items() if isinstance(value, int | float)},
        "teachers": teachers,
        "top1": {f"{row}, {head}": summary(v) | {"runs": v.round(2).tolist()} for (row, head), v in values.items()},
        "differences": {
            f"({a}, {b}) - ({c}, {d})": verdict(values[a, b] - values[c, d])
            for (a, b), (c, d) in pairs
            if {(a, b), (c, d)} <= values.keys()
        },
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
    }
    given.output.write_text(json.dumps(result, indent=2) + "\n")


def summary(values: np.ndarray) -> dict[str, Any]:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": round(float(values.mean()), 3), "standard_error": error and round(error, 3)}


def verdict(differences: np.ndarray) -> dict[str, Any]:
    """Of paired differences in percentage points."""
    figures = summary(differences)
    mean, error = figures["mean"], figures["standard_error"]
    if error is None:
        return figures
    return figures | {"verdict": "tie" if abs(mean) < 2 * error or not mean else "better" if mean > 0 else "worse"}


if __name__ == "__main__":
    main()
