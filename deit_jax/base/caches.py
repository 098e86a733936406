"""Where this package keeps what can be made or fetched again."""

import os
from pathlib import Path

from deit_jax.base.errors import UserError


def cache_folder() -> Path:
    """`deit_jax` in XDG_CACHE_HOME, or in `~/.cache` where that is not set or empty; it need not exist.

    Raises:
        UserError: the user has no home folder, as in containers that run under any number.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deit_jax"
    except RuntimeError as error:
        raise UserError("there is no home folder, and so no place for a cache; set XDG_CACHE_HOME to one") from error
