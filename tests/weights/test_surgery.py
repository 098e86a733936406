"""Fitting weights to other classes and image sizes."""

from pathlib import Path

import numpy as np
import pytest

from deit_jax.errors import UserError
from deit_jax.models import abstract_model, flatten
from deit_jax.weights.card import Card, Weights
from deit_jax.weights.surgery import adapt, resize_positions

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "positions.npz")
SMALL = {"width": 6, "depth": 2, "heads": 2, "patch_size": 5}


def network(name="deit_tiny_distilled_patch16_224", **overrides):
    return abstract_model(name, **SMALL | {"image_size": (10, 15), "num_classes": 3} | overrides)


def weights_of(model, *, class_names=(), image_size=(10, 15)):
    """Random weights of a network, and how they should be known."""
    random = np.random.default_rng(0)
    variables = {path: random.normal(size=leaf.shape).astype(np.float32) for path, leaf in flatten(model).items()}
    return Weights(variables, Card("deit_tiny_distilled_patch16_224", {"image_size": image_size}, class_names))


def sevens(model):
    """Draws sevens, which no weight of `weights_of` is, and remembers what for."""
    asked = []

    def fresh(paths):
        asked.extend(paths)
        return {path: np.full(flatten(model)[path].shape, 7, np.float32) for path in paths}

    return fresh, asked


def refuse(paths):
    raise AssertionError(f"nothing had to be drawn, but {paths} were")


def same(ours, theirs, *, but=()):
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if not np.array_equal(ours[path], theirs[path]) and path not in but] == []


@pytest.mark.parametrize("case", range(4))
def test_positions_are_resized_as_torch_does(case):
    prefix, rows, columns, new_rows, new_columns = GOLDEN[f"grids_{case}"].tolist()
    ours = resize_positions(GOLDEN[f"before_{case}"], prefix, (rows, columns), (new_rows, new_columns))
    np.testing.assert_allclose(ours, GOLDEN[f"after_{case}"], atol=1e-5)
    np.testing.assert_array_equal(ours[:, :prefix], GOLDEN[f"before_{case}"][:, :prefix])


def test_what_fits_is_taken_bit_for_bit():
    weights = weights_of(network())
    variables, notes = adapt(weights, network(), fresh=refuse)
    same(variables, weights.variables)
    assert notes == []


def test_another_image_size_changes_the_position_embedding_alone():
    weights = weights_of(network())
    variables, notes = adapt(weights, network(image_size=(35, 20)), fresh=refuse)
    same(variables, weights.variables, but=["pos_embed"])
    resized = resize_positions(weights.variables["pos_embed"], 2, (2, 3), (7, 4))
    np.testing.assert_array_equal(variables["pos_embed"], resized)
    assert notes == ["position embedding resized from 2 x 3 to 7 x 4 patches"]


def test_without_an_image_size_the_grid_is_a_square():
    square = network(image_size=15)
    weights = Weights(weights_of(square).variables, Card())
    variables, _ = adapt(weights, network(image_size=20), fresh=refuse)
    np.testing.assert_array_equal(
        variables["pos_embed"], resize_positions(weights.variables["pos_embed"], 2, (3, 3), (4, 4))
    )


def test_positions_on_patches_alone_have_no_prefix():
    model = network("deit3_small_patch16_224", image_size=15)
    weights = Weights(weights_of(model).variables, Card())
    variables, _ = adapt(weights, network("deit3_small_patch16_224", image_size=20), fresh=refuse)
    np.testing.assert_array_equal(
        variables["pos_embed"], resize_positions(weights.variables["pos_embed"], 0, (3, 3), (4, 4))
    )


@pytest.mark.parametrize(("before", "after"), [((), ()), (("a", "b", "c"), ()), ((), ("a", "b", "c"))])
def test_heads_for_other_classes_are_drawn_anew(before, after):
    model = network(num_classes=len(after) or 5)
    count = 3 if not after else 4
    weights = weights_of(network(num_classes=count), class_names=before)
    fresh, asked = sevens(model)
    variables, notes = adapt(weights, model, fresh=fresh, class_names=after)
    heads = ["head.kernel", "head.bias", "head_dist.kernel", "head_dist.bias"]
    assert asked == heads
    same(variables, weights.variables, but=heads)
    assert all((variables[path] == 7).all() for path in heads)
    assert len(notes) == 2


def test_classes_are_taken_over_by_name():
    model = network(num_classes=4)
    weights = weights_of(network(), class_names=("cat", "dog", "eel"))
    fresh, _ = sevens(model)
    variables, notes = adapt(weights, model, fresh=fresh, class_names=("ape", "cat", "eel", "fox"))
    for name in ("head", "head_dist"):
        kernel, bias = variables[f"{name}.kernel"], variables[f"{name}.bias"]
        np.testing.assert_array_equal(kernel[:, [1, 2]], weights.variables[f"{name}.kernel"][:, [0, 2]])
        np.testing.assert_array_equal(bias[[1, 2]], weights.variables[f"{name}.bias"][[0, 2]])
        assert (kernel[:, [0, 3]] == 7).all()
        assert (bias[[0, 3]] == 7).all()
    assert notes[0] == "head: 4 classes, 2 taken over by name, 2 new"


def test_the_same_classes_in_another_order_are_put_right():
    model = network()
    weights = weights_of(model, class_names=("cat", "dog", "eel"))
    variables, _ = adapt(weights, model, fresh=sevens(model)[0], class_names=("eel", "cat", "dog"))
    np.testing.assert_array_equal(variables["head.bias"], weights.variables["head.bias"][[2, 0, 1]])


def test_features_need_no_head():
    weights = weights_of(network())
    variables, _ = adapt(weights, network(num_classes=0), fresh=refuse)
    assert variables.keys() == weights.variables.keys() - {
        f"{head}.{leaf}" for head in ("head", "head_dist") for leaf in ("kernel", "bias")
    }


def test_other_types_are_cast():
    weights = weights_of(network())
    half = {path: value.astype(np.float16) for path, value in weights.variables.items()}
    variables, _ = adapt(Weights(half, weights.card), network(), fresh=refuse)
    same(variables, {path: value.astype(np.float32) for path, value in half.items()})
    assert {value.dtype for value in variables.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network("deit_tiny_patch16_224"), r"unexpected: .*dist_token"),
        (network(depth=3), r"missing: blocks\.2"),
        (network(width=8), r"of another shape"),
        (network("deit3_small_patch16_224", distilled=True), r"missing: .*ls1"),
    ],
)
def test_another_network_is_refused(model, message):
    weights = weights_of(network(), class_names=("a", "b", "c"))
    with pytest.raises(UserError, match=f"deit_tiny_distilled_patch16_224 are those of another network: .*{message}"):
        adapt(weights, model, fresh=refuse, class_names=("a", "b", "c"))
