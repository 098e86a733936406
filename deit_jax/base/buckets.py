"""Files in a bucket of Google Cloud Storage: paths of etils.epath, by gcsfs, each call of which comes to an end.

The libraries ask a bucket that does not answer again for half an hour, or wait for ever. Here a call has a deadline,
and what goes wrong is an error of the system's, as with a disk, or `OutOfReach` where waiting helps.
"""

import errno
import functools
import logging
import os
import re
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, TypeVar

# It asks for the kind of the bucket before each call, with a permission of its own; ordinary calls work on all kinds.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

import aiohttp
import fsspec.config
import fsspec.exceptions
import gcsfs.retry
import requests
from etils.epath import backend, gpath
from google.auth import exceptions as auth

from deit_jax.base.errors import OutOfReach
from deit_jax.base.threads import begun

T = TypeVar("T")

PATIENCE = 90.0  # seconds for a call that moves little data; gcsfs asks again for half a minute
SPEED = 2e6  # bytes a second, which a call that moves data may fall to
MANY = 10**9  # bytes, where nobody has counted them
# What waiting helps against, as the libraries and TensorStore have it; and what it does not.
PASSING = (
    *(aiohttp.ClientError, requests.RequestException, auth.TransportError, fsspec.exceptions.FSTimeoutError),
    *(TimeoutError, ConnectionError),
)
PASSING_STATUS = r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|RESOURCE_EXHAUSTED)\b"
REFUSED = (auth.RefreshError, auth.DefaultCredentialsError)
REFUSED_STATUS = r"^Forbidden\b|\b(PERMISSION_DENIED|UNAUTHENTICATED)\b"

# They tell of each failure with a traceback, and what comes to us as an exception is told in a line.
for name in ("gcsfs", "google.auth"):
    logging.getLogger(name).setLevel(logging.CRITICAL)
# What another process has written is seen at once.
fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False


def within(function: Callable[[], T], where: object, *, nbytes: int = 0) -> T:
    """The result of a function of a library, which is left alone where it takes too long.

    Args:
        where: the place that it is about, for messages.
        nbytes: that it moves.

    Raises:
        OutOfReach: it took longer than it may, or says that the bucket does not answer.
        PermissionError, FileNotFoundError: of a bucket, or of an object.
    """
    answer = begun(function)
    seconds = PATIENCE + nbytes / SPEED
    done, _ = futures.wait([answer], seconds)
    if not done:
        raise OutOfReach(where, f"no answer within {seconds:.0f} seconds")
    try:
        return answer.result()
    except Exception as error:
        known = _known(error, where)
        if known is error:
            raise
        raise known from error


class BucketPath(gpath.PosixGPath):
    """`gs://bucket/name`, a name in a bucket; a folder is what names begin with, and needs no making."""

    @property
    def _backend(self) -> Any:
        return _Patient()

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.parts[2]

    @property
    def key(self) -> str:
        """The name in the bucket."""
        return "/".join(self.parts[3:])

    def has_bucket(self) -> bool:
        """Whether its bucket is there, as far as one may ask."""
        try:
            self._ask("info", f"gs://{self.bucket}")
        except FileNotFoundError:
            return False
        except (OSError, OutOfReach):
            pass
        return True

    def absolute(self) -> "BucketPath":
        return self

    def expanduser(self) -> "BucketPath":
        return self

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        # gcsfs would make a bucket where there is none of the name.
        if not exist_ok and self.exists():
            raise FileExistsError(errno.EEXIST, "is there already", str(self))

    def read_bytes(self) -> bytes:
        return self._ask("cat_file", str(self))

    def write_bytes(self, data: bytes) -> None:
        self._ask("pipe_file", str(self), data, nbytes=len(data))

    def open(self, *arguments: Any, **options: Any) -> Any:
        """None: an open file would read, and at its end write, without a deadline."""
        raise NotImplementedError(f"{self}: no open files in buckets; read_bytes, write_bytes, fetch or store it")

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))
        return len(data)

    def write_new(self, data: bytes) -> None:
        """As `write_bytes`; `FileExistsError` where the name is there already, of two writers for one of them."""
        self._ask("pipe_file", str(self), data, mode="create")

    def fetch(self, file: Path) -> None:
        """Copies the content to a file of this machine."""
        self._ask("get_file", str(self), str(file), nbytes=self.stat().length)

    def store(self, file: Path) -> None:
        """Copies a file of this machine here: whole, or all is as it was before."""
        self._ask("put_file", str(file), str(self), nbytes=file.stat().st_size)

    def is_dir(self) -> bool:
        # Not gcsfs's own, to which a folder that it cannot ask for is none.
        try:
            return self._ask("info", str(self))["type"] == "directory"
        except FileNotFoundError:
            return False

    def entries(self) -> list[tuple[str, bool]]:
        """What is in it, as a folder: each name, and whether it is a folder itself."""
        own = f"{self.bucket}/{self.key}"  # which an object may stand for
        found = [(info["name"].rstrip("/"), info["type"]) for info in self._ask("ls", str(self), detail=True)]
        return [(name.rpartition("/")[2], kind == "directory") for name, kind in found if name != own]

    def files(self) -> "list[BucketPath]":
        """All below it, however deep."""
        return [type(self)(f"gs://{name}") for name in self._ask("find", str(self))]

    def rename(self, target: Any) -> Any:
        """Moves all below it, one after another."""
        self._ask("mv", str(self), str(target), recursive=True, nbytes=MANY)
        return target

    def _ask(self, method: str, *arguments: Any, nbytes: int = 0, **options: Any) -> Any:
        """What a method of gcsfs says."""
        call = getattr(backend.fsspec_backend.fs(self), method)
        return within(functools.partial(call, *arguments, **options), self, nbytes=nbytes)


class _Patient:
    """epath's way to gcsfs, with a deadline for each call."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(backend.fsspec_backend, name)
        return lambda path, *rest, **options: within(functools.partial(method, path, *rest, **options), path)


def _known(error: Exception, where: object) -> Exception:
    """The error of the system's that an error of the libraries' stands for, or itself."""
    text = " ".join(str(error).split())[:200]
    code = str(error.code) if isinstance(error, gcsfs.retry.HttpError) else ""
    unanswered = isinstance(error, auth.GoogleAuthError) and (error.retryable or isinstance(error.__cause__, PASSING))
    refused = isinstance(error, REFUSED) and not unanswered  # else it is who gives out logins that is out of reach
    if refused or code in ("401", "403") or re.search(REFUSED_STATUS, text):
        return PermissionError(errno.EACCES, f"no permission ({text})", str(where))
    if unanswered or isinstance(error, PASSING) or re.match("5|408|429", code) or re.search(PASSING_STATUS, text):
        return OutOfReach(where, text or type(error).__name__)
    if isinstance(error, FileNotFoundError) and error.errno is None:
        return FileNotFoundError(errno.ENOENT, "is not there", str(where))
    if code or text.startswith("Bad Request"):
        return OSError(errno.EINVAL, text, str(where))
    return error
