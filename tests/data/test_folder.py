"""Image folders, with and without splits."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from deit_jax.base.errors import UserError
from deit_jax.data.decode import decode
from deit_jax.data.records import digest
from deit_jax.data.sources import open_source


def open_folder(directory, split: str, field: str = "data.train_split", **options: object):
    return open_source(name="folder", directory=str(directory), split=split, field=field, **options)


def listing(source) -> dict[str, int]:
    records = [source[i] for i in range(len(source))]
    assert len({record.name for record in records}) == len(records)
    return {record.name: record.label for record in records}


def files(*classes: str, count: int, prefix: str = "") -> list[str]:
    return [f"{prefix}{name}/{i:03d}.jpg" for name in classes for i in range(count)]


@pytest.fixture
def empty_files(tmp_path: Path) -> Callable[[Sequence[str]], str]:
    """Makes an empty file at each of the paths, for tests that list and do not read, and returns the folder."""

    def make(paths: Sequence[str]) -> str:
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        return str(tmp_path)

    return make


def names(source) -> set[str]:
    found = [source.name(i) for i in range(len(source))]
    assert len(set(found)) == len(found)
    return set(found)


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
            "val/a/six.jpg",
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
    assert len(open_folder(tmp_path / "data", "train+validation")) == 4


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
    root = image_folder([*files("a", "b", count=9, prefix="one/train/"), "one/val/a/0.jpg"])
    os.rename(f"{root}/one", f"{root}/two")
    again = open_folder(f"{root}/two", "train")
    assert list(listing(again))[:3] == ["train/a/001.jpg", "train/a/007.jpg", "train/b/007.jpg"]
    os.rename(f"{root}/two/train/a/001.jpg", f"{root}/two/train/a/999.jpg")
    assert open_folder(f"{root}/two", "train").fingerprint != again.fingerprint


TENTH = 2**128 // 10


def test_without_splits_about_a_tenth_of_each_class_is_held_out(empty_files) -> None:
    root = empty_files([*files("a", count=400), *files("b", count=20), *files("c", count=2), *files("d", count=1)])
    train, held = names(open_folder(root, "train")), names(open_folder(root, "validation"))
    assert not train & held
    assert len(train | held) == 423
    hashes = {name: int.from_bytes(digest(name), "big") for name in train | held}
    assert {name for name in held if name < "c"} == {name for name in hashes if name < "c" and hashes[name] < TENTH}
    assert 20 < len([name for name in held if name < "b"]) < 60
    assert {name for name in held if name > "c"} == {min(("c/000.jpg", "c/001.jpg"), key=hashes.__getitem__)}
    assert names(open_folder(root, "val")) == held
    assert open_folder(root, "validation").class_names == ("a", "b", "c", "d")
    # Changing these would let models trained before see held-out images.
    assert {name for name in held if "b" < name < "c"} == {f"b/{i}.jpg" for i in ("002", "006", "014", "017")}


def test_photos_that_come_in_move_none_to_the_held_out(empty_files) -> None:
    classes = [f"c{i:02d}" for i in range(20)]
    root = empty_files(files(*classes, count=10))
    trained = names(open_folder(root, "train"))
    for count in (11, 20, 80):
        empty_files(files(*classes, count=count))
        assert not trained & names(open_folder(root, "validation"))
        trained |= names(open_folder(root, "train"))


def test_never_a_whole_class_is_held_out(empty_files) -> None:
    low = [i for i in range(100) if int.from_bytes(digest(f"a/{i:03d}.jpg"), "big") < TENTH][:3]
    root = empty_files([f"a/{i:03d}.jpg" for i in low] + files("b", count=2))
    held = names(open_folder(root, "validation"))
    assert len([name for name in held if name < "b"]) == 2
    assert names(open_folder(root, "train")) - held == names(open_folder(root, "train"))


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_photo_of_two_names_is_one(empty_files, link) -> None:
    root = empty_files(files("a", count=30) + files("b", count=2))

    def photos(split: str) -> set[int]:
        found = [os.stat(f"{root}/{name}").st_ino for name in names(open_folder(root, split)) if name < "b"]
        assert len(set(found)) == len(found)
        return set(found)

    trained, held = photos("train"), photos("validation")
    assert len(trained) + len(held) == 30
    more = [f"a/{i}.jpg" for i in range(999)]
    low = [name for name in more if int.from_bytes(digest(name), "big") < TENTH]  # names that are held out
    high = [name for name in more if name not in low]
    for i in range(30):
        if os.stat(f"{root}/a/{i:03d}.jpg").st_ino in trained:
            link(f"{root}/a/{i:03d}.jpg", f"{root}/{low.pop()}")
        elif link is os.symlink:  # of several names of a file itself the last one tells
            link(f"{root}/a/{i:03d}.jpg", f"{root}/{high.pop()}")
    assert (photos("train"), photos("validation")) == (trained, held)


def test_names_in_two_unicode_forms_are_one(image_folder) -> None:
    composed, apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = image_folder(
        [
            *(f"train/{name}/0.jpg" for name in (composed, "thé")),
            *(f"val/{name}/0.jpg" for name in (apart, "thé")),
        ]
    )
    source = open_folder(root, "train")
    assert source.class_names == (composed, "thé")
    for known in (source.class_names, (apart, "thé")):  # as a checkpoint of before may have it
        held = open_folder(root, "validation", class_names=known)
        assert held.class_names == (composed, "thé")
        assert listing(held) == {f"val/{apart}/0.jpg": 0, "val/thé/0.jpg": 1}
    os.rename(f"{root}/train/{composed}", f"{root}/train/{apart}")
    assert open_folder(root, "train").fingerprint == source.fingerprint
    os.mkdir(f"{root}/train/{composed}")
    os.link(f"{root}/val/thé/0.jpg", f"{root}/train/{composed}/1.jpg")
    assert sorted(listing(open_folder(root, "train")).values()) == [0, 0, 1]


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
        (["train/a/0.jpg"], "test", r"data.train_split: no split 'test'; there are train, validation"),
        (["train/a/0.jpg", "train/b/0.jpg"], "val", r"data.train_split: val is empty: of no class in .*/train there"),
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
        (["a/0.jpg", "b/0.jpg"], "validation", r"data.train_split: validation is empty: of no class .* add photos.*"),
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


def test_a_link_to_another_class_gives_it_no_photos(image_folder, caplog) -> None:
    """Dogs would be cats, and a dog that is held out would be trained on as one."""
    root = image_folder([f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(3)])
    (Path(root) / "cat" / "more").symlink_to("../dog")
    (Path(root) / "cat" / "young").symlink_to("../../elsewhere")
    source = open_source(name="folder", directory=root, split="train+validation")
    assert sorted(source.name(i) for i in range(len(source))) == [
        f"{name}/{i}.jpg" for name in ("cat", "dog") for i in range(3)
    ]
    assert "more: is a link to elsewhere in the data; left out" in caplog.text
