"""What is kept of a teacher's logits, and what comes back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.distill import expand, summarize

CLASSES = 11


def logits(scale: float = 3.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(0, scale, (7, CLASSES)), jnp.float32)


def test_all_logits_come_back_in_the_order_of_the_classes():
    kept = summarize(logits(), CLASSES)
    assert kept.keys() == {"labels", "values"}
    below = (logits() - logits().max(axis=1, keepdims=True)).astype(jnp.float16)
    np.testing.assert_array_equal(kept["values"], below)
    np.testing.assert_array_equal(expand(kept, CLASSES), below.astype(jnp.float32))


@pytest.mark.parametrize("top", [3, CLASSES])
def test_what_softmax_does_not_see_costs_no_precision(top):
    kept, moved = (expand(summarize(logits() + offset, top), CLASSES) for offset in (0.0, 4096.0))
    np.testing.assert_allclose(jax.nn.softmax(moved), jax.nn.softmax(kept), rtol=4e-3)  # float32 has steps of 5e-4


@pytest.mark.parametrize("top", [1, 4, CLASSES - 1])
def test_the_rest_keeps_its_probability_and_shares_it_evenly(top):
    kept = jax.jit(summarize, static_argnums=1)(logits(), top)
    assert (kept["values"].shape, kept["indices"].shape, kept["rest"].shape) == ((7, top), (7, top), (7,))
    order = np.argsort(-logits(), axis=1)
    np.testing.assert_array_equal(kept["indices"], order[:, :top])
    np.testing.assert_array_equal(kept["labels"], order[:, 0])
    before = np.take_along_axis(np.float64(jax.nn.softmax(logits())), order, axis=1)
    after = np.take_along_axis(np.float64(jax.nn.softmax(expand(kept, CLASSES))), order, axis=1)
    np.testing.assert_allclose(after[:, :top], before[:, :top], rtol=4e-3)  # of float16's logits up to 9
    np.testing.assert_allclose(after[:, top:].sum(axis=1), before[:, top:].sum(axis=1), rtol=4e-3)
    np.testing.assert_allclose(after[:, top:], np.repeat(after[:, -1:], CLASSES - top, axis=1), rtol=1e-6)


def test_labels_are_exact_where_float16_sees_a_tie():
    """And alone they stand for logits whose best class they are."""
    near = jnp.array([[9.0, 9.001, 0.0], [-1.0, 9.0, 9.001]])
    assert near.astype(jnp.float16)[0, 0] == near.astype(jnp.float16)[0, 1]
    for top in (0, 2, 3):
        kept = summarize(near, top)
        np.testing.assert_array_equal(kept["labels"], [1, 2])
        np.testing.assert_array_equal(jnp.argmax(expand({"labels": kept["labels"]}, 3), axis=1), [1, 2])


@pytest.mark.parametrize("top", [2, 4])
def test_logits_below_float16_are_its_smallest(top):
    kept = summarize(jnp.array([[1e6, -1e6, 999_997.0, -jnp.inf]]), top)
    assert np.isfinite(kept["values"]).all()
    back = expand(kept, 4)
    assert np.isfinite(back).all()
    if top == 4:
        np.testing.assert_array_equal(back, [[0, -65504, -3, -65504]])


@pytest.mark.parametrize(
    ("classes", "kind"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.uint32)]
)
def test_classes_take_the_smallest_type_that_leaves_its_largest_number_free(classes, kind):
    kept = jax.eval_shape(lambda z: summarize(z, 2), jax.ShapeDtypeStruct((3, classes), jnp.float32))
    assert kept["labels"].dtype == kept["indices"].dtype == kind
    assert classes - 1 < np.iinfo(kind).max
