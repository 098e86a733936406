"""Complete ConfigDicts, one function a recipe. A file in `configs/` calls one and says what differs.

`deit` is the recipe of arXiv:2012.12877, table 9 (column "DeiT-B"), as facebook's main.py sets it; `deit3` that of
arXiv:2204.07118 on ImageNet-1k, as facebook's README_revenge.md does. docs/recipes.md tells where they differ.
"""

import dataclasses
from collections.abc import Mapping
from typing import TypeVar

from ml_collections import ConfigDict

from deit_jax.base.errors import UserError, nearest
from deit_jax.config.resolve import HOW
from deit_jax.models import VisionTransformer, entry

T = TypeVar("T")

# data.name -> (training split, evaluation split)
DATASETS = {
    "imagenet2012": ("train", "validation"),
    "cifar10": ("train", "test"),
    "cifar100": ("train", "test"),
    "digits": ("train", "test"),
    "folder": ("train", "validation"),
}
HARDWARE = {"auto": dict.fromkeys(HOW["cpu"], "auto"), **HOW}


def deit(name: str, *, hardware: str = "auto", dataset: str = "imagenet2012") -> ConfigDict:
    """DeiT's 300 epochs at batch 1024 for the model `name` on `dataset`, at the model's own image size."""
    published = entry(name)
    train_split, eval_split = choose(DATASETS, dataset, "dataset")
    return ConfigDict(
        {
            "seed": 0,
            "batch_size": 1024,
            **_duration("total", epochs=300),
            "init_from": "",
            "model": {
                "name": name,
                "num_classes": -1,
                "patch_size": 0,
                "width": 0,
                "depth": 0,
                "heads": 0,
                "global_pool": "",
                "stem": "",
                "drop_path": 0.1,
                **choose(HARDWARE, hardware, "hardware"),
                "remat": False,
            },
            "data": {
                "name": dataset,
                "dir": "",
                "train_split": train_split,
                "eval_split": eval_split,
                "image_size": published.arguments.get("image_size", 224),
                "image_size_schedule": "",
                "crop": "random_resized",
                "crop_scale": (0.08, 1.0),
                "crop_aspect": (3 / 4, 4 / 3),
                "interpolation": "bicubic",
                "flip": 0.5,
                "augment": "rand-m9-mstd0.5-inc1",
                "color_jitter": 0.0,
                "repeats": 3,
                "exif": True,
                **dataclasses.asdict(published.preprocessing),
                "threads": 16,
                "prefetch": 4,
                "max_corrupt": 0.01,
            },
            "erasing": {
                "probability": 0.25,
                "mode": "pixel",
                "min_count": 1,
                "max_count": 1,
                "area": (0.02, 1 / 3),
                "aspect": (0.3, 1 / 0.3),
            },
            "mixing": {
                "mixup": 0.8,
                "cutmix": 1.0,
                "probability": 1.0,
                "switch_probability": 0.5,
                "label_smoothing": 0.1,
                "group": 256,
                "mode": "batch",
                "cutmix_minmax": (0.0, 0.0),
                **_duration("off"),
            },
            "loss": {"kind": "cross_entropy", "binarize": False, "threshold": 0.0},
            "cosub": {"weight": 0.0},
            "distillation": {
                "kind": "none",
                "token": "distilled" in name,
                "alpha": 0.5,
                "tau": 1.0,
                "kl_reduction": "numel",
                "teacher": {"name": "", "weights": "", "image_size": 0, "evaluate": True},
                "top_k": 10,
                "store": "",
            },
            "optim": {
                "name": "adamw",
                "learning_rate": 5e-4,
                "scale_by_batch": True,
                "warmup_learning_rate": 1e-6,
                "min_learning_rate": 1e-5,
                "schedule": "cosine",
                **_duration("warmup", epochs=5),
                **_duration("cooldown"),
                **_duration("decay"),
                "decay_rate": 0.1,
                "warmup_prefix": False,
                "schedule_per_epoch": True,
                "weight_decay": 0.05,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,
                "momentum": 0.9,
                "clip_norm": 0.0,
                "accumulation": 1,
                "gradient_dtype": "float32",
                "layer_decay": 1.0,
                "trainable": "all",
            },
            "ema": {"decay": 0.99996, "warmup": False},
            "guard": {"max_skipped": 20, "max_rollbacks": 3},
            "log": {
                **_duration("every", steps=50),
                "progress": True,
                "tensorboard": True,
                "wandb": False,
                "utilisation": "auto",
            },
            "checkpoint": {**_duration("every", epochs=1), "keep": 2},
            "eval": {**_duration("every", epochs=5), "batch_size": 1024, "published_curve": ""},
            # DeiT's models fit a device many times over: every mesh is data parallel, `fsdp` and `tensor` the user's.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1, "slices": 1},
        }
    )


