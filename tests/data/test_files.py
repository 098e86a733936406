"""Which images a command line means."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deit_jax.base.errors import UserError
from deit_jax.data.decode import CorruptImage, decode
from deit_jax.data.files import find_images, read_image
from deit_jax.data.transforms import eval_transform


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.jpg", "a.PNG", "notes.txt", ".hidden.jpg", "in/c.webp", "in/d.heic", ".cache/e.jpg", "odd[1].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["."], ["./a.PNG", "./b.jpg", "./odd[1].jpg", "./in/c.webp", "./in/d.heic"]),
        (["b.jpg", "notes.txt", "in"], ["b.jpg", "notes.txt", "in/c.webp", "in/d.heic"]),
        (["*.jpg"], ["b.jpg", "odd[1].jpg"]),
        (["i*"], ["in/c.webp", "in/d.heic"]),
        (["**/*.?e*"], ["in/c.webp", "in/d.heic"]),
        (["odd[1].jpg"], ["odd[1].jpg"]),  # the file, not the pattern
        (["in", "in/c.webp", "b.jpg", "b.jpg"], ["in/c.webp", "in/d.heic", "b.jpg"]),
        (["missing.jpg", "none*.jpg"], ["missing.jpg", "none*.jpg"]),
        ([".hidden.jpg"], [".hidden.jpg"]),
    ],
)
def test_what_arguments_stand_for(tree: Path, arguments: list[str], found: list[str]) -> None:
    assert find_images(arguments) == found


def test_home_and_links(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tree))
    assert find_images(["~/in/*.webp"]) == [str(tree / "in" / "c.webp")]
    (tree / "in" / "circle").symlink_to(tree / "in")
    (tree / "link").symlink_to(tree / "in")
    assert find_images(["link"]) == ["link/c.webp", "link/d.heic"]


def test_no_images_is_an_error(tree: Path) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match=r"no images in empty; known by their suffixes: \.jpg"):
        find_images(["empty"])
    with pytest.raises(UserError, match="no images: name files"):
        find_images([])


def test_a_folder_that_cannot_be_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def forbidding(path: str) -> Iterator[os.DirEntry]:
        if path == "./in":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    with pytest.raises(UserError, match=r"^cannot list \./in: Permission denied; make it readable$"):
        find_images(["."])


def test_an_image_is_read_as_evaluation_does(tmp_path: Path, photo, encode) -> None:
    data = encode(photo(37, 53), "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    found = read_image(str(tmp_path / "a.jpg"), image_size=19, crop_ratio=0.9)
    np.testing.assert_array_equal(found, eval_transform(decode(data), size=19, crop_ratio=0.9), strict=True)


def test_an_image_that_cannot_be_read(tree: Path) -> None:
    os.mkfifo("pipe.jpg")
    for path, reason in {
        "pipe.jpg": "no file, but a pipe",
        "b.jpg": "these 0 bytes",
        "gone.jpg": "No such file",
        "in": "Is a directory",
    }.items():
        with pytest.raises(CorruptImage, match=f"^{reason}"):
            read_image(path, image_size=19, crop_ratio=0.9)


def test_a_file_that_would_fill_the_memory_is_not_read(tmp_path) -> None:
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(CorruptImage, match=r"^more than 1 GiB, not read; make the image smaller$"):
        read_image(str(tmp_path / "sparse.png"), image_size=24, crop_ratio=1.0)
