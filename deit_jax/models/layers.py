"""The parts of a Vision Transformer around its attention: patch embedding, MLP, stochastic depth."""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike as DType
from jaxtyping import Array, Float

# torch's trunc_normal_(std=0.02) cuts at +-2 absolute, a hundred sigma away: it is a plain normal distribution.
weight_init = nnx.initializers.normal(0.02)


class Linear(nnx.Module):
    """A dense layer over the last axis; initial weights N(0, 0.02^2), biases 0."""

    def __init__(self, inputs: int, outputs: int, *, dtype: DType = jnp.float32, rngs: nnx.Rngs):
        self.kernel = nnx.Param(weight_init(rngs.params(), (inputs, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return affine(x, self.kernel[...], self.bias[...], self.dtype)


def affine(
    x: Float[Array, "*batch inputs"],
    kernel: Float[Array, "inputs outputs"],
    bias: Float[Array, " outputs"],
    dtype: jnp.dtype,
) -> Float[Array, "*batch outputs"]:
    """x kernel + bias, computed in `dtype`; the gradients of kernel and bias are made in the types that these have."""
    if dtype != jnp.float32:
        return _mixed_affine(x.astype(dtype), kernel, bias)
    # As one matrix: for more axes, XLA's CPU backend computes the kernel's gradient from a transposed copy of the
    # output's, and a training step takes twice as long.
    rows = x.reshape(-1, x.shape[-1]).astype(dtype)
    return (rows @ kernel.astype(dtype) + bias.astype(dtype)).reshape(*x.shape[:-1], -1)


# By itself, JAX would make the gradient of a float32 kernel in bfloat16 here and cast it afterwards: rounded before it
# is summed over the devices. x keeps its axes: TPUs hold tokens in tiles, and move them all to make rows of images.
@jax.custom_vjp
def _mixed_affine(
    x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"], bias: Float[Array, " outputs"]
) -> Float[Array, "*batch outputs"]:
    return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


def _mixed_forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return _mixed_affine(x, kernel, bias), (x, kernel, bias)


def _mixed_backward(kept: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    x, kernel, bias = kept
    batch = tuple(range(x.ndim - 1))
    to_kernel = jnp.tensordot(x, gradient, (batch, batch), preferred_element_type=kernel.dtype)
    to_bias = jnp.sum(gradient, axis=batch, dtype=jnp.float32).astype(bias.dtype)
    return gradient @ kernel.astype(gradient.dtype).T, to_kernel, to_bias


_mixed_affine.defvjp(_mixed_forward, _mixed_backward)


class LayerNorm(nnx.Module):
    """Layer normalisation (arXiv:1607.06450) over the last axis; statistics in float32."""

    def __init__(self, width: int, *, eps: float = 1e-6, dtype: DType = jnp.float32, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(width, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(width, jnp.float32))
        self.eps = eps
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return normalize(x, self.scale[...], self.bias[...], self.eps).astype(self.dtype)


class LayerScale(nnx.Module):
    """One learned factor per channel (arXiv:2103.17239, equation 4), all `initial` at first."""

    def __init__(self, width: int, initial: float):
        self.gamma = nnx.Param(jnp.full(width, initial, jnp.float32))

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        """In float32: a factor rounded to bfloat16 would be off by up to 0.4 %, for every token alike."""
        return (x.astype(jnp.float32) * self.gamma[...]).astype(x.dtype)


# Checkpointed, as is `gelu`: the backward pass keeps the input alone. XLA would else merge the kept intermediates into
# every loop that reads them and compute them over and over: on CPU a step took 1.4 times as long.
@partial(jax.checkpoint, static_argnums=3)
def normalize(
    x: Float[Array, "*batch dim"], scale: Float[Array, " dim"], bias: Float[Array, " dim"], eps: float
) -> Float[Array, "*batch dim"]:
    """Mean 0 and variance 1 over the last axis, then scaled and shifted; in float32. `eps` is added to the variance."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * scale + bias


@jax.checkpoint
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution function of x (arXiv:1606.08415), exact, computed in float32.

    By erf, as torch does; `jax.nn.gelu` goes by erfc, which takes twice as long on CPU.
    """
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * math.sqrt(0.5)))).astype(x.dtype)


class PatchEmbedding(nnx.Module):
    """Cuts images into patches without overlap and projects each to a token.

    Both forms in use share the parameters `proj.kernel` `[patch, patch, 3, width]` and `proj.bias`: a convolution whose
    stride is its size (`form="conv"`), and unfolding followed by one dense layer (`form="linear"`).
    """

    def __init__(self, patch_size: int, width: int, *, form: str, dtype: DType, rngs: nnx.Rngs):
        if form not in ("conv", "linear"):
            raise ValueError(f"patch_embedding {form!r} is none of conv, linear")
        bound = 1 / math.sqrt(3 * patch_size**2)  # torch's default for a convolution, which DeiT leaves untouched

        def uniform(key: Array, shape: tuple[int, ...], dtype: DType) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        patch = (patch_size, patch_size)
        self.proj = nnx.Conv(
            3, width, patch, patch, padding="VALID", kernel_init=uniform, bias_init=uniform, dtype=dtype, rngs=rngs
        )
        self.patch_size = patch_size
        self.form = form
        self.dtype = jnp.dtype(dtype)

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens dim"]:
        """Tokens in row-major order of the patches."""
        batch, height, width, _ = images.shape
        kernel, bias = self.proj.kernel[...], jnp.asarray(self.proj.bias)
        if self.form == "conv":
            return convolve_patches(images.astype(self.dtype), kernel, bias).reshape(batch, -1, len(bias))
        p = self.patch_size
        patches = images.reshape(batch, height // p, p, width // p, p, 3).swapaxes(2, 3).reshape(batch, -1, p * p * 3)
        return affine(patches, kernel.reshape(p * p * 3, -1), bias, self.dtype)


# As `_mixed_affine`: the gradients of kernel and bias are made in the types that these have, which the images have not.
@jax.custom_vjp
def convolve_patches(
    images: Float[Array, "batch height width channels"],
    kernel: Float[Array, "patch patch channels dim"],
    bias: Float[Array, " dim"],
) -> Float[Array, "batch rows columns dim"]:
    """A convolution whose stride is its kernel's size, in the type of the images."""
    return _convolve_patches(images, kernel) + bias.astype(images.dtype)


def _convolve_patches(images: Array, kernel: Array) -> Array:
    strides, kernel = kernel.shape[:2], kernel.astype(images.dtype)
    return jax.lax.conv_general_dilated(images, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _patches_forward(images: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return convolve_patches(images, kernel, bias), (images, kernel, bias)


def _patches_backward(kept: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array, Array]:
    images, kernel, bias = kept
    (to_images,) = jax.vjp(lambda images: _convolve_patches(images, kernel), images)[1](gradient)
    # A convolution over images, which are the channels here, with the gradient's rows and columns a patch apart. What
    # no patch covers is cut off.
    height, width = (patches * side for patches, side in zip(gradient.shape[1:3], kernel.shape[:2], strict=True))
    to_kernel = jax.lax.conv_general_dilated(
        images[:, :height, :width],
        gradient,
        (1, 1),
        "VALID",
        rhs_dilation=kernel.shape[:2],
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=jnp.promote_types(images.dtype, kernel.dtype),
    ).astype(kernel.dtype)
    return to_images, to_kernel, jnp.sum(gradient, axis=(0, 1, 2), dtype=jnp.float32).astype(bias.dtype)


convolve_patches.defvjp(_patches_forward, _patches_backward)


class Mlp(nnx.Module):
    """Two dense layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int, *, dtype: DType, rngs: nnx.Rngs):
        self.fc1 = Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.fc2(gelu(self.fc1(x)))


def drop_path_rates(rate: float, depth: int, schedule: str) -> tuple[float, ...]:
    """The stochastic depth rate of each block.

    "linear" grows from 0 at the first block to `rate` at the last (arXiv:1603.09382), "constant" is `rate`
    for all (arXiv:2204.07118, section 3).
    """
    if not 0 <= rate < 1:
        raise ValueError(f"drop_path {rate} is not in [0, 1)")
    if schedule not in ("linear", "constant"):
        raise ValueError(f"drop_path_schedule {schedule!r} is none of linear, constant")
    return tuple(np.linspace(rate if schedule == "constant" else 0, rate, depth).tolist())


def drop_path_scales(
    rates: Sequence[float], batch: int, key: Array, branches: int = 2
) -> Float[Array, "depth branches batch"]:
    """Stochastic depth (arXiv:1603.09382): what each example's branches are multiplied by, for every block.

    0 with probability `rate`, else 1 / (1 - rate), independent for each block, branch and example.

    Args:
        key: one to draw all from, or `[batch]`, from each what is drawn for an example.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):  # of jax.random.PRNGKey
        key = jax.random.wrap_key_data(key)
    keys = key if key.ndim else jax.random.split(key, batch)
    keep = 1 - jnp.asarray(rates, jnp.float32)[:, None]
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, (len(rates), branches)), out_axes=-1)(keys)
    return kept / keep[..., None]


def drop_path(
    x: Float[Array, "batch tokens dim"], scale: Float[Array, " batch"] | None
) -> Float[Array, "batch tokens dim"]:
    """Each example of a branch times its scale; `x` itself for None.

    In float32: rounded to bfloat16, 1 / (1 - rate) would bias every branch by up to 0.4 %.
    """
    if scale is None:
        return x
    return (x.astype(jnp.float32) * scale[:, None, None]).astype(x.dtype)
