"""Fitting weights to other classes and image sizes."""

import dataclasses

import numpy as np
import pytest
from golden_files import assert_close, load

from deit_jax.base.errors import UserError
from deit_jax.models import abstract_model, flatten, resize_positions
from deit_jax.weights.card import Card, Weights
from deit_jax.weights.surgery import adapt, differences

GOLDEN = load("positions.npz")
DISTILLED = "deit_tiny_distilled_patch16_224"
SMALL = {"width": 6, "depth": 2, "heads": 2, "patch_size": 5, "image_size": (10, 15), "num_classes": 3}


def network(name=DISTILLED, **overrides):
    return abstract_model(name, **SMALL | overrides)


def weights(name=DISTILLED, *, class_names=(), **overrides):
    """Random weights of `network`, and what is known of them."""
    random = np.random.default_rng(0)
    shapes = flatten(network(name, **overrides)).items()
    variables = {path: random.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes}
    return Weights(variables, Card(name, SMALL | overrides, class_names))


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
    assert_close(ours, GOLDEN[f"after_{case}"], "positions.npz", "positions")
    np.testing.assert_array_equal(ours[:, :prefix], GOLDEN[f"before_{case}"][:, :prefix])


def test_what_fits_is_taken_bit_for_bit():
    given = weights()
    variables, notes = adapt(given, network(), fresh=refuse)
    same(variables, given.variables)
    assert notes == []


def test_another_image_size_changes_the_position_embedding_alone():
    given = weights()
    variables, notes = adapt(given, network(image_size=(35, 20)), fresh=refuse)
    same(variables, given.variables, but=["pos_embed"])
    resized = resize_positions(given.variables["pos_embed"], 2, (2, 3), (7, 4))
    np.testing.assert_array_equal(variables["pos_embed"], resized)
    assert notes == ["position embedding resized from 2 x 3 to 7 x 4 patches"]


def test_without_an_image_size_the_grid_is_a_square():
    given = Weights(weights(image_size=15).variables, Card())
    variables, _ = adapt(given, network(image_size=20), fresh=refuse)
    np.testing.assert_array_equal(
        variables["pos_embed"], resize_positions(given.variables["pos_embed"], 2, (3, 3), (4, 4))
    )


def test_positions_on_patches_alone_have_no_prefix():
    given = Weights(weights("deit3_small_patch16_224", image_size=15).variables, Card())
    variables, _ = adapt(given, network("deit3_small_patch16_224", image_size=20), fresh=refuse)
    np.testing.assert_array_equal(
        variables["pos_embed"], resize_positions(given.variables["pos_embed"], 0, (3, 3), (4, 4))
    )


def test_fixed_positions_are_those_of_any_image_size():
    gap = {"name": "vit_small_patch16_gap_224", "width": 8}
    given = weights(**gap)
    variables, notes = adapt(given, network(**gap, image_size=(35, 20)), fresh=refuse)
    same(variables, given.variables)
    assert notes == []
    learned = network(**gap, positions="learned")
    for known in (given, Weights(given.variables, Card())):
        with pytest.raises(UserError, match=r"another network: .*missing: pos_embed"):
            adapt(known, learned, fresh=refuse)


@pytest.mark.parametrize(("before", "after"), [((), ()), (("a", "b", "c"), ()), ((), ("a", "b", "c"))])
def test_heads_for_other_classes_are_drawn_anew(before, after):
    model = network(num_classes=len(after) or 5)
    count = 3 if not after else 4
    given = weights(num_classes=count, class_names=before)
    fresh, asked = sevens(model)
    variables, notes = adapt(given, model, fresh=fresh, class_names=after)
    heads = ["head.kernel", "head.bias", "head_dist.kernel", "head_dist.bias"]
    assert asked == heads
    same(variables, given.variables, but=heads)
    assert all((variables[path] == 7).all() for path in heads)
    assert len(notes) == 2


def test_classes_are_taken_over_by_name():
    model = network(num_classes=4)
    given = weights(class_names=("cat", "dog", "eel"))
    fresh, _ = sevens(model)
    variables, notes = adapt(given, model, fresh=fresh, class_names=("ape", "cat", "eel", "fox"))
    for name in ("head", "head_dist"):
        kernel, bias = variables[f"{name}.kernel"], variables[f"{name}.bias"]
        np.testing.assert_array_equal(kernel[:, [1, 2]], given.variables[f"{name}.kernel"][:, [0, 2]])
        np.testing.assert_array_equal(bias[[1, 2]], given.variables[f"{name}.bias"][[0, 2]])
        assert (kernel[:, [0, 3]] == 7).all()
        assert (bias[[0, 3]] == 7).all()
    assert notes[0] == "head: 4 classes, 2 taken over by name, 2 new"


