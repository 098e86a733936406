"""Patch embedding, activation, initialisation and stochastic depth."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deit_jax.models.layers import (
    LayerNorm,
    LayerScale,
    Linear,
    PatchEmbedding,
    affine,
    convolve_patches,
    drop_path,
    drop_path_rates,
    drop_path_scales,
    gelu,
)


def test_both_patch_embeddings_agree():
    """Over the same parameters, in value and in gradient, on an image that is not square."""
    images = jax.random.normal(jax.random.key(0), (2, 15, 21, 3))
    weights = jax.random.normal(jax.random.key(1), (2, 5 * 7, 11))

    def tokens_and_gradient(form):
        embed = PatchEmbedding(3, 11, form=form, dtype=jnp.float32, rngs=nnx.Rngs(0))
        graphdef, state = nnx.split(embed)
        tokens, pullback = jax.vjp(lambda state: nnx.merge(graphdef, state)(images), state)
        return tokens, *jax.tree.leaves(pullback(weights))

    for conv, unfolded in zip(tokens_and_gradient("conv"), tokens_and_gradient("linear"), strict=True):
        np.testing.assert_allclose(conv, unfolded, rtol=1e-5, atol=1e-5)


def test_gelu_is_exact():
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    exact = [v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(np.float64)]
    np.testing.assert_allclose(gelu(jax.device_put(x)), exact, atol=1e-6)
    slope = [(1 + math.erf(v / math.sqrt(2))) / 2 + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi) for v in x]
    np.testing.assert_allclose(jax.vmap(jax.grad(gelu))(jax.device_put(x)), slope, atol=1e-6)


def test_initialisation_is_facebooks():
    """Dense weights N(0, 0.02^2), uncut; biases 0; the patch embedding uniform in +-1/sqrt(fan_in), its bias too."""
    dense = Linear(101, 1009, rngs=nnx.Rngs(0))
    kernel = np.asarray(dense.kernel[...])
    assert kernel.std() == pytest.approx(0.02, rel=0.01)
    assert abs(kernel.mean()) < 3e-4
    assert 4 < abs(kernel).max() / 0.02 < 6
    assert not dense.bias[...].any()

    proj = PatchEmbedding(7, 211, form="linear", dtype=jnp.float32, rngs=nnx.Rngs(0)).proj
    bound = 1 / math.sqrt(3 * 7 * 7)
    for value in (np.asarray(proj.kernel[...]), np.asarray(proj.bias[...])):
        assert 0.95 * bound < abs(value).max() <= bound
        assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)

    norm = LayerNorm(7, rngs=nnx.Rngs(0))
    assert (norm.scale[...] == 1).all()
    assert not norm.bias[...].any()


def test_layer_scale_rounds_once_in_bfloat16():
    """11 / 0.7 = 15.71 is nearest to 15.6875; with 1 / 0.7 rounded first it would be 15.75."""
    scale = LayerScale(3, 1e-6)
    assert scale.gamma[...].dtype == jnp.float32
    np.testing.assert_array_equal(scale.gamma[...], np.full(3, 1e-6, np.float32))
    scale.gamma[...] = jnp.array([1 / 0.7, 1e-6, 0.0])
    scaled = scale(jnp.full((2, 1, 3), 11, jnp.bfloat16))
    assert scaled.dtype == jnp.bfloat16
    expected = [15.6875, float(jnp.bfloat16(1.1e-5)), 0.0]
    assert scaled.tolist() == [[expected], [expected]]


@pytest.mark.parametrize("size", [(8, 12), (11, 13)])
def test_patches_convolved_have_the_gradients_of_the_convolution(size):
    """Of images, too, and where the last rows and columns are no whole patch."""
    shapes = [(5, *size, 3), (4, 4, 3, 7), (7,)]
    given = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]

    def plain(images, kernel, bias):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, (4, 4), "VALID", dimension_numbers=numbers) + bias

    expected, pull = jax.vjp(plain, *given)
    found, pull_ours = jax.vjp(convolve_patches, *given)
    np.testing.assert_array_equal(found, expected)
    for ours, theirs in zip(pull_ours(expected), pull(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_gradients_of_patches_are_summed_in_float32():
    """The images are 1, and 1,025 gradients are: a number that bfloat16 does not have."""
    images, kernel, bias = jnp.ones((1025, 2, 2, 3), jnp.bfloat16), jnp.zeros((2, 2, 3, 1)), jnp.zeros(1)
    out, pull = jax.vjp(convolve_patches, images, kernel, bias)
    for gradient in pull(jnp.ones_like(out))[1:]:
        assert (gradient.dtype, set(gradient.ravel().tolist())) == (jnp.float32, {1025.0})


@pytest.mark.parametrize("types", list(itertools.product([jnp.float32, jnp.bfloat16], repeat=2)), ids=str)
def test_patches_and_their_kernel_may_be_of_different_types(types):
    images, kernel = jnp.ones((2, 4, 4, 3), types[0]), jnp.ones((2, 2, 3, 5), types[1])
    out, pull = jax.vjp(convolve_patches, images, kernel, jnp.ones(5, types[1]))
    assert out.dtype == types[0]
    assert [gradient.dtype for gradient in pull(out)] == [types[0], types[1], types[1]]


def test_drop_path_grows_linearly_or_is_constant():
    assert drop_path_rates(0.5, 3, "linear") == (0.0, 0.25, 0.5)
    assert drop_path_rates(0.3, 1, "linear") == (0.0,)
    assert drop_path_rates(0.3, 2, "constant") == (0.3, 0.3)


def test_drop_path_scales_have_the_right_rates_and_mean():
    rates = (0.0, 0.1, 0.4)
    scales = np.asarray(drop_path_scales(rates, 5003, jax.random.key(0)))
    assert scales.shape == (3, 2, 5003)
    for rate, of_block in zip(rates, scales, strict=True):
        kept = of_block != 0
        assert kept.mean() == pytest.approx(1 - rate, abs=0.02)
        np.testing.assert_allclose(of_block[kept], 1 / (1 - rate), rtol=1e-6)
        if rate:
            assert np.corrcoef(of_block)[0, 1] == pytest.approx(0, abs=0.05)  # the two branches are independent


def test_drop_path_of_an_example_follows_from_its_key():
    keys = jax.random.split(jax.random.key(3), 7)
    scales = drop_path_scales((0.3, 0.5), 7, keys)
    np.testing.assert_array_equal(drop_path_scales((0.3, 0.5), 7, jax.random.key(3)), scales)
    np.testing.assert_array_equal(drop_path_scales((0.3, 0.5), 7, jax.random.PRNGKey(3)), scales)
    np.testing.assert_array_equal(drop_path_scales((0.3, 0.5), 2, keys[jnp.array([4, 1])]), scales[..., [4, 1]])


def test_drop_path_rounds_once_in_bfloat16():
    """11 / 0.7 = 15.71 is nearest to 15.6875; with 1 / 0.7 rounded first it would be 15.75."""
    x = jnp.full((2, 1, 1), 11, jnp.bfloat16)
    scaled = drop_path(x, jnp.array([0.0, 1 / 0.7], jnp.float32))
    assert scaled.dtype == jnp.bfloat16
    assert scaled.ravel().tolist() == [0.0, 15.6875]
    assert drop_path(x, None) is x


@pytest.mark.parametrize("kernel_dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_a_bfloat16_product_are_made_in_the_kernels_type(kernel_dtype):
    """In float32 they are not rounded before devices sum them; x and the products' inputs are rounded as ever."""
    random = np.random.default_rng(0)
    x, kernel, bias, weights = (
        jnp.asarray(random.normal(size=shape), dtype)
        for shape, dtype in (
            ((5, 7, 11), jnp.bfloat16),
            ((11, 3), kernel_dtype),
            (3, kernel_dtype),
            ((5, 7, 3), jnp.bfloat16),
        )
    )

    @jax.jit
    def gradients(x, kernel, bias):
        return jax.grad(lambda *of: jnp.sum(affine(*of, jnp.dtype(jnp.bfloat16)) * weights), (0, 1, 2))(x, kernel, bias)

    to_x, to_kernel, to_bias = gradients(x, kernel, bias)
    assert (to_x.dtype, to_kernel.dtype, to_bias.dtype) == (jnp.bfloat16, kernel_dtype, kernel_dtype)
    exact = {"x": x, "weights": weights, "kernel": kernel.astype(jnp.bfloat16)}
    exact = {name: np.asarray(value, np.float64) for name, value in exact.items()}
    close = {"rtol": 1e-6, "atol": 1e-5} if kernel_dtype == jnp.float32 else {"rtol": 2**-7, "atol": 2**-7}
    np.testing.assert_allclose(to_kernel, np.einsum("bti,bto->io", exact["x"], exact["weights"]), **close)
    np.testing.assert_allclose(to_bias, exact["weights"].sum((0, 1)), **close)
    by_x = np.einsum("bto,io->bti", exact["weights"], exact["kernel"])
    np.testing.assert_allclose(to_x.astype(jnp.float32), by_x, rtol=2**-7, atol=2**-7)
