"""Floating-point operations of a network, by the usual formula."""

import math

from flax import nnx

from deit_jax.base.rules import first_match
from deit_jax.models.params import flatten
from deit_jax.models.vit import VisionTransformer


def training_flops(model: nnx.Module, image_size: tuple[int, int] | None = None) -> int:
    """As `forward_flops`, of a training step: a backward pass costs two forward ones, as it is usually counted."""
    return 3 * forward_flops(model, image_size)


def forward_flops(model: nnx.Module, image_size: tuple[int, int] | None = None) -> int:
    """Floating-point operations of one image's forward pass, two for a multiply-add, in matrix products alone.

    Per block of width D on N tokens, 24 N D^2 in the dense layers and 4 N^2 D in attention (papers and timm count
    multiply-adds: half of this). It is the usual count, in full for the last block too, which computes the class and
    distillation tokens alone: about 6 % less work than this at depth 12.

    Args:
        image_size: height and width of the image in pixels (None: those that the model takes).

    Raises:
        TypeError: the model is no `VisionTransformer`.
    """
    if not isinstance(model, VisionTransformer):
        raise TypeError(f"{type(model).__name__}: only Vision Transformers are counted")
    params = flatten(model, nnx.Param)
    patches = math.prod(side // model.patch_embed.patch_size for side in image_size or model.image_size)
    tokens, width = model.num_prefix_tokens + patches, params["patch_embed.proj.bias"].size
    vectors = [(r"^patch_embed\.", patches), (r"^blocks\.", tokens), (r"", 1)]
    dense = sum(2 * first_match(vectors, path) * p.size for path, p in params.items() if path.endswith(".kernel"))
    return dense + len(model.blocks) * 4 * tokens**2 * width