def test_the_same_classes_in_another_order_are_put_right():
    model = network()
    given = weights(class_names=("cat", "dog", "eel"))
    variables, _ = adapt(given, model, fresh=sevens(model)[0], class_names=("eel", "cat", "dog"))
    np.testing.assert_array_equal(variables["head.bias"], given.variables["head.bias"][[2, 0, 1]])


def test_features_need_no_head():
    given = weights()
    variables, _ = adapt(given, network(num_classes=0), fresh=refuse)
    assert variables.keys() == given.variables.keys() - {
        f"{head}.{leaf}" for head in ("head", "head_dist") for leaf in ("kernel", "bias")
    }


@pytest.mark.parametrize(
    ("before", "after", "from_"),
    [
        (("crane", "dog", "crane"), ("crane", "dog", "crane"), (0, 1, 2)),
        (("crane", "dog", "crane"), ("dog", "crane", "eel"), (1, None, None)),
        (("crane", "dog", "eel"), ("crane", "crane", "eel"), (None, None, 2)),
        (("crane", "dog", "crane"), ("crane", "crane", "dog"), (None, None, 1)),
    ],
)
def test_a_name_of_several_classes_tells_none_of_them(before, after, from_):
    given, fresh = weights(class_names=before), sevens(network())[0]
    variables, notes = adapt(given, network(), fresh=fresh, class_names=after)
    for new, old in enumerate(from_):
        expected = 7 if old is None else given.variables["head.bias"][old]
        assert variables["head.bias"][new] == expected
    assert (notes == []) == (before == after)


def test_a_thousand_classes_with_duplicates_keep_their_head():
    names = tuple(["crane" if i in (134, 517) else f"class {i}" for i in range(1000)])
    given = weights(num_classes=1000, class_names=names)
    variables, notes = adapt(given, network(num_classes=1000), fresh=refuse, class_names=names)
    same(variables, given.variables)
    assert notes == []


def test_without_a_source_of_fresh_values_nothing_is_drawn():
    with pytest.raises(UserError, match=r"have no head\.kernel for 4 classes"):
        adapt(weights(), network(num_classes=4))


@pytest.mark.parametrize(
    ("own", "theirs", "line"),
    [
        ({"heads": 3}, {"heads": 2}, "heads is 3 in the weights' network and 2 in the model's"),
        ({}, {"dist_head": False, "num_classes": 0}, "num_heads is 2"),
    ],
)
def test_the_same_shapes_of_another_function_are_refused(own, theirs, line):
    given = weights(**own)
    with pytest.raises(UserError, match=f"are those of another network: {line}.*; set model.name and what"):
        adapt(given, network(**theirs), fresh=refuse)


def test_classifiers_of_convolutional_networks():
    small = {"depths": (1,), "widths": (8,), "group_width": 4, "stem_width": 4}
    old, new = (abstract_model("regnety_002", num_classes=count, **small) for count in (3, 4))
    variables = {path: np.full(leaf.shape, 3, np.float32) for path, leaf in flatten(old).items()}
    variables["head.fc.bias"] = np.array([1, 2, 3], np.float32)
    given = Weights(variables, Card("regnety_002", small | {"num_classes": 3}, ("cat", "dog", "eel")))
    fitted, notes = adapt(given, new, fresh=sevens(new)[0], class_names=("eel", "fox", "cat", "gnu"))
    same(fitted, variables, but=["head.fc.kernel", "head.fc.bias"])
    np.testing.assert_array_equal(fitted["head.fc.bias"], [3, 7, 1, 7])
    assert notes == ["head.fc: 4 classes, 2 taken over by name, 2 new"]


def test_another_stem_of_the_same_shapes_is_told():
    small = {"depths": (1,), "widths": (8,), "group_width": 4, "stem_width": 4}
    stems = [abstract_model("regnety_002", stem=stem, **small) for stem in ("imagenet", "cifar")]
    assert differences(*stems) == ["stride is 2 in the weights' network and 1 in the model's"]
    assert differences(stems[0], abstract_model("regnety_002", num_classes=3, image_size=32, **small)) == []


def test_another_epsilon_is_noted():
    given = weights(norm_eps=1e-12)
    variables, notes = adapt(given, network(), fresh=refuse)
    same(variables, given.variables)
    assert notes == ["eps is 1e-12 in the weights' network and 1e-06 in the model's"]


def test_what_does_not_change_the_function_is_no_difference():
    given = weights()
    model = network(attention="xla", patch_embedding="conv", remat=True, dtype="bfloat16", drop_path=0.1)
    assert adapt(given, model, fresh=refuse)[1] == []


