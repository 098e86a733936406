"""What commands open to tell the class of a photo, and what they refuse or say of it."""

import pytest
from absl import flags
from trained_models import IMAGES_AND_CLASSES, NAMES, PREPROCESSING, small_model, stand_in

from deit_jax.base.errors import UserError
from deit_jax.trained import define_flags, open_trained, take_weights
from deit_jax.weights import Card

MODEL = "deit_tiny_patch16_224"


@pytest.fixture(scope="module")
def given():
    values = flags.FlagValues()
    define_flags(values)
    values(["", "--weights=w"])
    return values


def card(names=NAMES, **fields):
    return Card(MODEL, IMAGES_AND_CLASSES, names, PREPROCESSING, **fields)


def test_classes_without_names_are_told_by_number_and_that_is_said(given, monkeypatch, capsys):
    stand_in(monkeypatch, small_model(), card(()))
    assert open_trained(given).names == tuple(map(str, range(11)))
    assert capsys.readouterr().err == "note: w does not name its classes, which are told by their numbers\n"
    open_trained(given, classifies=False)
    stand_in(monkeypatch, small_model(), card())
    assert open_trained(given).names == NAMES
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flag", "arguments", "weights", "others"),
    [
        ("", ["runs/a", "a.jpg", "photos"], "runs/a", ["a.jpg", "photos"]),
        ("", ["w.safetensors"], "w.safetensors", []),
        ("w", ["photos", "b.png"], "w", ["photos", "b.png"]),
        ("", ["a.JPG", "b.png"], "", ["a.JPG", "b.png"]),  # they are missing, and no photo is taken for them
        ("", ["a.heic"], "", ["a.heic"]),
        ("", [], "", []),
    ],
)
def test_weights_may_stand_before_all_else(flag, arguments, weights, others):
    values = flags.FlagValues()
    define_flags(values)
    values(["", f"--weights={flag}"])
    assert take_weights(values, arguments) == others
    assert values.weights == weights


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_heads_that_tell_no_class_of_several_give_features_alone(given, monkeypatch, kind):
    stand_in(monkeypatch, small_model(), card(problem_type=kind))
    with pytest.raises(UserError, match=rf"^--weights: w: its head is for {kind}, .*; fine-tune .* predict --features"):
        open_trained(given)
    assert open_trained(given, classifies=False).names == ()
    stand_in(monkeypatch, small_model(), card(problem_type="single_label_classification"))
    assert open_trained(given).names == NAMES


def test_a_head_of_one_logit_gives_features_alone(given, monkeypatch):
    stand_in(monkeypatch, small_model(num_classes=1), card(("cat",)))
    with pytest.raises(
        UserError, match=r"^--weights: w: its head has one logit, and classifiers here have two classes"
    ):
        open_trained(given)
    assert open_trained(given, classifies=False).names == ()
