"""From `ml_collections.ConfigDict` to frozen dataclasses, once, at the door.

A field that a config lacks, one that `schema.py` lacks, a value of another type or out of range, a contradiction is a
`UserError` that names the field and the mend. Nothing below the door sees a ConfigDict.
"""

import dataclasses
import math
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal

from deit_jax.base.errors import UserError
from deit_jax.base.rules import first_match
from deit_jax.config.contradictions import check_contradictions
from deit_jax.config.fields import nearest_field
from deit_jax.config.ranges import check_ranges
from deit_jax.config.schema import UNITS, Config, Duration

STREAM, SHAPE, BEGINNING = "the data stream", "the state's shape", "the weights that the run began with"
TRAINING = "how the run was trained"

# What decides what. A resume may not change the first three; a change of the fourth is announced, unless there is
# nothing left to train. The rest is how things are computed, read, told and kept.
_FIXED = [
    (r"^(seed|batch_size)$|^data\.(name|train_split|image_size|crop_scale|flip)$|^(mixing|erasing)\.", STREAM),
    (r"^data\.(image_size_schedule|crop|crop_aspect|interpolation|augment|color_jitter|repeats|exif)$", STREAM),
    (r"^model\.(name|patch_size|width|depth|heads|global_pool|stem)$", SHAPE),
    (r"^optim\.(trainable|name)$|^ema\.decay$", SHAPE),  # the average: on or off, that is
    (r"^init_from$", BEGINNING),
    (
        r"^total_|^(guard|log|checkpoint|eval|mesh)\.|^data\.(dir|eval_split|crop_ratio|threads|prefetch|max_corrupt)$",
        None,
    ),
    (r"^model\.(num_classes|dtype|attention|patch_embedding|remat)$|^optim\.(accumulation|gradient_dtype)$", None),
    (r"^distillation\.(top_k|store|teacher\.evaluate)$", None),
    (r"", TRAINING),
]

# Fields that came later than some run, with the value that means "as it was before there was the field": so that
# checkpoints and recordings which lack it go on.
LATER: dict[str, Any] = {
    "erasing.probability": 0.0,
    "erasing.mode": "pixel",
    "erasing.min_count": 1,
    "erasing.max_count": 1,
    "erasing.area": (0.02, 1 / 3),
    "erasing.aspect": (0.3, 1 / 0.3),
    "loss.threshold": 0.0,
    "cosub.weight": 0.0,
    "optim.name": "adamw",
    "optim.scale_by_batch": True,
    "optim.schedule": "cosine",
    **{f"optim.{name}_{unit}": 0 for name in ("cooldown", "decay") for unit in UNITS},
    "optim.decay_rate": 0.1,
    "optim.momentum": 0.9,
    "optim.warmup_prefix": False,
    "mixing.mode": "batch",
    "mixing.cutmix_minmax": (0.0, 0.0),
    **{f"mixing.off_{unit}": 0 for unit in UNITS},
    "data.image_size_schedule": "",
    "data.crop": "random_resized",
    "data.crop_aspect": (3 / 4, 4 / 3),
    "data.interpolation": "bicubic",
    "data.augment": "",
    "data.color_jitter": 0.0,
    "data.repeats": 1,
    "data.exif": True,
    "eval.published_curve": "",
    "mesh.slices": 1,
    "model.patch_embedding": "linear",
}

# How a network computes, by platform: what is `auto`.
HOW = {
    "cpu": {"dtype": "float32", "attention": "einsum", "patch_embedding": "linear"},
    "gpu": {"dtype": "bfloat16", "attention": "xla", "patch_embedding": "linear"},
    "tpu": {"dtype": "bfloat16", "attention": "xla", "patch_embedding": "conv"},
}


def resolve(config: Any) -> Config:
    """The frozen `Config` of a ConfigDict (or nested mapping); `UserError` naming the first wrong field."""
    tree = config.to_dict() if hasattr(config, "to_dict") else config
    resolved = _build(Config, tree, "")
    check_ranges(flatten(to_dict(resolved)))
    check_contradictions(resolved)
    return resolved


def for_platform(config: Config, platform: str) -> Config:
    """`auto` settings decided for `cpu`, `gpu` or `tpu`, see `choose`.

    Raises:
        UserError: attention that the platform does not have.
    """
    model = config.model
    chosen = choose(platform, **{name: getattr(model, name) for name in HOW["cpu"]})
    if chosen["attention"] == "cudnn" and (platform, chosen["dtype"]) != ("gpu", "bfloat16"):
        raise UserError(
            f"config.model.attention: cudnn needs an NVIDIA GPU and bfloat16, here are {platform} and "
            f"{chosen['dtype']}; set it to auto"
        )
    return dataclasses.replace(config, model=dataclasses.replace(model, **chosen))


