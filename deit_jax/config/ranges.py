"""What the numbers of a config may be."""

import math
from collections.abc import Iterable
from typing import Any

from deit_jax.base.errors import UserError
from deit_jax.base.rules import first_match
from deit_jax.config.sizes import LARGEST

_POSITIVE, _BELOW_1 = 1e-12, 1 - 1e-9

# Fields (by path; of several numbers each by its place, data.mean.0) with the values that they admit.
_RANGES = [
    (r"^seed$", 0, 2**32 - 1),  # JAX's keys take so much
    (r"\.(prefetch|mixup|cutmix|min_learning_rate|warmup_learning_rate|weight_decay|clip_norm)$", 0, math.inf),
    (
        r"^data\.threads$|teacher\.image_size$|^model\.(patch_size|width|depth|heads)$|^guard\.max_rollbacks$",
        0,
        math.inf,
    ),
    (r"(_steps|_epochs|_examples)$", 0, math.inf),
    (
        r"(batch_size|image_size|repeats|group|min_count|max_count|accumulation|keep|max_skipped|mesh\.(fsdp|tensor|slices))$",
        1,
        math.inf,
    ),
    (r"\.(learning_rate|eps|tau|std\.\d)$", _POSITIVE, math.inf),
    (
        r"\.(probability|switch_probability|flip|color_jitter|max_corrupt|alpha|cutmix_minmax\.\d)$|^cosub\.weight$",
        0,
        1,
    ),
    (r"\.(label_smoothing|drop_path|decay|b1|b2|momentum|threshold)$", 0, _BELOW_1),
    (r"\.crop_ratio$", 1 / 16, 1),  # below, images become large before they are cut
    (r"\.(crop_scale\.\d|area\.\d|layer_decay|decay_rate)$", 1e-3, 1),
    (r"\.(aspect|crop_aspect)\.\d$", 1e-2, 1e2),
    (r"", -math.inf, math.inf),
]

# The most that they may be, so that no number takes all memory or time: far beyond what anybody has use for.
_LIMITS = [
    (r"^seed$", 2**32 - 1),
    (r"_steps$|^guard\.", 2**31 - 1),  # the state counts in int32
    (r"_epochs$", 10**6),
    (r"_examples$", 2**53),
    (r"^model\.depth$", 256),
    (r"_count$", 64),
    (r"^model\.(heads|patch_size)$", 1024),
    (r"^model\.width$", 16_384),
    (r"image_size$", LARGEST),
    (r"^data\.(threads|prefetch)$", 4096),
    (r"", 10**6),
]


def check_ranges(fields: Iterable[tuple[str, Any]]) -> None:
    """Raises `UserError` for the first of some (path, value) pairs that its field does not admit."""
    for path, value in fields:
        entries = {f"{path}.{i}": v for i, v in enumerate(value)} if isinstance(value, tuple) else {path: value}
        for entry, number in entries.items():
            if not isinstance(number, int | float):
                continue
            low, high, most = _bounds(entry)
            if not low <= number <= high:
                raise UserError(f"config.{path}: is {value!r}, should be {_bounds_in_words(low, high)}")
            if abs(number) > most:
                raise UserError(f"config.{path}: is {value!r}, should be at most {most:,}")


def range_in_words(path: str) -> str:
    """What the number of a field may be: `from 0 to 1`, `at least 1`; "" for any."""
    low, high, _ = _bounds(path)
    return "" if low == -math.inf else _bounds_in_words(low, high)


def _bounds(entry: str) -> tuple[float, float, float]:
    """The least and the greatest number that a field admits, and the largest size of one that takes no machine down."""
    low, high = first_match([(pattern, (low, high)) for pattern, low, high in _RANGES], entry)
    return low, high, first_match(_LIMITS, entry)


def _bounds_in_words(low: float, high: float) -> str:
    if high == math.inf:
        return "positive" if low == _POSITIVE else f"at least {low:g}"
    return f"from {low} to below 1" if high == _BELOW_1 else f"from {low} to {high}"
