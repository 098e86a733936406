"""Split expressions against TFDS's own."""

from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds

from deit_jax.base.errors import UserError
from deit_jax.data.splits import parse_split, split_names

EXPRESSIONS = [
    "train",
    "train[:90%]",
    "train[90%:]",
    "train[10%:20%]",
    "train[-15%:]",
    "train[:-15%]",
    "train[33.3%:66.6%]",
    "train[50%:]",
    "train[:5]",
    "train[2:6]",
    "train[-3:]",
    "train[:-2]",
    "train+test",
    "train[:50%] + test[50%:]",
    "train[5:]+train[:5]",
]


def positions(expression: str, sizes: dict[str, int]) -> list[tuple[str, int]]:
    parts = parse_split(expression, field="f")
    return [(part.name, i) for part in parts for i in part.take(range(sizes[part.name]), field="f")]


@pytest.mark.parametrize("count", [11, 101, 1797, 1281167])
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_rounds_as_tfds(expression: str, count: int) -> None:
    sizes = {"train": count, "test": 13}
    splits = {name: SimpleNamespace(num_examples=size) for name, size in sizes.items()}
    for part, theirs in zip(
        parse_split(expression, field="f"),
        tfds.core.ReadInstruction.from_spec(expression).to_absolute(splits),
        strict=True,
    ):
        size = sizes[part.name]
        ours = part.take(range(size), field="f")
        stop = size if theirs.to is None else theirs.to
        assert (part.name, ours.start, ours.stop) == (theirs.splitname, theirs.from_ or 0, stop)


def test_examples_in_the_order_written() -> None:
    assert positions("train[-2:]+test[:1]+train[:2]", {"train": 5, "test": 3}) == [
        ("train", 3),
        ("train", 4),
        ("test", 0),
        ("train", 0),
        ("train", 1),
    ]


@pytest.mark.parametrize("count", [7, 101, 997])
@pytest.mark.parametrize("percent", [10, 37.5, 50, 90])
def test_complementary_slices_share_nothing_and_miss_nothing(percent: float, count: int) -> None:
    found = positions(f"train[:{percent}%]+train[{percent}%:]", {"train": count})
    assert found == [("train", i) for i in range(count)]


@pytest.mark.parametrize(
    "expression",
    [
        *("", "train[", "train[]", "train[:]", "train[5]", "train[:5", "train[5%]", "tra in", "train+", "train[a:b]"),
        *("train[0:5:2]", "train[:50%:]", "train[:1.5]", "train[:5%%]", "[:5]"),
    ],
)
def test_malformed(expression: str) -> None:
    with pytest.raises(UserError, match=r"^data\.eval_split: [^\n]+$"):
        parse_split(expression, field="data.eval_split")
    with pytest.raises((ValueError, TypeError)):
        tfds.core.ReadInstruction.from_spec(expression)


@pytest.mark.parametrize("expression", ["train[10:50%]", "train[10%:50]"])
def test_mixed_units(expression: str) -> None:
    with pytest.raises(UserError, match="mixes a percentage with a count"):
        parse_split(expression, field="f")


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("train[:1%]", "is empty"),
        ("train[5:5]", "is empty"),
        ("train[6:2]", "is empty"),
        ("train[:14]", "beyond the 13 examples"),
        ("train[-14:]", "beyond the 13 examples"),
        ("train[:101%]", "outside"),
    ],
)
def test_impossible_bounds(expression: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.train_split: .*{message}"):
        parse_split(expression, field="data.train_split")[0].take(range(13), field="data.train_split")


@pytest.mark.parametrize(
    ("split", "folders"),
    [
        ("train", ["train", "Train", "TRAINING", "train_images", "images-train", "trainset", "TrainData", "train (2)"]),
        ("validation", ["val", "Valid", "validation", "dev", "Eval", "val2017", "validation.set", "evaluation data"]),
        ("test", ["test", "Testing", "TEST_SET", "testImages", "test-1"]),
    ],
)
def test_folders_called_like_a_split(split: str, folders: list[str]) -> None:
    for folder in folders:
        assert split_names([folder, "extra"]) == {folder: split}


def test_other_words_have_to_be_beside_another_split() -> None:
    assert split_names(["seg_train", "seg_test", "seg_pred"]) == {"seg_train": "train", "seg_test": "test"}
    assert (
        split_names(["bullet_train", "crash_test", "devil", "trainer", "images", "train_test", "café_test", ""]) == {}
    )
