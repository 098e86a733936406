"""The parts of a Vision Transformer around its attention: patch embedding, MLP, stochastic depth."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike as DType
from jaxtyping import Array, Float

# torch's trunc_normal_(std=0.02) cuts at +-2 absolute, a hundred sigma away: it is a plain normal distribution.
weight_init = nnx.initializers.normal(0.02)


def linear(inputs: int, outputs: int, *, dtype: DType = jnp.float32, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer with DeiT's initialisation: weights N(0, 0.02^2), biases 0."""
    return nnx.Linear(inputs, outputs, kernel_init=weight_init, dtype=dtype, rngs=rngs)


def layer_norm(width: int, *, dtype: DType = jnp.float32, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer normalisation with epsilon 1e-6; statistics in float32, the result in `dtype`."""
    return nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, dtype=dtype, rngs=rngs)


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
        self.dtype = dtype

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch tokens dim"]:
        """Tokens in row-major order of the patches."""
        batch, height, width, _ = images.shape
        if self.form == "conv":
            return self.proj(images).reshape(batch, -1, self.proj.out_features)
        p = self.patch_size
        patches = images.astype(self.dtype).reshape(batch, height // p, p, width // p, p, 3).swapaxes(2, 3)
        patches = patches.reshape(batch, -1, p * p * 3)
        kernel, bias = self.proj.kernel[...].astype(self.dtype), jnp.asarray(self.proj.bias, self.dtype)
        return patches @ kernel.reshape(p * p * 3, -1) + bias


class Mlp(nnx.Module):
    """Two dense layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int, *, dtype: DType, rngs: nnx.Rngs):
        self.fc1 = linear(width, hidden, dtype=dtype, rngs=rngs)
        self.fc2 = linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        return self.fc2(gelu(self.fc1(x)))


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution function of x (arXiv:1606.08415), exact, computed in float32.

    By erf, as torch does; `jax.nn.gelu` goes by erfc, which takes four times as long on CPU.
    """
    x32 = x.astype(jnp.float32)
    return (0.5 * x32 * (1 + jax.lax.erf(x32 * math.sqrt(0.5)))).astype(x.dtype)


def drop_path_scales(rates: Sequence[float], batch: int, key: Array) -> Float[Array, "depth 2 batch"]:
    """Stochastic depth (arXiv:1603.09382): what each example's branches are multiplied by, for every block.

    0 with probability `rate`, else 1 / (1 - rate), independent for each block, branch and example.
    """
    keep = 1 - jnp.asarray(rates, jnp.float32)[:, None, None]
    return jax.random.bernoulli(key, keep, (len(rates), 2, batch)) / keep


def drop_path(
    x: Float[Array, "batch tokens dim"], scale: Float[Array, " batch"] | None
) -> Float[Array, "batch tokens dim"]:
    """Each example of a branch times its scale; `x` itself for None.

    In float32: rounded to bfloat16, 1 / (1 - rate) would bias every branch by up to 0.4 %.
    """
    if scale is None:
        return x
    return (x.astype(jnp.float32) * scale[:, None, None]).astype(x.dtype)
