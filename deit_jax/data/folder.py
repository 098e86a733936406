"""Image folders, on a disk or in a bucket: `dir/split/class/*`, or `dir/class/*` with about a tenth of every class held
out, see `layout.py`.

Held out is a photo by the hash of its path in `dir`, so that it is never trained on, whatever the seed, and photos that
come in move none from `train` to `validation`. Yet of two photos at least one is held out, and one is not: a class has
to grow beyond a few before none of them moves.

Names are told apart by their Unicode form NFC. Folders within a class folder belong to the class. Which files count,
and which folders, says `tree.py`; photos in HEIC, AVIF and TIFF are left out, not without a word.
"""

import bisect
import functools
import os
from collections.abc import Sequence

import numpy as np

from deit_jax.base.errors import UserError
from deit_jax.base.storage import SCHEME, is_bucket, named
from deit_jax.base.threads import map_in_threads
from deit_jax.data import tree
from deit_jax.data.decode import UNREAD
from deit_jax.data.layout import check_classes, find_split, in_data_dir, read_splits, subfolders
from deit_jax.data.records import Record, digest, fingerprint, nfc, relabel
from deit_jax.data.splits import parse_split

LISTED_AT_ONCE = 16  # class folders in a bucket
_TENTH = (2**128 // 10).to_bytes(16, "big")  # what a tenth of all hashes are below


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
        self.fingerprint = fingerprint((*class_names, "", *(path if path.isascii() else nfc(path) for path in files)))
        self._root, self._files, self._labels = root, files, labels

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        return self._files[index]

    def __getitem__(self, index: int) -> Record:
        label, name = int(self._labels[index]), self.name(index)
        if self._root.startswith(SCHEME):
            return Record(named(f"{self._root}/{name}", "config.data.dir").read_bytes(), label, name)
        with open(os.path.join(self._root, name), "rb") as file:
            return Record(file.read(), label, name)


def open_folder(
    directory: str, split: str, *, class_names: Sequence[str] | None = None, field: str = "split"
) -> FolderSource:
    """The images of a split expression, in a fixed pseudo-random order, so that a slice of it has every class.

    Raises `UserError` for a missing directory or split, a split without class folders, a class folder without images,
    and a folder of which it is not clear what the classes are.
    """
    if not directory:
        raise UserError("config.data.dir: missing; give the folder that holds split/class/* or class/*")
    place = named(os.path.expanduser(directory), "config.data.dir")
    root = os.path.abspath(place) if not is_bucket(place) else str(place)
    if not place.is_dir():
        raise UserError(f"config.data.dir: no directory {root}; give the folder that holds split/class/* or class/*")
    given = [nfc(name) for name in class_names or ()]
    splits = read_splits(root)
    found: set[str] = set()
    files: list[str] = []
    of_files: list[str] = []
    for part in parse_split(split, field=field):
        place = find_split(root, splits, part.name, field=field)
        classes = _scan(root, place.folder)
        check_classes(root, place.folder, classes, given)
        found.update(classes)
        photos = [path for name in classes for path in _side(classes[name], place.side)]
        if not photos:
            where = os.path.join(root, place.folder).rstrip("/")
            raise UserError(
                f"{field}: {part.name} is empty: of no class in {where} there are two photos, one to be held out; add "
                f"photos, or set config.data.eval_split=train to evaluate on those that are trained on"
            )
        taken = part.take(sorted(photos, key=_order), field=field)
        depth = len(place.folder.split("/")) if place.folder else 0
        files += taken
        of_files += [path.split("/", depth + 1)[depth] for path in taken]
    names = sorted(found)
    known = dict(zip(names, relabel(names, given or names, field=field).tolist(), strict=True))
    labels = {folder: known[nfc(folder)] for folder in set(of_files)}
    return FolderSource(root, files, np.array([labels[name] for name in of_files], np.int32), given or names)


def _order(path: str) -> bytes:
    """What photos are ordered by, and held out: a hash of the path relative to the data directory, see `nfc`."""
    return digest(path) if path.isascii() else digest(nfc(path)) + os.fsencode(path)


def _side(paths: list[str], side: str) -> list[str]:
    """The part of one class's photos that is on a side of the held-out tenth."""
    if not side:
        return paths
    ordered = sorted(paths, key=_order)
    count = min(max(bisect.bisect_left(ordered, _TENTH, key=_order), 1), len(ordered) - 1)
    return ordered[:count] if side == "validation" else ordered[count:]


def _scan(root: str, folder: str) -> dict[str, list[str]]:
    """For each class in `folder`, by name, the paths of its photos relative to `root`."""
    folders = subfolders(root, folder)
    if not folders:
        raise UserError(
            f"config.data.dir: {os.path.join(root, folder)} has no class folders; sort its images into class/*"
        )
    if any(entry.is_symlink() for entry in folders):
        _check_distinct(folders)
    paths = [f"{folder}/{entry.name}" if folder else entry.name for entry in folders]
    # A bucket takes a tenth of a second to answer, and several answers as long as one.
    many = functools.partial(map_in_threads, LISTED_AT_ONCE) if root.startswith(SCHEME) else map
    classes: dict[str, list[str]] = {}
    for entry, photos in zip(folders, many(functools.partial(_class, root), paths), strict=True):
        classes.setdefault(nfc(entry.name), []).extend(photos)
    return classes


def _check_distinct(folders: Sequence[tree.Entry]) -> None:
    """Refuses two names of one class folder."""
    places: dict[str, str] = {}
    for entry in folders:
        other = places.setdefault(os.path.realpath(entry.path), entry.path)
        if other != entry.path:
            raise UserError(f"config.data.dir: {other} and {entry.path} are one folder; remove the link")


def _of_another(root: str, folder: str, place: str) -> bool:
    """Whether a folder in a class folder is a link to elsewhere in the data, whose photos are another's."""
    own, data, real = (os.path.join(os.path.realpath(path), "") for path in (os.path.join(root, folder), root, place))
    if real.startswith(own) or not real.startswith(data):
        return False
    tree.tell(f"{place}: is a link to elsewhere in the data; left out, since its photos are found there")
    return True


def _class(root: str, folder: str) -> list[str]:
    """The paths of a class folder's photos that can be read, relative to `root`."""
    start = len(os.path.join(root, ""))
    with in_data_dir():
        walked = tree.walk(os.path.join(root, folder))
        entries = [entry for place, own in walked if not _of_another(root, folder, place) for entry in own]
        found = [entry.path[start:] for entry in entries]
        if len({entry.inode() for entry in entries}) < len(found) or any(entry.is_symlink() for entry in entries):
            # Of several names a photo has the file's, or the last: one that is added cannot make it held out.
            files = sorted(entries, key=lambda entry: (not entry.is_symlink(), _order(entry.path[start:])))
            stats = [os.stat(entry.path) for entry in files]
            last = {(stat.st_dev, stat.st_ino): file.path[start:] for file, stat in zip(files, stats, strict=True)}
            found = list(last.values())
    read = [path for path in found if not path.lower().endswith(UNREAD)]
    unread = len(found) - len(read)
    where, convert = os.path.join(root, folder), "convert them to JPEG, as by `magick mogrify -format jpg *.heic`"
    if not read:
        mend = f" but {unread} in HEIC, AVIF or TIFF; {convert}" if unread else "; fill or remove it"
        raise UserError(f"config.data.dir: class folder {where} has no JPEG, PNG, WebP, GIF or BMP image{mend}")
    if unread:
        tree.tell(f"{where}: {unread} photos in HEIC, AVIF or TIFF are left out; {convert}")
    return read
