"""The smallest run that has everything: shared by the tests of whole steps and runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deit_jax.config import recipes
from deit_jax.config.resolve import resolve
from deit_jax.config.schema import Config
from deit_jax.data import eval_batches
from deit_jax.data.memory import MemorySource
from deit_jax.models import abstract_model, bind, flatten
from deit_jax.run.build import Run, build, open_mesh
from deit_jax.run.stream import train_source
from deit_jax.weights.orbax import write_variables

# All that a training image may go through, for a tiny config; elements have their own mixup or cutmix.
EVERYTHING = {
    "data__augment": "rand-m9-mstd0.5-inc1",
    "data__color_jitter": 0.3,
    "data__interpolation": "random",
    "data__repeats": 3,
    "data__flip": 0.5,
    "erasing__probability": 0.5,
    "erasing__max_count": 2,
    "mixing__mode": "elem",
    "mixing__mixup": 0.8,
    "mixing__cutmix": 1.0,
}
EVERYTHING_FLAGS = [f"--config.{name.replace('__', '.')}={value}" for name, value in EVERYTHING.items()]


def tiny_config(**fields: Any) -> Config:
    """A two-block distilled DeiT on digits, with drop path, mixing and EMA; `section__field=value` changes a field."""
    config = recipes.deit("deit_tiny_distilled_patch16_224", dataset="digits", hardware="cpu")
    recipes.crop_and_flip(config)
    config.batch_size = 32
    recipes.set_duration(config, "total", steps=12)
    config.model.update(patch_size=4, width=24, depth=2, heads=3, drop_path=0.3)
    config.data.update(image_size=8, crop_scale=(0.6, 1.0), crop_ratio=1.0, flip=0.0, threads=1)
    config.mixing.group = 8
    config.optim.update(schedule_per_epoch=False, learning_rate=1e-2)
    recipes.set_duration(config.optim, "warmup", steps=3)
    config.ema.decay = 0.9
    recipes.set_duration(config.log, "every", steps=1)
    recipes.set_duration(config.eval, "every", steps=6)
    recipes.set_duration(config.checkpoint, "every", steps=4)
    config.log.update(progress=False, tensorboard=False)
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        group = config
        for part in section.split("__") if section else ():
            group = group[part]
        group[field] = value
    return resolve(config)


def tiny_run(config: Config, class_names: Sequence[str] = ()) -> Run:
    """The parts of a run on all devices: of the config's training split, or of black images of some classes."""
    black = MemorySource(np.zeros((40, 8, 8), np.uint8), np.zeros(40, np.int32), class_names) if class_names else None
    return build(config, open_mesh(config), black or train_source(config))


def write_random_weights(config: Config, class_names: Sequence[str], workdir: Path) -> None:
    """A workdir with a checkpoint of the config's network, of weights that are all different."""
    random = np.random.default_rng(0)
    shapes = sorted(flatten(tiny_run(config, class_names).model).items())
    variables = {path: random.normal(0, 0.1, leaf.shape).astype(np.float32) for path, leaf in shapes}
    write_weights(config, class_names, workdir, variables)


def write_weights(config: Config, class_names: Sequence[str], workdir: Path, variables: Mapping[str, Any]) -> None:
    """A workdir with a checkpoint of the config's network."""
    card = tiny_run(config, class_names).card
    write_variables(workdir / "checkpoints", dict(variables), {"card": card.to_json()})


# A teacher of the tiny student's classes, without distillation token, for images of another size and normalisation.
TEACHER = {
    "model__name": "deit_tiny_patch16_224",
    "model__depth": 1,
    "model__global_pool": "avg",
    "data__image_size": 12,
    "data__mean": (0.5, 0.4, 0.3),
    "data__std": (0.2, 0.3, 0.4),
}


def write_teacher(workdir: Path) -> Config:
    """A teacher in a workdir, and its config: a random network whose head is fitted to the digits."""
    config = tiny_config(**TEACHER)
    run = tiny_run(config)
    source = run.source
    data = {"image_size": 12, "crop_ratio": 1.0, "threads": 0, "prefetch": 0}
    (batch,) = eval_batches(source, batch_size=len(source), rows=range(len(source)), **data)
    random = np.random.default_rng(0)
    variables = {
        path: (random.normal(0, 0.3, leaf.shape) + path.endswith(".scale")).astype(np.float32)
        for path, leaf in sorted(flatten(run.model).items())
    }
    body = {path: value for path, value in variables.items() if not path.startswith("head.")}
    network = abstract_model(run.card.model, **run.card.arguments | {"num_classes": 0})
    images = run.normalize(jax.device_put(batch["image"]))
    (features,) = jax.jit(lambda body, images: bind(network, body).head_logits(images))(body, images)
    inputs = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    fitted = np.linalg.lstsq(inputs, 8 * np.eye(10)[batch["label"]], rcond=1e-3)[0].astype(np.float32)
    variables |= {"head.kernel": fitted[:-1], "head.bias": fitted[-1]}
    write_weights(config, source.class_names, workdir, variables)
    return config


def distilled_config(teacher: Path, **fields: Any) -> Config:
    """The tiny student, taught by the network that `write_teacher` put into a workdir."""
    given = {"kind": "hard", "teacher__name": "deit_tiny_patch16_224", "teacher__weights": str(teacher)}
    return tiny_config(**{f"distillation__{name}": value for name, value in given.items()} | fields)


def replace(config: Config, section: str, **fields: Any) -> Config:
    """The config with fields of one section changed."""
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})
