"""Floating-point operations of a network, by the usual formula or as its forward pass has them."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from deit_jax.base.rules import first_match
from deit_jax.models.params import bind, flatten
from deit_jax.models.vit import VisionTransformer


def training_flops(model: Any, image_size: tuple[int, int] | None = None) -> int:
    """As `forward_flops`, of a training step: a backward pass costs two forward ones, as it is usually counted."""
    return 3 * forward_flops(model, image_size)


def forward_flops(model: Any, image_size: tuple[int, int] | None = None) -> int:
    """Floating-point operations of one image's forward pass, two for a multiply-add: products and convolutions.

    Of a Vision Transformer, per block of width D on N tokens, 24 N D^2 in the dense layers and 4 N^2 D in attention
    (papers and timm count multiply-adds: half of this). It is the usual count, in full for the last block too, which
    computes the class and distillation tokens alone: about 6 % less work than this at depth 12. Of other networks,
    `product_flops` of the forward pass.

    Args:
        image_size: height and width of the image in pixels (None: those that the model takes).
    """
    size = image_size or model.image_size
    if not isinstance(model, VisionTransformer):

        def logits(variables: Any, images: Any) -> Any:
            bound = bind(model, variables)
            bound.set_input_size(size)
            return bound.head_logits(images)

        return product_flops(logits, flatten(model), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    params = flatten(model, nnx.Param)
    patches = math.prod(side // model.patch_embed.patch_size for side in size)
    tokens, width = model.num_prefix_tokens + patches, params["patch_embed.proj.bias"].size
    vectors = [(r"^patch_embed\.", patches), (r"^blocks\.", tokens), (r"", 1)]
    dense = sum(2 * first_match(vectors, path) * p.size for path, p in params.items() if path.endswith(".kernel"))
    return dense + len(model.blocks) * 4 * tokens**2 * width


def product_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Floating-point operations in the matrix products and convolutions of a function, two for a multiply-add.

    What is padded with zeros counts like all else; of branches, the most expensive one.

    Args:
        arguments: arrays or shapes, of which nothing is computed.
    """
    return _flops_of(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops_of(jaxpr: Jaxpr) -> int:
    return sum(_flops(equation) for equation in jaxpr.eqns)


def _flops(equation: JaxprEqn) -> int:
    shapes: list[Any] = [variable.aval for variable in (*equation.invars, *equation.outvars)]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left, _, out = shapes
        return 2 * out.size * math.prod(left.shape[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        outputs = equation.params["dimension_numbers"].rhs_spec[0]
        _, kernel, out = shapes
        return 2 * out.size * kernel.size // kernel.shape[outputs]
    inner = [_flops_of(jaxpr) for value in equation.params.values() for jaxpr in _jaxprs(value)]
    if equation.primitive.name == "cond":
        return max(inner)
    return equation.params.get("length", 1) * sum(inner)  # of a scan


def _jaxprs(value: Any) -> list[Jaxpr]:
    """The functions that a parameter of an equation is, or holds."""
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    return [jaxpr for each in value for jaxpr in _jaxprs(each)] if isinstance(value, tuple | list) else []
