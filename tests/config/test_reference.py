"""What a config's fields are told to be: complete, from one source, and found by the names that others give them."""

import copy
import re
from pathlib import Path

import pytest

from deit_jax.config import recipes
from deit_jax.config.fields import _SYNONYMS, field_paths, known_as, nearest_field
from deit_jax.config.reference import as_markdown, in_a_terminal, sections
from deit_jax.config.resolve import flatten
from deit_jax.config.schema import UNITS

DOCS = Path(__file__).parents[2] / "docs" / "config.md"
RECIPE = recipes.deit("deit_tiny_patch16_224").to_dict()


def test_the_docs_are_those_of_the_schema():
    assert DOCS.read_text() == as_markdown(), "python -m deit_jax.config.reference > docs/config.md"


def test_every_field_has_its_meaning_value_and_range():
    told = [field for section in sections(RECIPE) for field in section.fields]
    without_unit = re.compile(f"_({'|'.join(UNITS)})$")
    assert {without_unit.sub("", field.path) for field in told} == {
        without_unit.sub("", path) for path in field_paths()
    }
    for field in told:
        assert field.meaning.endswith("."), field.path
        assert len(field.meaning) > 10, field.path
        assert field.admits, field.path
    by_path = {field.path: field for field in told}
    values = dict(flatten(RECIPE))
    for path, field in by_path.items():
        if type(values[path]) in (int, float):
            assert float(field.value) == values[path], path
    assert by_path["ema.decay"].value == "0.99996"
    assert by_path["data.crop_scale"].value == "(0.08, 1)"
    assert by_path["data.crop_scale"].admits == "2 numbers from 0.001 to 1"
    assert by_path["optim.warmup_epochs"].value == "5"
    assert by_path["distillation.kind"].admits == "none, soft, hard"
    assert by_path["model.drop_path"].admits == "a number from 0 to below 1"
    assert by_path["optim.learning_rate"].admits == "a number positive"


def test_a_field_that_is_missing_is_told():
    tree = copy.deepcopy(RECIPE)
    del tree["optim"]["b1"], tree["total_epochs"]
    assert "--config.optim.b1=MISSING" in in_a_terminal(tree)
    assert "--config.total_steps=0" in in_a_terminal(tree)


@pytest.mark.parametrize("name", [name for names in _SYNONYMS.values() for name in names.split()])
def test_synonyms_are_of_fields_and_no_fields_themselves(name):
    paths = [path for path, names in _SYNONYMS.items() if name in names.split()]
    assert set(paths) <= set(field_paths())
    assert name not in field_paths()
    for path in paths:
        assert path in known_as(name)
        assert known_as(name) == known_as(name.upper().replace("_", "-"))
        assert known_as(f"{path.rpartition('.')[0]}.{name}".lstrip("."))[0].startswith(path.rpartition(".")[0])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("optim.lr", "optim.learning_rate?"),
        ("learning_rate", "optim.learning_rate?"),
        ("model.image_size", "data.image_size or distillation.teacher.image_size?"),
        ("data.batch_size", "batch_size or eval.batch_size?"),
        ("optim.learning_rat", "optim.learning_rate or "),  # by its spelling
        ("mixing.weight-decay", "optim.weight_decay?"),
        ("optim.decay", "optim.decay_steps or optim.decay_epochs or optim.decay_examples?"),
        ("erasing.ratio", "erasing.aspect?"),
        ("data.scale", "data.crop_scale?"),
        ("scale", "data.crop_scale or erasing.area?"),
        ("total", "total_steps or total_epochs or total_examples?"),
        ("warmup", "ema.warmup?"),
        ("optim.warmup", "optim.warmup_steps or optim.warmup_epochs or optim.warmup_examples?"),
    ],
)
def test_what_is_meant(wrong, said):
    assert nearest_field(wrong).startswith(f"; did you mean {said}")
