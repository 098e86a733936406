"""The configs of DeiT-III against the commands of facebook's README_revenge.md, setting by setting.

Its commands agree in what the names of the three kinds below say; the rest is in a line each.
"""

from pathlib import Path
from typing import Any

import pytest

from deit_jax import cli
from deit_jax.config.curves import published_curve
from deit_jax.config.resolve import flatten, resolve, to_dict
from deit_jax.config.schema import Config

CONFIGS = Path(__file__).parents[2] / "configs"

# Of all commands, and main.py's defaults where they are silent.
ALL = {
    "data.crop_ratio": 1.0,
    "data.flip": 0.5,
    "data.interpolation": "bicubic",
    "erasing.probability": 0.0,
    "mixing.cutmix": 1.0,
    "mixing.probability": 1.0,
    "mixing.switch_probability": 0.5,
    "mixing.mode": "batch",
    "optim.schedule": "cosine",
    "optim.scale_by_batch": False,
    "optim.warmup_epochs": 5.0,
    "optim.warmup_learning_rate": 1e-6,
    "optim.min_learning_rate": 1e-5,
    "optim.eps": 1e-8,
    "optim.clip_norm": 0.0,
    "ema.decay": 0.0,  # facebookresearch/deit issue 203
    "seed": 0,
}
THREE = {"data.augment": "3a", "data.color_jitter": 0.3, "optim.name": "lamb"}
SCRATCH = {
    "data.crop": "random_resized",
    "data.repeats": 3,
    "mixing.mixup": 0.8,
    "mixing.label_smoothing": 0.0,
    "loss.kind": "binary_cross_entropy",
    "loss.binarize": True,
    "optim.weight_decay": 0.05,
}
SOFT = {"data.repeats": 1, "mixing.label_smoothing": 0.1, "loss.kind": "cross_entropy"}
FINETUNE = {
    "data.augment": "rand-m9-mstd0.5-inc1",
    "data.color_jitter": 0.0,  # beside RandAugment timm leaves it out
    "data.crop": "random_resized",
    "mixing.mixup": 0.8,
    "optim.name": "adamw",
    "optim.weight_decay": 0.1,
}
LARGE = {"data.crop": "simple", "mixing.mixup": 0.0, "optim.weight_decay": 0.02}
KINDS = {
    "deit3": ALL | THREE | SCRATCH,
    "deit3_finetune": ALL | SOFT | FINETUNE,
    "deit3_21k": ALL | SOFT | THREE | LARGE,
}
COLUMNS = ("total_epochs", "optim.learning_rate", "data.image_size", "model.drop_path", "mixing.group")
# config, argument, epochs, learning rate, pixels, stochastic depth, images a GPU, GPUs, curve
COMMANDS = [
    ("deit3", "model=small", 800, 4e-3, 224, 0.05, 256, 8, "deit3_small"),
    ("deit3", "model=base", 800, 3e-3, 192, 0.2, 256, 8, "deit3_base"),
    ("deit3", "model=large", 800, 3e-3, 192, 0.45, 64, 32, "deit3_large"),
    ("deit3", "model=huge", 800, 3e-3, 160, 0.6, 64, 32, "deit3_huge"),
    ("deit3_finetune", "model=base", 20, 1e-5, 224, 0.2, 64, 8, "deit3_base_finetune_224"),
    ("deit3_finetune", "model=large,pixels=224", 20, 1e-5, 224, 0.45, 64, 8, "deit3_large_finetune_224"),
    ("deit3_finetune", "model=huge", 20, 1e-5, 224, 0.55, 32, 16, "deit3_huge_finetune_224"),
    ("deit3_finetune", "model=small", 20, 1e-5, 384, 0.0, 64, 8, "deit3_small_finetune_384"),
    ("deit3_finetune", "model=base,pixels=384", 20, 1e-5, 384, 0.15, 32, 16, "deit3_base_finetune_384"),
    ("deit3_finetune", "model=large,pixels=384", 20, 1e-5, 384, 0.4, 16, 32, "deit3_large_finetune_384"),
    ("deit3_21k", "model=small", 240, 1e-3, 224, 0.05, 128, 16, "deit3_small_21k_pretrain"),
    ("deit3_21k", "model=base", 240, 1e-3, 224, 0.1, 64, 32, "deit3_base_21k_pretrain"),
    ("deit3_21k", "model=large", 240, 1e-3, 224, 0.3, 64, 32, "deit3_large_21k_pretrain"),
    ("deit3_21k", "model=huge", 90, 1e-3, 128, 0.5, 64, 32, "deit3_huge_21k_pretrain"),
    ("deit3_21k", "model=small,stage=finetune", 50, 3e-4, 224, 0.05, 128, 16, "deit3_small_21k_finetune"),
    ("deit3_21k", "model=base,stage=finetune", 50, 3e-4, 224, 0.15, 64, 32, "deit3_base_21k_finetune"),
    ("deit3_21k", "model=large,stage=finetune", 50, 3e-4, 224, 0.4, 64, 32, "deit3_large_21k_finetune"),
    ("deit3_21k", "model=huge,stage=finetune", 50, 3e-4, 224, 0.45, 64, 32, "deit3_huge_21k_finetune"),
]


def load(name: str, argument: str) -> Config:
    return resolve(cli.parse_with_config("", lambda values: None, [f"--config={CONFIGS}/{name}.py:{argument}"])[1])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command[0]}:{command[1]}")
def test_settings_are_those_of_the_command(command: tuple[Any, ...]):
    name, argument, *values, gpus, curve = command
    config = load(name, argument)
    expected = KINDS[name] | dict(zip(COLUMNS, values, strict=True))
    if "huge" in argument:
        expected["data.image_size"] -= expected["data.image_size"] % 14  # what patches of 14 cover
    expected |= {"batch_size": expected["mixing.group"] * gpus, "eval.published_curve": curve}
    assert expected.items() <= dict(flatten(to_dict(config))).items()
    assert published_curve(curve).points[-1][0] == config.total.epochs


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("deit3", "epochs=400"),
        ("deit3", "dataset=folder"),
        ("deit3", "model=medium"),
        ("deit3_finetune", "model=medium"),
        ("deit3_finetune", "dataset=cifar10"),
    ],
)
def test_another_run_names_no_curve(name, argument):
    assert load(name, argument).eval.published_curve == ""