def deit3(name: str, *, hardware: str = "auto", dataset: str = "imagenet2012") -> ConfigDict:
    """DeiT-III's 800 epochs at batch 2048 for the model `name`: LAMB, binary cross-entropy and 3-Augment."""
    config = deit(name, hardware=hardware, dataset=dataset)
    config.batch_size = 2048
    set_duration(config, "total", epochs=800)
    config.data.update(augment="3a", color_jitter=0.3)
    config.erasing.probability = 0.0
    config.mixing.label_smoothing = 0.0
    config.loss.update(kind="binary_cross_entropy", binarize=True)
    config.optim.update(name="lamb", learning_rate=3e-3, scale_by_batch=False)
    config.ema.decay = 0.0  # the authors did not use it (facebookresearch/deit issue 203)
    return config


def crop_and_flip(config: ConfigDict) -> None:
    """Takes operations, erasing and repeats out of a recipe: what is left are crops, flips and mixing."""
    config.data.update(augment="", color_jitter=0.0, repeats=1)
    config.erasing.probability = 0.0


def finetune(name: str, *, hardware: str = "auto", dataset: str = "folder") -> ConfigDict:
    """Fine-tuning the published weights of `name` on a data set of its own, of hundreds to tens of thousands of images.

    The DeiT recipe with less of everything: 30 epochs, gentler crops and mixing, and for Transformers steps that shrink
    from the head down (layer-wise decay of the learning rate, arXiv:2106.08254), since lower layers serve any photo.
    """
    config = deit(name, hardware=hardware, dataset=dataset)
    crop_and_flip(config)
    config.init_from = "pretrained"
    config.batch_size = 64
    config.data.update(crop_scale=(0.3, 1.0), threads=4, max_corrupt=0.1)
    config.mixing.update(mixup=0.2, cutmix=0.5, probability=0.5)
    config.optim.update(learning_rate=2e-3, min_learning_rate=1e-6, schedule_per_epoch=False)
    if entry(name).build is VisionTransformer:
        config.optim.layer_decay = 0.75
    config.ema.decay = 0.0  # over a few hundred steps an average would be of the beginning
    set_duration(config, "total", epochs=30)
    set_duration(config.optim, "warmup", epochs=2)
    set_duration(config.eval, "every", epochs=1)
    config.eval.batch_size = 64  # as in training: a RegNetY on 1,024 photos at once would take 19 GB
    set_duration(config.log, "every", steps=10)
    return config


def digits(name: str, *, hardware: str = "auto") -> ConfigDict:
    """A small version of the network `name` on scikit-learn's 8x8 digits, enlarged to 32 px, for two CPU cores."""
    config = deit(name, dataset="digits", hardware=hardware)
    crop_and_flip(config)
    config.batch_size = 64
    set_duration(config, "total", epochs=80)
    if name.startswith("deit"):
        config.model.update(patch_size=8, width=96, depth=6, heads=3)
    else:
        config.model.update(stem="cifar")
    config.model.drop_path = 0.0
    config.data.update(image_size=32, crop_scale=(0.8, 1.0), crop_ratio=1.0, flip=0.0, threads=2)
    config.mixing.update(mixup=0.1, cutmix=0.0, group=8)
    config.optim.update(learning_rate=1.6e-2, schedule_per_epoch=False)
    config.ema.decay = 0.99
    set_duration(config.log, "every", steps=20)
    set_duration(config.eval, "every", epochs=10)
    set_duration(config.checkpoint, "every", epochs=10)
    return config


def arguments(text: str | None, **defaults: str) -> dict[str, str]:
    """`"hardware=tpu,dataset=cifar10"`, the part of `--config=FILE:...` behind the colon, over `defaults`.

    Raises:
        UserError: an argument that is not among `defaults`, or not of the form name=value.
    """
    chosen = dict(defaults)
    for item in filter(None, (text or "").split(",")):
        name, equals, value = item.partition("=")
        if not equals or name not in chosen:
            raise UserError(f"--config: argument {item!r}, should be name=value with a name of {sorted(chosen)}")
        chosen[name] = value
    return chosen


def number(text: str, what: str) -> int:
    """The argument `what` as a whole number."""
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise UserError(f"--config: {what} is {text!r}, should be a whole number")
    return int(text)


def set_duration(group: ConfigDict, name: str, *, steps: int = 0, epochs: float = 0.0, examples: int = 0) -> None:
    """Sets a duration's one unit and clears the others."""
    group.update(_duration(name, steps=steps, epochs=epochs, examples=examples))


def _duration(name: str, *, steps: int = 0, epochs: float = 0.0, examples: int = 0) -> dict[str, int | float]:
    return {f"{name}_steps": steps, f"{name}_epochs": float(epochs), f"{name}_examples": examples}


def choose(table: Mapping[str, T], key: str, what: str) -> T:
    """The entry of `table` that the argument `what` names."""
    if key not in table:
        raise UserError(f"--config: unknown {what} {key!r}{nearest(key, table)}")
    return table[key]
