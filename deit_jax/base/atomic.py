"""Files and folders that are there whole or not at all."""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deit_jax.base.storage import Place, copy_whole, is_bucket


@contextlib.contextmanager
def replacing(path: Place) -> Iterator[Path]:
    """A free place on this machine; what is written there takes the place of `path` when the block ends well.

    Otherwise nothing of it is left, and `path` is as it was. A folder takes the place of none or of an empty one.
    Missing folders above are made. In a bucket a file is replaced in one stroke, a folder file by file.

    Raises:
        OSError: it cannot be written; `filename` is `path`, whatever was being written.
    """
    with _in_bucket(path) if is_bucket(path) else _beside(path) as fresh:
        yield fresh


@contextlib.contextmanager
def _in_bucket(path: Place) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / path.name
        yield fresh
        copy_whole(fresh, path)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield fresh
            fresh.replace(path)
        finally:
            if fresh.is_dir():
                shutil.rmtree(fresh)
            else:
                fresh.unlink(missing_ok=True)
    except OSError as error:
        if error.errno is None:  # no error of the system's, so that it names no file
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
