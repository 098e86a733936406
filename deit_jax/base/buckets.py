"""Files in a bucket of Google Cloud Storage: paths of etils.epath, by gcsfs, each call of which comes to an end.

The libraries ask a bucket that does not answer again for half an hour, or wait for ever. Here a call has a deadline,
and what goes wrong is an error of the system's, as it is with a disk: `FileNotFoundError`, `PermissionError`, or
`OutOfReach` where waiting helps.
"""

import errno
import functools
import logging
import os
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

# It asks for the kind of the bucket before each call, with a permission of its own; ordinary calls work on all kinds.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import fsspec.config
import gcsfs  # noqa: F401, epath finds it by its name
from etils.epath import backend, gpath
from google.auth import exceptions as auth

from deit_jax.base.errors import OutOfReach

T = TypeVar("T")

PATIENCE = 90.0  # seconds for a call that moves little data; gcsfs asks again for half a minute
SPEED = 2e6  # bytes a second, which a call that moves data may fall to
# They tell of each failure with a traceback, and what comes to us as an exception is told in a line.
for name in ("gcsfs", "google.auth"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
# What another process has written is seen at once.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def within(function: Callable[[], T], where: object, *, nbytes: int = 0) -> T:
    """The result of a function, which is left alone where it takes too long.

    Args:
        where: the place that it is about, for the message.
        nbytes: that it moves.

    Raises:
        OutOfReach: it took longer than it may.
    """
    answer: futures.Future[T] = futures.Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    seconds = PATIENCE + nbytes / SPEED
    done, _ = futures.wait([answer], seconds)
    if not done:
        raise OutOfReach(errno.ETIMEDOUT, f"no answer within {seconds:.0f} seconds", str(where))
    return answer.result()


class BucketPath(gpath.PosixGPath):
    """`gs://bucket/name`, a name in a bucket; a folder is what names begin with, and needs no making."""

    @property
    def _backend(self) -> Any:
        return _Patient()

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.parts[2] if len(self.parts) > 2 else ""

    @property
    def key(self) -> str:
        """The name in the bucket."""
        return "/".join(self.parts[3:])

    def absolute(self) -> "BucketPath":
        return self

    def expanduser(self) -> "BucketPath":
        return self

    def read_bytes(self) -> bytes:
        return ask(self, "cat_file")

    def write_bytes(self, data: bytes) -> None:
        ask(self, "pipe_file", data, nbytes=len(data))

    def write_new(self, data: bytes) -> None:
        """As `write_bytes`; `FileExistsError` where the name is there already, of two writers for one of them."""
        ask(self, "pipe_file", data, mode="create")

    def fetch(self, file: Path) -> None:
        """Copies the content to a file of this machine."""
        ask(self, "get_file", str(file), nbytes=self.stat().length)

    def store(self, file: Path) -> None:
        """Copies the content of a file of this machine here; whole, or it is as it was before."""
        ask(self, "put_file", str(file), turned=True, nbytes=file.stat().st_size)

    def files(self) -> "list[BucketPath]":
        """All below it, however deep."""
        return [type(self)(f"gs://{name}") for name in ask(self, "find")]

    def rename(self, target: Any) -> Any:
        """Moves all below it, one after another."""
        ask(self, "mv", str(target), recursive=True, nbytes=_LARGE)
        return target


_LARGE = 10**9  # where nobody has counted the bytes


def ask(path: BucketPath, method: str, *arguments: Any, nbytes: int = 0, turned: bool = False, **options: Any) -> Any:
    """What a method of gcsfs says of a path; `turned`: the path is its second argument."""
    system = backend.fsspec_backend.fs(path)
    order = [*arguments, str(path)] if turned else [str(path), *arguments]
    return _ask(functools.partial(getattr(system, method), *order, **options), path, nbytes)


def _ask(function: Callable[[], T], where: object, nbytes: int = 0) -> T:
    try:
        return within(function, where, nbytes=nbytes)
    except OutOfReach:
        raise
    except Exception as error:
        raise _of_the_system(error, str(where)) from error


class _Patient:
    """epath's way to gcsfs, with a deadline for each call."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(backend.fsspec_backend, name)
        return lambda path, *arguments, **options: _ask(functools.partial(method, path, *arguments, **options), path)


def _of_the_system(error: Exception, where: str) -> Exception:
    """The error of the system's that an error of the libraries' stands for."""
    text, code = " ".join(str(error).split())[:200], str(getattr(error, "code", ""))
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "is not there", where)
    if isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError | ImportError | NotImplementedError):
        return error
    refused = isinstance(error, auth.RefreshError | auth.DefaultCredentialsError)
    if refused or code in ("401", "403") or text.startswith("Forbidden"):
        return PermissionError(errno.EACCES, f"no permission ({text})", where)
    if isinstance(error, ValueError) or (code.startswith("4") and code not in ("408", "429")):
        return OSError(errno.EINVAL, text, where)
    return OutOfReach(errno.EAGAIN, text or type(error).__name__, where)
