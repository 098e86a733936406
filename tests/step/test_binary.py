"""Binary cross-entropy and what copies learn from one another, against torch (golden/make_binary.py)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import assert_close, load

from deit_jax.step import losses

GOLDEN = load("binary.npz")
LOGITS, TARGETS = jax.device_put(GOLDEN["logits"]), jax.device_put(GOLDEN["targets"])
BINARIZED = functools.partial(losses.binary_cross_entropy, binarize=True)


@pytest.mark.parametrize(
    ("criterion", "name"),
    [(losses.binary_cross_entropy, "timm"), (BINARIZED, "timm-threshold"), (BINARIZED, "facebook")],
)
def test_values_and_gradients_are_timms_and_facebooks(criterion, name):
    """Means over batch and classes; of mixed targets, of which some have no second class."""
    assert set(np.unique(np.count_nonzero(GOLDEN["targets"], axis=1))) == {1, 2}
    value, gradient = jax.value_and_grad(criterion)(LOGITS[::2], TARGETS)
    assert_close(value, GOLDEN[f"{name}/value"], "binary.npz", "values")
    assert_close(gradient, GOLDEN[f"{name}/gradient"], "binary.npz", "gradients")


def cosub(logits, *, weight=0.5, binary=True):
    if binary:
        chosen = {"criterion": BINARIZED, "agreement": losses.binary_cross_entropy, "probabilities": jax.nn.sigmoid}
    else:
        chosen = dict.fromkeys(("criterion", "agreement"), losses.cross_entropy) | {"probabilities": jax.nn.softmax}
    return losses.cosub_loss(logits, jnp.repeat(TARGETS, 2, axis=0), weight=weight, **chosen)


def test_copies_learn_from_one_another_as_facebooks():
    (value, terms), gradient = jax.value_and_grad(cosub, has_aux=True)(LOGITS)
    assert_close(value, GOLDEN["cosub/value"], "binary.npz", "values")
    assert_close(gradient, GOLDEN["cosub/gradient"], "binary.npz", "gradients")
    assert terms.keys() == {"base", "cosub"}
    assert value == terms["base"] + terms["cosub"]


def test_copies_learn_by_cross_entropy_by_hand():
    (value, _), gradient = jax.value_and_grad(functools.partial(cosub, weight=0.2, binary=False), has_aux=True)(LOGITS)
    z = GOLDEN["logits"].astype(np.float64)
    said = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    twin = said.reshape(-1, 2, z.shape[1])[:, ::-1].reshape(z.shape)
    targets = 0.8 * np.repeat(GOLDEN["targets"], 2, axis=0) + 0.2 * twin
    assert value == pytest.approx(-np.mean(np.sum(targets * np.log(said), axis=1)), rel=1e-6)
    np.testing.assert_allclose(gradient, (said - targets) / len(z), atol=1e-7)


def test_without_weight_copies_are_two_images():
    value, terms = cosub(LOGITS, weight=0.0)
    assert terms["cosub"] == 0
    assert value == BINARIZED(LOGITS, jnp.repeat(TARGETS, 2, axis=0))
