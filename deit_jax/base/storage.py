"""Where things are kept: in a folder of this machine, in one that hosts share, or in a bucket, `gs://bucket/name`.

A place is made once, of what a flag or a field names, and never through pathlib: that would make a relative folder
`gs:` of a bucket without a word. A folder's is a `Path`; a bucket's is a path of etils.epath, with most of the same
methods, but without links, locks, appending and replacing in one stroke.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from deit_jax.base.errors import OutOfReach, UserError

os.environ["EPATH_USE_TF"] = "false"  # else epath would read buckets by TensorFlow, where that is installed

if TYPE_CHECKING:
    from etils import epath

    Place: TypeAlias = Path | epath.Path
else:
    Place = PurePath  # of which both are

T = TypeVar("T")

SCHEME = "gs://"
COMMITTED = "commit_success.txt"  # what Orbax writes last; and so does `copy_whole`
UNFINISHED = ".orbax-checkpoint-tmp"  # in the names of steps that are being saved, or removed
SCRATCH = "deit_jax-scratch-"  # begins the names of folders that are made here, and nobody needs after their process


def place(given: str, flag: str) -> Place:
    """The absolute place that a flag or a field of the config names.

    Raises:
        UserError: it is of another kind than those that are read; or no name for one.
    """
    try:
        path = named(given, flag).expanduser().absolute()
        str(path).encode()
    except RuntimeError as error:
        raise UserError(f"{flag}: {given} begins with ~, and there is no such home folder; name it in full") from error
    except UnicodeEncodeError as error:  # the libraries that write arrays take text alone
        raise UserError(f"{flag}: {given} is no UTF-8; choose another name") from error
    return path


def named(given: str, flag: str) -> Place:
    """As `place`, but as it is named: a folder of this machine may be relative."""
    if given.startswith(SCHEME):
        return _in_bucket(given, flag)
    if "://" in given:
        scheme = given.partition("://")[0]
        raise UserError(
            f"{flag}: {given} is a URL of {scheme}, which is not read; name a folder or file of this machine, or "
            f"one in a bucket as {SCHEME}bucket/name"
        )
    if given.startswith("gs:"):  # else a relative folder of that name
        raise UserError(f"{flag}: {given} names no place in a bucket; write {SCHEME}bucket/name")
    return Path(given)


def _in_bucket(given: str, flag: str) -> Place:
    bucket, _, name = given.removeprefix(SCHEME).partition("/")
    parts = name.rstrip("/").split("/")
    if not bucket or not name or not all(parts) or {".", ".."} & {*parts}:
        raise UserError(f"{flag}: {given} names no place in a bucket; write {SCHEME}bucket/name")
    if not given.isprintable():
        raise UserError(f"{flag}: {given} has signs that no name in a bucket should have; choose another name")
    try:
        from deit_jax.base.buckets import BucketPath  # a second, which folders need not wait for
    except ImportError as error:
        raise UserError(
            f"{flag}: {given}: the package {error.name} is missing; pip install 'deit_jax[gcs]', which reads buckets"
        ) from error
    return BucketPath(given)


def told(error: OSError, place: Any, mend: str = "") -> str:
    """Why a place cannot be read or written, and the mend: that which is given is for one that is neither full nor in a
    bucket."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{reason}; make room"
    if not is_bucket(place):
        return f"{reason}; {mend}" if mend else reason
    match error:
        case FileNotFoundError() if not place.has_bucket():
            bucket = f"{SCHEME}{place.bucket}"
            return f"there is no bucket {bucket}; make it (gcloud storage buckets create {bucket}), or name another"
        case PermissionError():
            return (
                f"{reason}; log in (gcloud auth application-default login), or get the role Storage Object User on "
                f"{SCHEME}{place.bucket}"
            )
        case _:
            return reason


def is_bucket(place: Place) -> bool:
    """Whether a place is in a bucket."""
    return not isinstance(place, Path)


def is_step(name: str) -> bool:
    """Whether a folder's name is the number of a step, written as a run writes it."""
    return len(name) <= 10 and name.isdecimal() and str(int(name)) == name


def within(function: Callable[[], T], place: Place, *, nbytes: int = 0) -> T:
    """The result of a function of a library that moves so many bytes to or from a place.

    Raises:
        OutOfReach: the place is in a bucket, which does not answer.
    """
    if not is_bucket(place):
        return function()
    from deit_jax.base import buckets

    return buckets.within(function, place, nbytes=nbytes)


def copy_whole(source: Path, destination: Any) -> None:
    """Copies a file, or all files of a folder, into a bucket; what says that all are there is the last.

    Raises:
        OSError: the bucket did not take them.
    """
    files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
    for file in sorted(files, key=lambda file: (file.name == COMMITTED, -len(file.parts), file)):
        destination.joinpath(file.relative_to(source)).store(file)


@contextlib.contextmanager
def here(place: Any) -> Iterator[Path]:
    """A file or folder on this machine: itself, or for the block a copy of what is in a bucket.

    What a `UserError` says in the block of the copy, it says of the place.

    Raises:
        OSError: the bucket does not give it.
    """
    if not is_bucket(place):
        yield place
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / place.name
        for source in place.files():
            target = copy / source.relative_to(place)
            target.parent.mkdir(parents=True, exist_ok=True)
            source.fetch(target)
        try:
            yield copy
        except UserError as error:
            raise UserError(str(error).replace(folder, str(place.parent))) from error


def remove(place: Any) -> None:
    """Removes a folder with all that is in it, as far as that can be."""
    if is_bucket(place):
        with contextlib.suppress(OSError, OutOfReach):
            place.rmtree()
    else:
        shutil.rmtree(place, ignore_errors=True)


def scratch() -> Path:
    """A new folder of this machine, for what nobody needs after the process; what kills have left of others is removed.

    The process holds its lock. To keep the folder for longer, give it another name.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*"):
        with contextlib.suppress(OSError):  # in use, another user's, or on a disk without locks
            if time.time() - left.stat().st_mtime > 60:  # else it may be about to be locked
                lock = _locked(left)
                try:
                    remove(left)
                finally:
                    os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH))
    with contextlib.suppress(OSError):
        _locked(folder)
    return folder


def _locked(folder: Path) -> int:
    """The folder, open and locked; `OSError` where another has it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def tensorstore(place: Any) -> dict[str, str]:
    """TensorStore's description of a place."""
    if is_bucket(place):
        return {"driver": "gcs", "bucket": place.bucket, "path": place.key}
    return {"driver": "file", "path": str(place)}
