"""What in folders is taken for photos: odd files, odd folders and links."""

import os
import socket
from pathlib import Path

import pytest

from deit_jax.base.errors import UserError
from deit_jax.data.files import find_images
from deit_jax.data.sources import open_source
from deit_jax.data.tree import walk

PHOTOS = {"cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg"}


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for photo in PHOTOS:
        (root / photo).parent.mkdir(parents=True, exist_ok=True)
        (root / photo).touch()
    return root


def check(root: Path, found: set[str] = PHOTOS) -> None:
    """Training and prediction find the same photos, each once."""
    source = open_source(name="folder", directory=str(root), split="train+validation")
    assert source.class_names == ("cat", "dog")
    assert sorted(source.name(i) for i in range(len(source))) == sorted(found)
    assert sorted(find_images([str(root)])) == sorted(f"{root}/{name}" for name in found)
    assert sorted(find_images([f"{root}/**/*.jpg"])) == sorted(f"{root}/{name}" for name in found)


def test_folders_of_systems_are_passed_over(pets) -> None:
    for name in ("@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN", "System Volume Information", ".ipynb_checkpoints"):
        for place in (pets / name, pets / "cat" / name):
            (place / "0.jpg").mkdir(parents=True)
            (place / "0.jpg" / "THUMB.jpg").touch()
            (place / "1.jpg").touch()
    check(pets)
    assert find_images([f"{pets}/*/1.jpg"]) == [f"{pets}/cat/1.jpg", f"{pets}/dog/1.jpg"]
    assert find_images([f"{pets}/@eaDir/1*"]) == [f"{pets}/@eaDir/1.jpg"]  # asked for by name
    assert len(find_images([f"{pets}/@eaDir"])) == 2


def test_a_folder_with_a_photos_name_is_a_folder(pets) -> None:
    (pets / "cat" / "burst.jpg").mkdir()
    (pets / "dog" / "IMG.HEIC").mkdir()
    (pets / "cat" / "burst.jpg" / "2.jpg").touch()
    check(pets, PHOTOS | {"cat/burst.jpg/2.jpg"})


def test_what_is_no_file_is_left_out(pets, caplog, monkeypatch) -> None:
    os.mkfifo(pets / "cat" / "live.jpg")
    os.mkfifo(pets / "cat" / "live")
    monkeypatch.chdir(pets / "dog")  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.png")
    (pets / "dog" / "zero.jpg").symlink_to("/dev/zero")
    (pets / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    (pets / "cat" / "self.jpg").symlink_to("self.jpg")
    (pets / "loop").symlink_to("loop")
    source = open_source(name="folder", directory=str(pets), split="train+validation")
    assert {source.name(i) for i in range(len(source))} == PHOTOS
    assert {os.path.relpath(path, pets) for path in find_images([str(pets)])} == PHOTOS
    told = [record.getMessage() for record in caplog.records]
    assert f"{pets}: 1 left out that are no files or lead nowhere: loop" in told
    assert f"{pets}/cat: 3 left out that are no files or lead nowhere: gone.jpg, live.jpg, self.jpg" in told
    assert f"{pets}/dog: 2 left out that are no files or lead nowhere: s.png, zero.jpg" in told


def test_links_to_where_they_lie_are_not_followed(pets) -> None:
    for link, target in {
        "cat/all": ".",
        "cat/up": "..",
        "cat/above": "../..",
        "cat/root": "/",
        "here": ".",
        "parent": "..",
    }.items():
        (pets / link).symlink_to(target)
    ring = pets.parent / "ring" / "ring"
    ring.mkdir(parents=True)
    (ring / "back").symlink_to(pets)  # by way of a link, to what that lies in
    (ring / "on").symlink_to(ring.parent)
    (ring / "2.jpg").touch()
    (pets / "cat" / "ring").symlink_to(ring)
    check(pets, PHOTOS | {"cat/ring/2.jpg"})


def test_linked_folders_come_once_and_last(pets) -> None:
    (pets / "cat" / "young").mkdir()
    (pets / "cat" / "young" / "2.jpg").touch()
    (pets / "cat" / "alias").symlink_to("young")
    (pets / "cat" / "dogs").symlink_to("../dog")
    assert [folder for folder, _ in walk(str(pets / "cat"))] == [
        f"{pets}/cat",
        f"{pets}/cat/young",
        f"{pets}/cat/dogs",
    ]


def test_two_names_of_a_class_folder_are_refused(pets) -> None:
    (pets / "kitty").symlink_to("cat")
    with pytest.raises(UserError, match=r"^config\.data\.dir: .*/cat and .*/kitty are one folder; remove the link$"):
        check(pets)


@pytest.mark.parametrize("refused", ["cat", "cat/deep"])
def test_a_folder_that_the_system_refuses_is_one_line(pets, monkeypatch, refused: str) -> None:
    scandir = os.scandir
    (pets / "cat" / "deep").mkdir()

    def forbidding(path: str):
        if path == f"{pets}/{refused}":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    with pytest.raises(
        UserError, match=rf"^config\.data\.dir: cannot list {pets}/{refused}: Permission denied; make it"
    ):
        open_source(name="folder", directory=str(pets), split="train")
    with pytest.raises(UserError, match=rf"^cannot list {pets}/{refused}: Permission denied; make it readable$"):
        find_images([str(pets)])
