"""Image folders: `dir/split/class/*`, or `dir/class/*` with a fixed tenth of every class held out.

`dir` holds splits when a subfolder named train, val, validation or test has subfolders of its own, or when all its
subfolders have such names; every visible subfolder is then a split. Otherwise its subfolders are the classes, and a
tenth of each (at least one image where there are two) is the split `validation`, the rest `train`. Which tenth
depends on the file names alone, so it is never trained on, whatever the seed. Folders within a class folder belong
to the class. Files that are not JPEG, PNG, WebP, GIF or BMP by suffix, and hidden ones, are ignored, but for HEIC,
AVIF and TIFF photos not without a word.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np

from deit_jax.base.errors import UserError
from deit_jax.data.decode import SUFFIXES, UNREAD
from deit_jax.data.records import Record, digest, fingerprint, relabel
from deit_jax.data.splits import parse_split, unknown_split

SPLIT_NAMES = ("train", "val", "validation", "test")
ALIASES = {"val": "validation", "validation": "val"}

log = logging.getLogger(__name__)


class FolderSource:
    """Image files under `root`, read when asked for.

    Args:
        root: the data directory.
        files: paths relative to `root`.
        labels: int32 `[files]`, indices into `class_names`.
        class_names: the name of each class.
    """

    def __init__(self, root: str, files: Sequence[str], labels: np.ndarray, class_names: Sequence[str]):
        self.class_names = tuple(class_names)
        self.fingerprint = fingerprint((*class_names, "", *files))
        self._root, self._files, self._labels = root, files, labels

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index]

    def __getitem__(self, index: int) -> Record:
        with open(os.path.join(self._root, self._files[index]), "rb") as file:
            return Record(file.read(), int(self._labels[index]), self.name(index))


def open_folder(
    directory: str, split: str, *, class_names: Sequence[str] | None = None, field: str = "split"
) -> FolderSource:
    """The images of a split expression, in a fixed pseudo-random order, so that a slice of it has every class.

    Raises `UserError` for a missing directory or split, a split without class folders, and a class folder without
    images.
    """
    if not directory:
        raise UserError("config.data.dir: missing; give the folder that holds split/class/* or class/*")
    root = os.path.abspath(os.path.expanduser(directory))
    if not os.path.isdir(root):
        raise UserError(f"config.data.dir: no directory {root}; give the folder that holds split/class/* or class/*")
    has_splits = _has_splits(root)
    found: set[str] = set()
    files: list[str] = []
    for part in parse_split(split, field=field):
        folder = _split_folder(root, part.name, field=field) if has_splits else ""
        classes = _scan(root, folder)
        found.update(classes)
        if not has_splits:
            classes = {name: _held_out(paths, part.name, field=field) for name, paths in classes.items()}
        paths = sorted((path for paths in classes.values() for path in paths), key=digest)
        files.extend(part.take(paths, field=field))
    names = sorted(found)
    class_names = class_names or names
    labels = dict(zip(names, relabel(names, class_names, field=field), strict=True))
    depth = 1 if has_splits else 0
    return FolderSource(root, files, np.array([labels[path.split("/")[depth]] for path in files]), class_names)


def _has_splits(root: str) -> bool:
    """Whether the subfolders of `root` are splits, not classes."""
    folders = _subfolders(root)
    if not folders:
        raise UserError(f"config.data.dir: {root} has no subfolders; images belong in split/class/* or class/*")
    named = [name for name in folders if name in SPLIT_NAMES]
    return named == folders or any(_subfolders(os.path.join(root, name)) for name in named)


def _split_folder(root: str, split: str, *, field: str) -> str:
    available = _subfolders(root)
    for name in (split, ALIASES.get(split)):
        if name in available:
            return name
    raise unknown_split(split, available, field=field)


def _held_out(paths: list[str], split: str, *, field: str) -> list[str]:
    """The part of one class's images that belongs to a split of a folder without splits."""
    ordered = sorted(paths, key=digest)
    count = max(1, round(len(ordered) / 10)) if len(ordered) > 1 else 0
    if split == "train":
        return ordered[count:]
    if split in ALIASES:
        return ordered[:count]
    raise unknown_split(split, ("train", "validation"), field=field)


def _scan(root: str, folder: str) -> dict[str, list[str]]:
    """For each class folder in `folder` the paths of its images, relative to `root`."""
    names = _subfolders(os.path.join(root, folder))
    if not names:
        raise UserError(
            f"config.data.dir: {os.path.join(root, folder)} has no class folders; sort its images into class/*"
        )
    classes = {}
    for name in names:
        path = f"{folder}/{name}" if folder else name
        found = list(_images(root, path))
        classes[name] = [image for image in found if not image.lower().endswith(UNREAD)]
        unread = len(found) - len(classes[name])
        where, convert = os.path.join(root, path), "convert them to JPEG, as by `magick mogrify -format jpg *.heic`"
        if not classes[name]:
            mend = f" but {unread} in HEIC, AVIF or TIFF; {convert}" if unread else "; fill or remove it"
            raise UserError(f"config.data.dir: class folder {where} has no JPEG, PNG, WebP, GIF or BMP image{mend}")
        if unread:
            log.warning("%s: %d photos in HEIC, AVIF or TIFF are left out; %s", where, unread, convert)
    return classes


def _images(root: str, folder: str) -> Iterator[str]:
    with _listed(os.path.join(root, folder)) as entries:
        for entry in entries:
            path = f"{folder}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(SUFFIXES + UNREAD):
                yield path
            elif entry.is_dir():
                yield from _images(root, path)


def _subfolders(directory: str) -> list[str]:
    with _listed(directory) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _listed(directory: str) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
    try:
        return os.scandir(directory)
    except OSError as error:
        raise UserError(f"config.data.dir: cannot list {directory}: {error.strerror}; make it readable") from error
