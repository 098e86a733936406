"""The implementations of attention against each other."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deit_jax.models.attention import IMPLEMENTATIONS, Attention, attention_weights, padded_attention

SHAPE = (3, 7, 2, 5)  # batch, tokens, heads, head_dim


def queries_keys_values(shape=SHAPE, dtype=jnp.float32):
    return tuple(2 * jax.random.normal(jax.random.key(i), shape, dtype) for i in range(3))


def plain(q, k, v):
    """Attention as the papers write it, left to automatic differentiation."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


@pytest.mark.parametrize("name", ["einsum", "xla"])
def test_implementations_agree_in_value_and_gradient(name):
    qkv, weights = queries_keys_values(), jax.random.normal(jax.random.key(9), SHAPE)
    expected, pullback = jax.vjp(plain, *qkv)
    out, own_pullback = jax.vjp(IMPLEMENTATIONS[name], *qkv)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for own, gradient in zip(own_pullback(weights), pullback(weights), strict=True):
        np.testing.assert_allclose(own, gradient, atol=1e-5)


@pytest.mark.parametrize("tokens", [197, 198, 577])  # of DeiT at 224 px, distilled, and at 384 px
@pytest.mark.parametrize(
    "attend", [IMPLEMENTATIONS["xla"], partial(padded_attention, implementation="xla")], ids=["xla", "padded"]
)
def test_gradients_equal_einsums_at_deits_token_counts(attend, tokens):
    """`padded` is what cudnn gets for an odd number of tokens, computed here by XLA."""
    qkv = tuple(part / 2 for part in queries_keys_values((2, tokens, 2, 8)))  # of the size that a DeiT's have
    weights = jax.random.normal(jax.random.key(9), qkv[0].shape)

    def gradients(attend):
        return jax.jit(jax.value_and_grad(lambda qkv: jnp.sum(attend(*qkv) * weights)))(qkv)

    value, grads = gradients(attend)
    expected_value, expected = gradients(IMPLEMENTATIONS["einsum"])
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for own, other in zip(grads, expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [6, 7])
def test_cudnn_sees_an_even_number_of_tokens(tokens, monkeypatch):
    """And the one that was added has no say."""
    asked = []

    def spy(q, k, v, *, implementation, **lengths):
        asked.append((implementation, q.shape[1], k.shape[1]))
        return attend(q, k, v, implementation="xla", **lengths)

    attend = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    qkv = queries_keys_values((3, tokens, 2, 5))
    np.testing.assert_allclose(IMPLEMENTATIONS["cudnn"](*qkv), plain(*qkv), atol=1e-5)
    even = tokens + tokens % 2
    assert asked == [("cudnn", even, even)]


@pytest.mark.parametrize("name", ["einsum", "xla"])
def test_bfloat16_is_as_close_as_its_eight_bits_allow(name):
    qkv = queries_keys_values(dtype=jnp.bfloat16)
    out = IMPLEMENTATIONS[name](*qkv)
    assert out.dtype == jnp.bfloat16
    exact = plain(*(part.astype(jnp.float32) for part in qkv))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=2**-8 * 4 * float(abs(exact).max()))


if jax.default_backend() == "gpu":  # which cudnn needs

    def test_cudnn_agrees():
        qkv = queries_keys_values((3, 197, 2, 64), jnp.bfloat16)
        out = jax.jit(IMPLEMENTATIONS["cudnn"])(*qkv)
        exact = plain(*(part.astype(jnp.float32) for part in qkv))
        np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


def test_weights_are_distributions_in_float32():
    q, k, _ = queries_keys_values(dtype=jnp.bfloat16)
    weights = attention_weights(100 * q, k)  # scores in the thousands: the softmax must not overflow
    assert weights.dtype == jnp.float32
    assert weights.shape == (3, 2, 7, 7)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_maps_reproduce_the_output():
    attention = Attention(10, 2, implementation="xla", dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = 30 * jax.random.normal(jax.random.key(0), (3, 7, 10))
    values = jnp.split(attention.qkv(x), 3, axis=-1)[2].reshape(3, 7, 2, 5)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", attention.maps(x), values).reshape(3, 7, 10)
    np.testing.assert_allclose(attention.proj(mixed), attention(x), atol=1e-5)


@pytest.mark.parametrize(
    ("width", "implementation", "message"),
    [
        (10, "flash", "attention 'flash' is none of einsum, xla, cudnn"),
        (11, "einsum", "width 11 is not divisible by heads 2"),
        (40, "cudnn", "takes heads of 8, 16, ... 128 channels, and width 40 over 2 heads has 20; take xla"),
        (272, "cudnn", "width 272 over 2 heads has 136; take xla"),
    ],
)
def test_contradictions_are_refused(width, implementation, message):
    with pytest.raises(ValueError, match=message):
        Attention(width, 2, implementation=implementation, dtype=jnp.float32, rngs=nnx.Rngs(0))
