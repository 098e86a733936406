"""Files and folders that are there whole or not at all."""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A free place beside `path`; what is written there takes the place of `path` when the block ends well.

    Otherwise nothing of it is left, and `path` is as it was. A folder takes the place of none or of an empty one.
    Missing folders above are made.

    Raises:
        OSError: it cannot be written; `filename` is `path`, whatever was being written.
    """
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
