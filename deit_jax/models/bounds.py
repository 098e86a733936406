"""How large a network may be, so that a number in a file or a config cannot take all time or memory.

The bounds are some times what published networks have: the largest Vision Transformer (arXiv:2302.05442) is 6,144 wide
and 48 deep.
"""

from collections.abc import Mapping
from typing import Any

from deit_jax.base.errors import UserError

# The most that an argument may be; `depths` all together.
LIMITS = {
    **{"image_size": 8192, "patch_size": 1024, "num_classes": 1_000_000, "depth": 256, "depths": 256, "heads": 1024},
    **dict.fromkeys(("width", "widths", "stem_width", "head_width", "group_width", "pre_logits"), 16_384),
    **{"mlp_ratio": 64, "se_ratio": 64},
}
MAX_STAGES, MAX_PATCHES = 16, 65_536


def check_bounds(arguments: Mapping[str, Any]) -> None:
    """`UserError` for the first argument of a model that is beyond its bound; what is no number passes, since building
    the network tells of it."""
    for argument, most in LIMITS.items():
        value = arguments.get(argument, 0)
        if isinstance(value, list | tuple) and len(value) > MAX_STAGES:
            raise UserError(f"{argument} has {len(value):,} numbers, which is more than a network here may have stages")
        amount = _amount(argument, value)
        if amount > most:
            raise UserError(f"{argument} is {amount:,}, which is more than the {most:,} that a network here may have")
    patches = _patches(arguments)
    if patches > MAX_PATCHES:
        raise UserError(
            f"image_size {arguments['image_size']} at patch_size {arguments['patch_size']} makes {patches:,} patches, "
            f"which is more than the {MAX_PATCHES:,} that a network here may have"
        )


def _amount(argument: str, value: Any) -> float:
    """A number, of several the largest, of the depths of stages their sum."""
    numbers = [n for n in (value if isinstance(value, list | tuple) else [value]) if isinstance(n, int | float)]
    return sum(n for n in numbers if n > 0) if argument == "depths" else max(numbers, default=0)


def _patches(arguments: Mapping[str, Any]) -> int:
    sides, patch = arguments["image_size"], arguments.get("patch_size", 0)
    height, width = sides if isinstance(sides, list | tuple) and len(sides) == 2 else (sides, sides)
    return height * width // patch**2 if all(isinstance(n, int) and n > 0 for n in (height, width, patch)) else 0
