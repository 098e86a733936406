"""Batch normalisation, initial weights and stochastic depth of the convolutional networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from deit_jax.models import bind, flatten
from deit_jax.models.convolution import (
    BatchNorm,
    Convolution,
    SqueezeExcitation,
    convolve,
    grouped_convolve,
    residual,
)

X = jnp.asarray(np.random.default_rng(0).normal(3, 2, (8, 3, 5, 7)), jnp.float32)
VARIABLES = {
    name: jnp.asarray(np.random.default_rng(i).uniform(0.5, 2, 7), jnp.float32)
    for i, name in enumerate(("scale", "bias", "mean", "var"))
}


def norm(**options):
    return bind(nnx.eval_shape(lambda: BatchNorm(7, **options)), VARIABLES)


def by_hand(x, mean, var, eps):
    x, mean, var, scale, bias = (np.float64(v) for v in (x, mean, var, VARIABLES["scale"], VARIABLES["bias"]))
    return (x - mean) / np.sqrt(var + eps) * scale + bias


def test_evaluation_normalises_with_what_is_stored():
    bn = norm(eps=0.1)
    expected = by_hand(X, VARIABLES["mean"], VARIABLES["var"], 0.1)
    np.testing.assert_allclose(bn(X, train=False), expected, rtol=1e-5, atol=1e-6)
    for name, value in flatten(bn).items():
        np.testing.assert_array_equal(value, VARIABLES[name])


def test_training_normalises_with_the_batch_and_stores_the_unbiased_variance():
    bn, x = norm(momentum=0.25), np.float64(X)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    np.testing.assert_allclose(bn(X, train=True), by_hand(X, mean, var, 1e-5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bn.mean[...], 0.75 * VARIABLES["mean"] + 0.25 * mean, rtol=1e-6)
    np.testing.assert_allclose(bn.var[...], 0.75 * VARIABLES["var"] + 0.25 * var * 120 / 119, rtol=1e-6)
    np.testing.assert_array_equal(bn.scale[...], VARIABLES["scale"])


def test_a_far_mean_costs_no_precision():
    x = X + 4096
    out = norm()(x, train=True)
    np.testing.assert_allclose(
        out, by_hand(x, np.float64(x).mean((0, 1, 2)), np.float64(x).var((0, 1, 2)), 1e-5), atol=2e-3
    )


def test_statistics_are_those_of_the_global_batch():
    sharding = NamedSharding(jax.make_mesh((8,), ("data",)), PartitionSpec("data"))
    outline = nnx.eval_shape(lambda: BatchNorm(7))

    @jax.jit
    def run(x):
        bn = bind(outline, VARIABLES)
        return bn(x, train=True), flatten(bn, nnx.BatchStat)

    for ours, whole in zip(jax.tree.leaves(run(jax.device_put(X, sharding))), jax.tree.leaves(run(X)), strict=True):
        np.testing.assert_allclose(ours, whole, rtol=1e-5, atol=1e-6)


def test_bfloat16_has_float32_statistics():
    bn, exact = norm(dtype="bfloat16"), norm()
    x = jnp.asarray(X, jnp.bfloat16)
    out = bn(x, train=True)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, exact(x.astype(jnp.float32), train=True).astype(jnp.bfloat16))
    for name in ("mean", "var"):
        np.testing.assert_array_equal(flatten(bn)[name], flatten(exact)[name])


def test_gradients_pass_through_the_statistics():
    """Normalised values sum to nothing, whatever the input: so does its gradient."""
    weights = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    gradient = jax.grad(lambda x: jnp.sum(weights * norm()(x, train=True)))(X)
    np.testing.assert_allclose(gradient.sum((0, 1, 2)), 0, atol=2e-4)
    np.testing.assert_allclose((gradient * X).sum((0, 1, 2)), 0, atol=2e-3)
    assert abs(gradient).max() > 0.1


@pytest.mark.parametrize("groups", [1, 5])
def test_initial_weights_of_a_convolution(groups):
    conv = Convolution(10, 205, 3, groups=groups, dtype="float32", rngs=nnx.Rngs(0))
    assert conv.kernel.shape == (3, 3, 10 // groups, 205)
    assert conv.bias is None
    deviation = np.sqrt(2 / (9 * 205 / groups))
    np.testing.assert_allclose(np.std(conv.kernel[...]), deviation, rtol=0.04)


@pytest.mark.parametrize(("size", "same"), [(3, 1), (3, 0), (5, 1), (7, 0)])
def test_a_strided_convolution_halves_the_image_rounding_up(size, same):
    conv = Convolution(3, 2, size, stride=2, same=bool(same), dtype="float32", rngs=nnx.Rngs(0))
    assert conv(jnp.ones((1, 13, 22, 3))).shape == (1, 7, 11, 2)


@pytest.mark.parametrize("padding", [((1, 1), (1, 1)), ((0, 1), (1, 2))], ids=str)
@pytest.mark.parametrize(("stride", "groups"), [(1, 5), (2, 5), (2, 15)])
def test_gradients_of_a_grouped_convolution_are_its_own(stride, groups, padding):
    """On CPU those of the kernel take another way. Sizes that leave pixels over at the far edge of a stride."""
    x, kernel = jax.random.normal(jax.random.key(0), (2, 7, 10, 15)), jnp.arange(27 * 150 / groups)
    kernel = jnp.sin(kernel).reshape(3, 3, 15 // groups, 30)
    weights = jnp.cos(jnp.arange(2 * 7 * 11 * 30.0)).reshape(2, 7, 11, 30)

    def loss(apply, x, kernel):
        out = apply(x, kernel, stride, padding, groups)
        return jnp.sum(weights[:, : out.shape[1], : out.shape[2]] * out)

    for ours, native in zip(
        jax.jit(jax.grad(lambda *given: loss(grouped_convolve, *given), (0, 1)))(x, kernel),
        jax.jit(jax.grad(lambda *given: loss(convolve, *given), (0, 1)))(x, kernel),
        strict=True,
    ):
        np.testing.assert_allclose(ours, native, rtol=0, atol=1e-5 * abs(native).max())


def test_squeeze_excitation_weighs_channels_by_their_means():
    se = SqueezeExcitation(7, 3, dtype="float32", rngs=nnx.Rngs(0))
    hidden = np.maximum(X.mean((1, 2)) @ se.fc1.kernel[0, 0] + se.fc1.bias[...], 0)
    weights = 1 / (1 + np.exp(-(hidden @ se.fc2.kernel[0, 0] + se.fc2.bias[...])))
    np.testing.assert_allclose(se(X), X * weights[:, None, None], rtol=1e-5)


def test_a_residual_scales_each_examples_branch():
    scale = jnp.array([0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    out = residual(X, 10 * X, scale)
    np.testing.assert_allclose(out, X * (1 + 10 * scale)[:, None, None, None], rtol=1e-6)
    np.testing.assert_array_equal(residual(X, X, None), 2 * X)
