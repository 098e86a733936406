"""Multi-head self-attention in three interchangeable implementations."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from deit_jax.models.layers import DType, Linear, affine

Queries = Float[Array, "batch queries heads head_dim"]
KeyHeads = Float[Array, "batch keys heads head_dim"]


class Attention(nnx.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    `implementation` is "einsum" (this file's own, for every device), or "xla" or "cudnn" as in
    `jax.nn.dot_product_attention` (cudnn: NVIDIA GPUs, bfloat16 only). All take the softmax in float32.
    """

    def __init__(self, width: int, heads: int, *, implementation: str, dtype: DType, rngs: nnx.Rngs):
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"attention {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads {heads}")
        if implementation == "cudnn" and (width // heads % 8 or width // heads > 128):
            raise ValueError(
                f"attention cudnn takes heads of 8, 16, ... 128 channels, and width {width} over {heads} heads has "
                f"{width // heads}; take xla"
            )
        self.qkv = Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.proj = Linear(width, width, dtype=dtype, rngs=rngs)
        self.heads = heads
        self.implementation = implementation

    def __call__(
        self, x: Float[Array, "batch tokens dim"], first: int | None = None
    ) -> Float[Array, "batch queries dim"]:
        """The result for all tokens, or for the `first` ones only."""
        q, k, v = self._queries_keys_values(x, first)
        # With a query or two there is nothing for a fused kernel to save, and not every one takes them.
        attend = einsum_attention if first else IMPLEMENTATIONS[self.implementation]
        out = attend(q, k, v)
        return self.proj(out.reshape(*out.shape[:2], -1))

    def maps(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch heads tokens tokens"]:
        """The attention weights in float32: row q is the distribution of query q over the keys."""
        q, k, _ = self._queries_keys_values(x)
        return attention_weights(q, k)

    def _queries_keys_values(
        self, x: Float[Array, "batch tokens dim"], first: int | None = None
    ) -> list[Float[Array, "batch _ heads head_dim"]]:
        """Those of all tokens; queries of the `first` ones only."""
        # Three products: a mesh that cuts proj's rows cuts each by heads then, and moves weights alone. TPUs also take
        # 0.9 of the time for them that they take for one product and its splitting.
        # Split, not indexed: the gradient is one concatenation instead of a sum of three padded arrays.
        kernels, biases = (jnp.split(whole[...], 3, axis=-1) for whole in (self.qkv.kernel, self.qkv.bias))
        parts = zip((x[:, :first], x, x), kernels, biases, strict=True)
        made = [affine(tokens, kernel, bias, self.qkv.dtype) for tokens, kernel, bias in parts]
        return [part.reshape(*part.shape[:2], self.heads, -1) for part in made]


def attention_weights(q: Queries, k: KeyHeads) -> Float[Array, "batch heads queries keys"]:
    """softmax(q k^T / sqrt(head_dim)) in float32."""
    weights, total = _unnormalized_weights(q, k)
    return weights / total[..., None]


def einsum_attention(q: Queries, k: KeyHeads, v: KeyHeads) -> Queries:
    """softmax(q k^T / sqrt(head_dim)) v, divided by the softmax's sum last.

    The output is smaller than the weights by tokens / head_dim, and so is what the division and its gradient pass over.
    """
    weights, total = _unnormalized_weights(q, k)
    out = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / total.swapaxes(1, 2)[..., None]).astype(v.dtype)


def _unnormalized_weights(
    q: Queries, k: KeyHeads
) -> tuple[Float[Array, "batch heads queries keys"], Float[Array, "batch heads queries"]]:
    """exp(score - largest score of the row) in float32, and the sum of each row."""
    q = q * (1 / math.sqrt(q.shape[-1]))  # rather than the scores, which are larger by tokens / head_dim
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    return weights, weights.sum(axis=-1)


def padded_attention(q: Queries, k: KeyHeads, v: KeyHeads, *, implementation: str) -> Queries:
    """`jax.nn.dot_product_attention` for as many queries as keys, of one token more than there are.

    That one is masked, as a key and as a query, and cut off: results and gradients are those of the tokens alone.
    """
    tokens = q.shape[1]
    lengths = jnp.full(len(q), tokens, jnp.int32)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    attend = partial(jax.nn.dot_product_attention, implementation=implementation)
    return attend(q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths)[:, :tokens]


def cudnn_attention(q: Queries, k: KeyHeads, v: KeyHeads) -> Queries:
    """cuDNN's, which trains even numbers of tokens only: an odd one, such as 197, gets a masked token more."""
    if q.shape[1] % 2:
        return padded_attention(q, k, v, implementation="cudnn")
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


IMPLEMENTATIONS: dict[str, Callable[[Queries, KeyHeads, KeyHeads], Queries]] = {
    "einsum": einsum_attention,
    "xla": partial(jax.nn.dot_product_attention, implementation="xla"),
    "cudnn": cudnn_attention,
}
