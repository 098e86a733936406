"""Models by timm's names."""

import inspect
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from deit_jax.errors import UserError, nearest
from deit_jax.models.vit import VisionTransformer


@dataclass(frozen=True)
class Entry:
    """How to build one model: a module class and its keyword arguments."""

    build: type[Any]
    arguments: dict[str, Any] = field(default_factory=dict)


_TINY = {"width": 192, "depth": 12, "heads": 3}
_SMALL = {"width": 384, "depth": 12, "heads": 6}
_BASE = {"width": 768, "depth": 12, "heads": 12}

# arXiv:2012.12877, table 1; fine-tuned at 384 pixels: table 5.
MODELS = {
    "deit_tiny_patch16_224": Entry(VisionTransformer, _TINY),
    "deit_small_patch16_224": Entry(VisionTransformer, _SMALL),
    "deit_base_patch16_224": Entry(VisionTransformer, _BASE),
    "deit_base_patch16_384": Entry(VisionTransformer, _BASE | {"image_size": 384}),
    "deit_tiny_distilled_patch16_224": Entry(VisionTransformer, _TINY | {"distilled": True}),
    "deit_small_distilled_patch16_224": Entry(VisionTransformer, _SMALL | {"distilled": True}),
    "deit_base_distilled_patch16_224": Entry(VisionTransformer, _BASE | {"distilled": True}),
    "deit_base_distilled_patch16_384": Entry(VisionTransformer, _BASE | {"distilled": True, "image_size": 384}),
}


def list_models() -> list[str]:
    """The names `create_model` knows."""
    return list(MODELS)


def create_model(name: str, *, rngs: nnx.Rngs, **overrides: Any) -> nnx.Module:
    """Builds a model with fresh weights.

    Args:
        name: one of `list_models()`.
        rngs: draws the weights.
        **overrides: replace the entry's arguments, e.g. `num_classes=10`; see the module's class.

    Raises:
        UserError: an unknown model or override; the message shows the nearest names.
        ValueError: the arguments contradict each other.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}{nearest(name, MODELS)}")
    entry = MODELS[name]
    known = [
        parameter
        for parameter in inspect.signature(entry.build.__init__).parameters
        if parameter not in ("self", "rngs")
    ]
    for override in overrides:
        if override not in known:
            raise UserError(f"model {name} has no option {override!r}{nearest(override, known)}")
    return entry.build(**entry.arguments | overrides, rngs=rngs)