def test_other_types_are_cast():
    given = weights()
    half = {path: value.astype(np.float16) for path, value in given.variables.items()}
    variables, _ = adapt(Weights(half, given.card), network(), fresh=refuse)
    same(variables, {path: value.astype(np.float32) for path, value in half.items()})
    assert {value.dtype for value in variables.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (network("deit_tiny_patch16_224"), r"unexpected: .*dist_token"),
        (network(depth=3), r"missing: blocks\.2"),
        (network(width=8), r"of another shape"),
        (network("deit3_small_patch16_224", distilled=True), r"missing: .*ls\{1,2\}"),
    ],
)
def test_another_network_is_refused(model, message):
    given = weights(class_names=("a", "b", "c"))
    with pytest.raises(UserError, match=f"deit_tiny_distilled_patch16_224 are those of another network: .*{message}"):
        adapt(given, model, fresh=refuse, class_names=("a", "b", "c"))


def test_classes_are_the_same_by_identifier_and_by_word():
    """ImageNet's weights name synsets, a user's folders say what they are."""
    given = weights(class_names=("n01440764", "n01443537", "n01484850"))
    model = network(num_classes=2)
    fresh, _ = sevens(model)
    variables, notes = adapt(given, model, fresh=fresh, class_names=("goldfish", "shoe"))
    for head in ("head", "head_dist"):
        kernel = variables[f"{head}.kernel"]
        np.testing.assert_array_equal(kernel[:, 0], given.variables[f"{head}.kernel"][:, 1])
        np.testing.assert_array_equal(kernel[:, 1], 7)
    assert notes[0] == "head: 2 classes, 1 taken over by name, 1 new"


def test_classes_are_the_same_in_either_unicode_form():
    given = weights(class_names=("cafe\u0301", "tea", "cocoa"))
    model = network(num_classes=2)
    fresh, _ = sevens(model)
    variables, _ = adapt(given, model, fresh=fresh, class_names=("cocoa", "caf\u00e9"))
    for head in ("head", "head_dist"):
        np.testing.assert_array_equal(variables[f"{head}.kernel"], given.variables[f"{head}.kernel"][:, [2, 0]])


def test_a_head_that_the_model_lacks_is_left_out():
    given = weights()
    variables, notes = adapt(given, network(dist_head=False), fresh=refuse)
    assert notes == ["head_dist: left out, the model has none"]
    same(variables, {path: value for path, value in given.variables.items() if not path.startswith("head_dist.")})


@pytest.mark.parametrize("card", [{"problem_type": "multi_label_classification"}, {"problem_type": "regression"}])
def test_a_head_that_tells_no_class_of_several_is_drawn_anew(card):
    """Though its labels have the names of the model's classes."""
    given = weights(class_names=("a", "b", "c"))
    given = Weights(given.variables, dataclasses.replace(given.card, **card))
    model = network()
    fresh, asked = sevens(model)
    variables, notes = adapt(given, model, fresh=fresh, class_names=("a", "b", "c"))
    heads = ["head.kernel", "head.bias", "head_dist.kernel", "head_dist.bias"]
    assert asked == heads
    same(variables, given.variables, but=heads)
    assert all((variables[path] == 7).all() for path in heads)
    assert notes[0] == f"its head is for {card['problem_type']}, and probabilities here are of one class among several"
    with pytest.raises(UserError, match=r"no head\.kernel for 3 classes"):
        adapt(given, model, class_names=("a", "b", "c"))
    same(adapt(given, model)[0], given.variables)  # of the weights' own classes, whatever they are


def test_a_head_of_one_logit_is_drawn_anew():
    given = weights("deit_tiny_patch16_224", class_names=("cat",), num_classes=1)
    model = network("deit_tiny_patch16_224", num_classes=2)
    fresh, _ = sevens(model)
    variables, notes = adapt(given, model, fresh=fresh, class_names=("cat", "dog"))
    assert (variables["head.kernel"] == 7).all()  # no part of it is the cat's
    assert notes[0] == "its head has one logit, and classifiers here have two classes or more"
    assert given.classes == 1


def test_outputs_without_names_are_the_datas_in_their_order():
    given = weights()
    variables, notes = adapt(given, network(), fresh=refuse, class_names=("1", "10", "2"))
    same(variables, given.variables)
    line = "the weights do not name their classes: the k-th output is taken for the data's k-th class"
    assert notes == [f"{line} (1, 10, 2)"]
    many = weights("deit_tiny_patch16_224", num_classes=5)
    model = network("deit_tiny_patch16_224", num_classes=5)
    assert adapt(many, model, class_names=tuple("abcde"))[1] == [f"{line} (a, b, c, ...)"]
    assert adapt(many, model)[1] == []
    named = weights(class_names=("1", "10", "2"))
    assert adapt(named, network(), class_names=("1", "10", "2"))[1] == []
