import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.losses import binary_cross_entropy, cross_entropy

LOSSES = {
    "cross_entropy": cross_entropy,
    "bce": binary_cross_entropy,
    "bce_binarized": lambda logits, targets: binary_cross_entropy(logits, targets, binarize=True),
}


def example(batch: int = 5, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (batch, classes)).astype(np.float32)
    targets = random.dirichlet(np.full(classes, 0.3), batch).astype(np.float32)
    targets[:, 2] = 0  # binarizing must tell a class that is absent
    return logits, targets


def cross_entropy_64(logits: np.ndarray, targets: np.ndarray) -> float:
    z = logits.astype(np.float64)
    return -np.mean(np.sum(targets * (z - np.log(np.exp(z).sum(axis=1, keepdims=True))), axis=1))


def binary_64(logits: np.ndarray, targets: np.ndarray) -> float:
    present = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -np.mean(targets * np.log(present) + (1 - targets) * np.log(1 - present))


def test_cross_entropy_by_hand():
    # Softmax of (0, log 2, log 5) is (1, 2, 5) / 8.
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [5.0, 2.0, 1.0]]))
    one_hot = jnp.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert cross_entropy(logits, one_hot) == pytest.approx((math.log(8 / 5) + math.log(4)) / 2, rel=1e-6)
    mixed = jnp.array([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]])
    by_hand = (0.25 * math.log(8) + 0.75 * math.log(8 / 5) + math.log(4)) / 2
    assert cross_entropy(logits, mixed) == pytest.approx(by_hand, rel=1e-6)


def test_binary_cross_entropy_by_hand():
    # Sigmoid of log 3 is 3/4, of 0 is 1/2.
    logits = jnp.array([[math.log(3), 0.0, -math.log(3)]])
    soft = jnp.array([[1.0, 0.5, 0.1]])
    by_hand = -(math.log(3 / 4) + math.log(1 / 2) + 0.1 * math.log(1 / 4) + 0.9 * math.log(3 / 4)) / 3
    assert binary_cross_entropy(logits, soft) == pytest.approx(by_hand, rel=1e-6)
    by_hand = -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 3
    assert binary_cross_entropy(logits, soft, binarize=True) == pytest.approx(by_hand, rel=1e-6)


def test_binarizing_leaves_absent_classes_absent():
    logits = jnp.array([[2.0, -1.0, 0.5]])
    targets = jnp.array([[0.3, 0.0, 1e-7]])
    ones = jnp.array([[1.0, 0.0, 1.0]])
    assert binary_cross_entropy(logits, targets, binarize=True) == binary_cross_entropy(logits, ones)


def test_losses_equal_their_formulas_in_float64():
    logits, targets = example()
    assert cross_entropy(jnp.array(logits), jnp.array(targets)) == pytest.approx(
        cross_entropy_64(logits, targets), rel=1e-6
    )
    for binarize, wanted in ((False, targets), (True, (targets > 0).astype(np.float64))):
        got = binary_cross_entropy(jnp.array(logits), jnp.array(targets), binarize=binarize)
        assert got == pytest.approx(binary_64(logits, wanted), rel=1e-6)


def test_gradients_are_probabilities_less_targets():
    logits, targets = example(3, 5)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sums = targets.sum(axis=1, keepdims=True)
    gradient = jax.grad(cross_entropy)(jnp.array(logits), jnp.array(targets))
    np.testing.assert_allclose(gradient, (softmax * sums - targets) / 3, atol=1e-6)
    gradient = jax.grad(binary_cross_entropy)(jnp.array(logits), jnp.array(targets))
    np.testing.assert_allclose(gradient, (1 / (1 + np.exp(-logits)) - targets) / 15, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_stay_finite(name):
    rows = [*itertools.product((-1e30, 0.0, 1e30), repeat=3), (1e4, -1e4, 88.0), (-104.0, -1e-38, 1e-38)]
    targets = jnp.tile(jnp.array([0.0, 0.25, 0.75]), (len(rows), 1))
    value, gradient = jax.value_and_grad(LOSSES[name])(jnp.array(rows, jnp.float32), targets)
    assert np.isfinite(value)
    assert value >= 0
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() <= 1 / len(rows) * 1.000001


@pytest.mark.parametrize("name", LOSSES)
def test_a_sure_and_right_answer_costs_nothing_a_wrong_one_its_margin(name):
    targets = jnp.array([[1.0, 0.0]])
    assert LOSSES[name](jnp.array([[1e4, -1e4]]), targets) == 0
    margin = {"cross_entropy": 2e4}.get(name, 1e4)
    assert LOSSES[name](jnp.array([[-1e4, 1e4]]), targets) == margin


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_logits_are_computed_in_float32(name):
    logits, targets = example()
    rounded = jnp.array(logits, jnp.bfloat16)
    value = LOSSES[name](rounded, jnp.array(targets))
    assert value.dtype == jnp.float32
    assert value == LOSSES[name](rounded.astype(jnp.float32), jnp.array(targets))
