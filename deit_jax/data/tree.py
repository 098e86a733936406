"""Folders on a disk, or in a bucket: what in them are photos, and which folders in them are looked into.

Photos are regular files with a photo's suffix. Hidden names are passed over, and so are the folders that systems and
storage devices leave beside people's own. Links are followed, but not to a folder that the link lies in.
"""

import dataclasses
import errno
import functools
import logging
import operator
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deit_jax.base.storage import SCHEME, named
from deit_jax.base.text import printable
from deit_jax.data.decode import SUFFIXES, UNREAD

SYSTEM_FOLDERS = {
    *("__macosx", "network trash folder", "temporary items"),  # macOS
    *("$recycle.bin", "recycler", "system volume information", "found.000"),  # Windows
    "lost+found",  # Linux
    *("@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "~snapshot"),  # network storage
    "__pycache__",
}


@dataclasses.dataclass(frozen=True)
class Object:
    """A photo or a folder in a bucket: what is asked of an `os.DirEntry`."""

    name: str
    path: str

    def is_symlink(self) -> bool:
        return False

    def inode(self) -> str:
        return self.path


Entry = os.DirEntry[str] | Object

_PHOTOS = SUFFIXES + UNREAD
_by_name = operator.attrgetter("name")

log = logging.getLogger(__name__)


def walk(folder: str) -> Iterator[tuple[str, list[Entry]]]:
    """A folder and those below it, each with its own photos, in no order; subfolders by name.

    Each is visited once, and linked ones last, so that a link changes no path of a photo that is there anyway.

    Raises:
        OSError: a folder cannot be listed.
    """
    waiting, linked, seen = [folder], deque[str](), set()
    while waiting or linked:
        path = waiting.pop() if waiting else linked.popleft()
        identity = _identity(path)
        if identity in seen:
            continue
        seen.add(identity)
        own, subfolders = listed(path)
        yield path, own
        linked += [entry.path for entry in subfolders if entry.is_symlink()]
        waiting += [entry.path for entry in reversed(subfolders) if not entry.is_symlink()]


def listed(folder: str) -> tuple[list[Entry], list[Entry]]:
    """The photos in a folder, and, sorted by name, the subfolders that are looked into.

    Says on stderr what is left out: pipes, sockets and devices called like photos, links that lead nowhere.

    Raises:
        OSError: it cannot be listed, or what a link in it leads to cannot be looked at.
    """
    if folder.startswith(SCHEME):
        return _listed_in_bucket(folder)
    own, subfolders, no_files = list[Entry](), list[Entry](), []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            photo = name.lower().endswith(_PHOTOS)
            if photo and entry.is_file(follow_symlinks=False):
                own.append(entry)
                continue
            kind = _kind(entry)
            if photo and kind == "file":
                own.append(entry)
            elif kind == "folder" and not is_system(name) and not _leads_up(entry):
                subfolders.append(entry)
            elif not kind and (photo or entry.is_symlink()):
                no_files.append(name)
    if no_files:
        tell(f"{folder}: {len(no_files)} left out that are no files or lead nowhere: {', '.join(sorted(no_files)[:3])}")
    return own, sorted(subfolders, key=_by_name)


def _listed_in_bucket(folder: str) -> tuple[list[Entry], list[Entry]]:
    place: Any = named(folder, "config.data.dir")
    own, subfolders = list[Entry](), list[Entry]()
    for name, is_folder in place.entries():
        entry = Object(name, f"{place}/{name}")
        if is_folder and not name.startswith(".") and not is_system(name):
            subfolders.append(entry)
        elif not is_folder and not name.startswith(".") and name.lower().endswith(_PHOTOS):
            own.append(entry)
    return own, sorted(subfolders, key=_by_name)


def _identity(folder: str) -> tuple[int, int] | str:
    """What two names of one folder have in common."""
    if folder.startswith(SCHEME):
        return folder
    stat = os.stat(folder)
    return stat.st_dev, stat.st_ino


@functools.cache
def tell(line: str) -> None:
    """Says, once, on stderr what people should know of how their folders are read."""
    log.warning(printable(line))


def is_system(name: str) -> bool:
    """Whether a folder of that name belongs to a system, not to people."""
    return name.lower() in SYSTEM_FOLDERS


def _kind(entry: os.DirEntry[str]) -> str:
    """ "file", "folder", or "" for pipes, sockets, devices and links that lead to nothing."""
    try:
        return "file" if entry.is_file() else "folder" if entry.is_dir() else ""
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return ""
        raise


def _leads_up(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link to a folder that it lies in, directly or by links: it would never end."""
    if not entry.is_symlink():
        return False
    target = os.path.join(os.path.realpath(entry.path), "")
    return any(
        os.path.join(os.path.realpath(parent), "").startswith(target)
        for parent in Path(os.path.abspath(entry.path)).parents
    )
