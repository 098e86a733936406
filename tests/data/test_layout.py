"""Which folders are taken for splits and which for classes, and what is refused."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from deit_jax.base.errors import UserError
from deit_jax.data.sources import open_source


@pytest.fixture
def tree(tmp_path: Path):
    """Makes three empty photos in each of the folders, and returns the data directory."""

    def make(folders: Sequence[str]) -> Path:
        for folder in folders:
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            for i in range(3):
                (tmp_path / folder / f"{i}.jpg").touch()
        return tmp_path

    return make


def folders_of(root: Path, split: str, **options: object) -> set[str]:
    """The folders that the photos of a split lie in."""
    source = open_source(name="folder", directory=str(root), split=split, field="data.split", **options)
    return {os.path.dirname(source.name(i)) for i in range(len(source))}


def in_splits(*splits: str, classes: str = "ab") -> list[str]:
    return [f"{split}/{name}" for split in splits for name in classes]


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        *(("Training", "Testing"), ("Train", "Test"), ("TRAIN", "VAL"), ("train", "valid"), ("training", "dev")),
        *(
            ("train_images", "val_images"),
            ("training-set", "Test set"),
            ("trainset", "testset"),
            ("TrainData", "TestData"),
        ),
        *(("train2017", "val2017"), ("seg_train", "seg_test"), ("asl_alphabet_train", "asl_alphabet_eval")),
        *(("training_set/training_set", "test_set/test_set"), ("Train/train", "Val/val"), ("train", "validation")),
    ],
)
def test_splits_by_other_names(tree, train: str, held_out: str) -> None:
    root = tree(in_splits(train, held_out))
    assert folders_of(root, "train") == {*in_splits(train)}
    assert folders_of(root, "validation") == folders_of(root, "val") == {*in_splits(held_out)}


def test_what_was_decided_is_told_once(tree, caplog) -> None:
    root = tree(in_splits("Training", "Testing"))
    for _ in range(2):
        folders_of(root, "train")
        folders_of(root, "validation")
        folders_of(root, "Testing")
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}: the split train is the folder Training",
        f"{root}: the split validation is the folder Testing",
    ]


def test_a_split_that_is_there_needs_no_other(tree, caplog) -> None:
    root = tree(in_splits("train", "val", "test", "extra"))
    for split, folder in {"train": "train", "validation": "val", "test": "test", "extra": "extra"}.items():
        assert folders_of(root, split) == {*in_splits(folder)}
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}: test, train, val are splits; what is in extra is not read, unless config.data.train_split or "
        f"config.data.eval_split names it"
    ]


@pytest.mark.parametrize("beside", [[], ["test"], ["test/test"], ["extra/a"]], ids=str)
def test_a_tenth_of_a_train_folder_alone_is_held_out(tree, caplog, beside: list[str]) -> None:
    """Photos of a test folder without classes have no labels to compare with."""
    root = tree([*in_splits("train"), *beside])

    def photos(split: str) -> set[str]:
        source = open_source(name="folder", directory=str(root), split=split)
        return {source.name(i) for i in range(len(source))}

    train, held = photos("train"), photos("validation")
    assert len(train) == 4
    assert len(held) == 2
    assert photos("train+validation") == train | held
    assert {os.path.dirname(name) for name in held} == {*in_splits("train")}
    assert f"{root} has no validation folder: of each class in train a tenth is the split validation" in caplog.text


def test_a_link_from_one_split_to_another_is_told(tree, caplog) -> None:
    root = tree(in_splits("train"))
    (root / "val").symlink_to("train")
    assert folders_of(root, "validation") == {*in_splits("val")}
    assert [record.getMessage() for record in caplog.records] == [
        f"{root}: the splits train and val are one folder, by a link"
    ]


def test_of_several_folders_one_has_to_be_named(tree) -> None:
    root = tree(in_splits("train", "dev", "eval"))
    with pytest.raises(
        UserError, match=r"^data\.split: dev and eval may each be the split validation; name one, or re"
    ):
        folders_of(root, "validation")
    assert folders_of(root, "dev") == {*in_splits("dev")}
    assert folders_of(tree(in_splits("val")), "validation") == {*in_splits("val")}


@pytest.mark.parametrize(
    "folders",
    [
        ["bullet_train", "car"],
        ["bullet_train/red", "car/red", "car"],
        ["crash_test/front", "crash_test/side", "parts"],
        ["train", "bus"],
        ["cat/images", "dog/images"],
        ["cat/day", "cat/night", "cat", "dog/day", "dog/night"],
    ],
    ids=str,
)
def test_folders_that_are_classes(tree, folders: list[str]) -> None:
    assert folders_of(tree(folders), "train+validation") == {*folders}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (
            ["flowers/rose", "flowers/tulip"],
            "has one class folder, ROOT/flowers, .* give --config.data.dir=ROOT/flowers$",
        ),
        (["a/b/rose", "a/b/tulip"], "has one class folder, .* give --config.data.dir=ROOT/a/b$"),
        (["photos/train/a", "photos/test/a"], ".* give --config.data.dir=ROOT/photos$"),
        (["train/flowers/rose", "train/flowers/tulip", "val/x"], ".* give --config.data.dir=ROOT/train/flowers$"),
        (
            ["cat/train", "cat/test", "dog/train", "dog/test"],
            "ROOT/cat has splits in it .test, train.; give .*split/class",
        ),
        (
            ["one/train/a", "one/val/a", "two/train/a", "two/val/a"],
            ".* give --config.data.dir=ROOT/one, or, if one is a",
        ),
        (
            ["Set_A/a", "Set_A/b", "Set_A/c", "Set_B/a", "Set_B/b"],
            "all folders of ROOT have the same folders in them .a, b.; .*=ROOT/Set_A, or",
        ),
        (["tr/a", "tr/b", "te/a", "te/b"], "all folders .* call them train, validation and test; .* into ROOT/train$"),
    ],
)
def test_a_folder_that_is_none_of_both_is_refused(tree, folders: list[str], message: str) -> None:
    root = tree(folders)
    with pytest.raises(UserError) as error:
        folders_of(root, "train")
    assert "\n" not in str(error.value)
    error.match(f"^config.data.dir: .*{message.replace('ROOT', str(root))}")


def test_known_classes_are_not_asked_about(tree) -> None:
    root = tree(["cat/day", "cat/night", "dog/day", "dog/night"])
    assert len(folders_of(root, "train+validation", class_names=("cat", "dog", "cow"))) == 4
    with pytest.raises(UserError, match="all folders of"):
        folders_of(root, "train", class_names=("horse", "cow"))


def test_a_folder_of_one_class_can_be_evaluated(tree) -> None:
    root = tree(["cat/day", "cat/night"])
    assert folders_of(root, "train+validation", class_names=("cat", "dog")) == {"cat/day", "cat/night"}
    with pytest.raises(UserError, match=f"give --config.data.dir={root}/cat$"):
        folders_of(root, "train+validation", class_names=("day", "night"))
