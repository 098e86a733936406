"""Image folders, with and without splits."""

import os
from collections import Counter
from pathlib import Path

import pytest

from deit_jax.base.errors import UserError
from deit_jax.data.decode import decode
from deit_jax.data.sources import open_source


def open_folder(directory, split: str, field: str = "data.train_split", **options: object):
    return open_source(name="folder", directory=str(directory), split=split, field=field, **options)


def listing(source) -> dict[str, int]:
    records = [source[i] for i in range(len(source))]
    assert len({record.name for record in records}) == len(records)
    return {record.name: record.label for record in records}


def files(*classes: str, count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{name}/{i:03d}.jpg" for name in classes for i in range(count)]


def test_images_of_all_kinds_and_depths(image_folder, photo) -> None:
    root = image_folder(
        [
            "train/b/one.JPG",
            "train/b/deep/er/two.jpeg",
            "train/a/three.PnG",
            "train/a/four.webp",
            "test/a/five.jpg",
            "train/.cache/no.jpg",
            "train/a/._no.jpg",
            "train/a/.hidden/no.jpg",
        ]
    )
    Path(root, "train/a/notes.txt").write_text("no image")
    Path(root, "train/readme.jpg").write_text("not in a class")
    source = open_folder(root, "train")
    assert source.class_names == ("a", "b")
    assert listing(source) == {
        "train/a/three.PnG": 0,
        "train/a/four.webp": 0,
        "train/b/one.JPG": 1,
        "train/b/deep/er/two.jpeg": 1,
    }
    png = next(source[i] for i in range(4) if source[i].name.endswith("PnG"))
    assert (decode(png.image) == photo(11, 13, seed=2)).all()


def test_linked_folders_are_followed(image_folder, tmp_path) -> None:
    root = image_folder(files("a", "b", count=2, prefix="elsewhere/"))
    (tmp_path / "data/train").mkdir(parents=True)
    for name in ("a", "b"):
        os.symlink(f"{root}/elsewhere/{name}", tmp_path / "data/train" / name)
    assert len(open_folder(tmp_path / "data", "train")) == 4


@pytest.mark.parametrize("stored", ["val", "validation"])
def test_val_and_validation_are_one(image_folder, stored: str) -> None:
    root = image_folder(["train/a/0.jpg", f"{stored}/a/1.jpg", f"{stored}/a/2.jpg"])
    first, second = open_folder(root, "val"), open_folder(root, "validation")
    assert listing(first) == listing(second) == {f"{stored}/a/1.jpg": 0, f"{stored}/a/2.jpg": 0}
    assert first.fingerprint == second.fingerprint


def test_slices_keep_all_classes(image_folder) -> None:
    root = image_folder(files("a", "b", "c", count=40, prefix="train/") + files("a", count=3, prefix="test/"))
    whole, part = open_folder(root, "train"), open_folder(root, "train[:50%]")
    names = list(listing(whole))
    assert list(listing(part)) == names[:60]
    assert min(Counter(listing(part).values()).values()) >= 12
    assert list(listing(open_folder(root, "train[50%:]+test"))) == names[60:] + list(listing(open_folder(root, "test")))
    assert names != sorted(names)


def test_the_order_does_not_depend_on_the_directory(image_folder, tmp_path) -> None:
    root = image_folder(files("a", "b", count=9, prefix="one/train/"))
    os.rename(f"{root}/one", f"{root}/two")
    again = open_folder(f"{root}/two", "train")
    assert list(listing(again))[:3] == ["train/a/001.jpg", "train/a/007.jpg", "train/b/007.jpg"]
    os.rename(f"{root}/two/train/a/001.jpg", f"{root}/two/train/a/999.jpg")
    assert open_folder(f"{root}/two", "train").fingerprint != again.fingerprint


def test_without_splits_a_fixed_tenth_of_each_class_is_held_out(image_folder) -> None:
    root = image_folder(files("a", count=40) + files("b", count=20) + files("c", count=2) + files("d", count=1))
    train, held = listing(open_folder(root, "train")), listing(open_folder(root, "validation"))
    assert Counter(held.values()) == {0: 4, 1: 2, 2: 1}
    assert Counter(train.values()) == {0: 36, 1: 18, 2: 1, 3: 1}
    assert not set(train) & set(held)
    assert listing(open_folder(root, "val")) == held
    assert open_folder(root, "validation").class_names == ("a", "b", "c", "d")
    # Changing these would let models trained before see held-out images.
    assert {name for name in held if name < "c"} == {f"a/{i}.jpg" for i in ("004", "012", "026", "034")} | {
        "b/014.jpg",
        "b/017.jpg",
    }


@pytest.mark.parametrize(
    ("paths", "classes"),
    [
        (["train/0.jpg", "bus/0.jpg", "car/0.jpg"], ("bus", "car", "train")),  # a folder of vehicles
        (["train/x/0.jpg", "bus/0.jpg"], ("x",)),
    ],
)
def test_what_counts_as_a_split(image_folder, paths: list[str], classes: tuple[str, ...]) -> None:
    assert open_folder(image_folder(paths), "train").class_names == classes


def test_class_names_decide_the_labels(image_folder) -> None:
    root = image_folder(["train/a/0.jpg", "train/b/1.jpg", "train/c/2.jpg", "test/c/3.jpg", "test/d/4.jpg"])
    source = open_folder(root, "train", class_names=["c", "x", "b", "a"])
    assert listing(source) == {"train/a/0.jpg": 3, "train/b/1.jpg": 2, "train/c/2.jpg": 0}
    assert source.class_names == ("c", "x", "b", "a")
    with pytest.raises(
        UserError, match=r"^data\.eval_split: class 'd' is not one of the 3 classes trained on \(a, b, c\)"
    ):
        open_folder(root, "test", field="data.eval_split", class_names=["a", "b", "c"])


@pytest.mark.parametrize(
    ("paths", "split", "message"),
    [
        (
            ["train/a/0.jpg", "test/a/0.jpg"],
            "tets",
            r"data.train_split: no split 'tets'; there are test, train; .*'test'",
        ),
        (["train/a/0.jpg"], "validation", r"data.train_split: no split 'validation'; there are train"),
        (["a/0.jpg"], "test", r"data.train_split: no split 'test'; there are train, validation"),
        (["train/a/0.jpg", "train/b/.0.jpg"], "train", r"config.data.dir: class folder .*/train/b has no JPEG.*"),
        (["a/0.jpg", "b/0.txt"], "train", r"config.data.dir: class folder .*/b has no JPEG.*fill or remove it"),
        (
            ["a/0.jpg", "b/0.HEIC", "b/1.avif"],
            "train",
            r".*/b has no JPEG.* but 2 in HEIC, AVIF or TIFF; .*magick",
        ),
        (["train/0.jpg", "test/0.jpg"], "train", r"config.data.dir: .*/train has no class folders.*"),
        (["0.jpg"], "train", r"config.data.dir: .* has no subfolders.*"),
        (["a/0.jpg", "b/0.jpg"], "validation", r"data.train_split: validation is empty.*"),
    ],
)
def test_mistakes_are_named_in_one_line(image_folder, paths: list[str], split: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        open_folder(image_folder(paths), split)
    assert "\n" not in str(error.value)
    error.match(f"^{message}")


def test_missing_directory() -> None:
    with pytest.raises(UserError, match=r"^config\.data\.dir: no directory /no/such/place; "):
        open_folder("/no/such/place", "train")


def test_a_file_that_vanished_is_an_os_error(image_folder) -> None:
    root = image_folder(["train/a/0.jpg"])
    source = open_folder(root, "train")
    os.remove(f"{root}/train/a/0.jpg")
    with pytest.raises(OSError, match=r"0\.jpg"):
        source[0]


def test_photos_that_cannot_be_read_are_told(image_folder, caplog) -> None:
    root = image_folder(["train/a/0.jpg", "train/a/1.heic", "train/b/2.jpg"])
    assert len(open_folder(root, "train")) == 2
    assert "train/a: 1 photos in HEIC, AVIF or TIFF are left out; convert them" in caplog.text