def choose(platform: str, **given: str) -> dict[str, Any]:
    """How a network computes on `cpu`, `gpu` or `tpu`: what is `given` and not `auto`, and for the rest what `HOW` has.

    On accelerators in bfloat16, with XLA's attention; on TPUs patches are embedded by a convolution. docs/scaling.md
    compares them.
    """
    return HOW.get(platform, HOW["gpu"]) | {name: value for name, value in given.items() if value != "auto"}


def to_dict(config: Config) -> dict[str, Any]:
    """The nested mapping that `resolve` takes back: what `config.json` holds."""
    return _plain(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, leaf) pairs of a nested mapping."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def stream_fields(config: Config) -> dict[str, Any]:
    """The fields that decide which images a run trains on, in which order, cut and mixed how; by path."""
    return {path: value for path, value in recorded_fields(config).items() if first_match(_FIXED, path) == STREAM}


def recorded_fields(config: Config) -> dict[str, Any]:
    """All fields by path but those of `LATER` at their value of before: what was recorded before them still fits."""
    fields = flatten(to_dict(config))
    return {path: value for path, value in fields if not (path in LATER and value == LATER[path])}


def check_same(
    stored: Mapping[str, Any], config: Config, fixed: Collection[str] = (STREAM, SHAPE, BEGINNING)
) -> list[str]:
    """What differs from the config `stored` in a checkpoint, a line each.

    A field of `LATER` that `stored` lacks had its value of before.

    Args:
        fixed: what must be the same, of `STREAM`, `SHAPE`, `BEGINNING` and `TRAINING`.

    Raises:
        UserError: a field that decides something fixed differs.
    """
    before = LATER | dict(flatten(stored))
    changes = []
    for path, value in flatten(to_dict(config)):
        if path not in before:
            changes.append(f"{path}: {value!r}, which the run did not know yet")
            continue
        old = before[path]
        old = tuple(old) if isinstance(old, list) else old
        if old == value:
            continue
        # Whether there is an average is of the state's shape; how long it remembers is not.
        decides = TRAINING if path == "ema.decay" and old and value else first_match(_FIXED, path)
        if decides in fixed:
            raise UserError(
                f"config.{path}: is {value!r}, the run in this workdir has {old!r}, and it decides {decides}; "
                f"set it back, or take another --workdir"
            )
        changes.append(f"{path}: {old!r} -> {value!r}")
    return changes


def _build(cls: type, tree: Any, prefix: str) -> Any:
    if not isinstance(tree, Mapping):
        raise UserError(f"config.{prefix[:-1]}: is {tree!r}, should be a group of fields")
    left, values = dict(tree), {}

    def take(name: str, kind: Any) -> Any:
        if name not in left:
            raise UserError(
                f"config.{prefix}{name}: missing; start from a recipe (deit_jax.config.recipes), which has it"
            )
        return _convert(left.pop(name), kind, prefix + name)

    for name, kind in typing.get_type_hints(cls).items():
        if kind is Duration:
            values[name] = Duration(*(take(f"{name}_{u}", k) for u, k in zip(UNITS, (int, float, int), strict=True)))
        else:
            values[name] = take(name, kind)
    if left:
        wrong = prefix + next(iter(left))
        raise UserError(f"config.{wrong}: unknown field{nearest_field(wrong)}")
    return cls(**values)


def _convert(value: Any, kind: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, path + ".")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"config.{path}: is {value!r}, should be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            raise UserError(f"config.{path}: is {value!r}, should be {len(arguments)} numbers")
        return tuple(_convert(v, k, path) for v, k in zip(value, arguments, strict=True))
    if kind is float and type(value) is int and abs(value) < 2**63:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"config.{path}: is {value!r}, should be of type {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise UserError(f"config.{path}: is {value!r}, should be a finite number")
    if kind is str and not value.isprintable() and any(ord(sign) < 32 for sign in value):
        raise UserError(f"config.{path}: is {value!r}, which has control characters; write it without")
    return value


def _plain(value: Any) -> Any:
    if not dataclasses.is_dataclass(value):
        return value
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if isinstance(item, Duration):
            plain |= {f"{field.name}_{unit}": getattr(item, unit) for unit in UNITS}
        else:
            plain[field.name] = _plain(item)
    return plain
