"""Image folders and TFDS data sets in a bucket are what they are on a disk."""

from pathlib import Path

import pytest
from test_tfds import prepare

from deit_jax.base.errors import UserError
from deit_jax.base.storage import copy_whole, place
from deit_jax.data.decode import CorruptImage
from deit_jax.data.folder import open_folder
from deit_jax.data.sources import open_source

__all__ = ["prepare"]  # a fixture


def same(source, other) -> None:
    assert (source.class_names, source.fingerprint, len(source)) == (other.class_names, other.fingerprint, len(other))
    for i in range(len(other)):
        assert source[i] == other[i]


@pytest.mark.parametrize(
    "paths",
    [
        [f"train/{name}/{i}.jpg" for name in ("cat", "dog") for i in range(4)] + ["val/cat/0.png", "val/dog/b/1.jpg"],
        [f"{name}/{i}.jpg" for name in ("crème", "a b") for i in range(12)],
        [f"train/{name}/{i}.jpg" for name in "ab" for i in range(3)] + ["train/a/.hidden.jpg", "train/@eaDir/0.jpg"],
    ],
)
def test_image_folders(image_folder, paths, bucket) -> None:
    root = image_folder([*paths, "train/a/notes.txt"] if paths[0].startswith("train/a") else paths)
    copy_whole(Path(root), place(bucket, ""))
    for split in ("train", "validation"):
        same(open_folder(bucket, split), open_folder(root, split))


def test_photos_and_folders_that_are_not_there(image_folder, bucket) -> None:
    root = place(bucket, "")
    copy_whole(Path(image_folder(["train/a/0.jpg", "train/b/0.jpg"])), root)
    source = open_folder(bucket, "train")
    (root / source.name(0)).unlink()
    with pytest.raises(FileNotFoundError, match=source.name(0)):
        source[0]
    with pytest.raises(UserError, match=rf"^config\.data\.dir: no directory {bucket}/nothing; give the folder"):
        open_folder(f"{bucket}/nothing", "train")
    with pytest.raises(UserError, match=r"^config\.data\.dir: s3://a/b is a URL of s3, which is not read"):
        open_folder("s3://a/b", "train")


def test_data_sets_of_tfds(prepare, bucket) -> None:
    directory = prepare()
    copy_whole(Path(directory), place(bucket, ""))
    for split in ("train[:50%]+test", "test"):
        there, here = (open_source(name="toy", directory=where, split=split) for where in (bucket, directory))
        same(there, here)
    with pytest.raises(UserError, match=f"no data set 'other' under {bucket} or in TFDS"):
        open_source(name="other", directory=bucket, split="train")
    with pytest.raises(
        UserError, match=r"^config\.data\.dir: gs://nowhere/x/toy cannot be read: there is no bucket gs:/"
    ):
        open_source(name="toy", directory="gs://nowhere/x", split="train")
    source = open_source(name="toy", directory=bucket, split="test")
    file = place(bucket, "") / "toy" / "1.2.0" / "toy-test.array_record-00000-of-00001"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"a file is damaged or not there: gs://.*toy-test"):
        open_source(name="toy", directory=bucket, split="test")
    assert len(source) == 5
    for again in (source, open_source(name="toy", directory=bucket, split="train")):
        again._examples = [None] * len(again)  # whatever ArrayRecord makes of damage
    with pytest.raises(CorruptImage, match=r"toy-train.*\[0\]: cannot be read"):
        again[0]
    file.unlink()
    with pytest.raises(FileNotFoundError):
        source[0]
