"""The smallest run that has everything: shared by the tests of whole steps and runs."""

import dataclasses
from typing import Any

from deit_jax import recipes
from deit_jax.config import resolve
from deit_jax.schema import Config


def tiny_config(**fields: Any) -> Config:
    """A two-block distilled DeiT on digits, with drop path, mixing and EMA; `section__field=value` changes a field."""
    config = recipes.deit("deit_tiny_distilled_patch16_224", dataset="digits", hardware="cpu")
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
        (config[section] if section else config)[field] = value
    return resolve(config)


def replace(config: Config, section: str, **fields: Any) -> Config:
    """The config with fields of one section changed."""
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)})
