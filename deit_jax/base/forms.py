"""JSON that others may have written: plain data of bounded size and depth, or one line that says what is wrong."""

import collections
import json
import math
from collections.abc import Collection
from typing import Any, TypeVar

from deit_jax.base.errors import UserError
from deit_jax.base.storage import Place, is_bucket

T = TypeVar("T")

MAX_BYTES = 32_000_000  # a million classes with names take about as much
MAX_DEPTH = 32  # objects and lists within each other
MAX_DIGITS = 18  # of a whole number: what int64 and float64 hold
KINDS: dict[Any, str] = {dict: "object", list: "list"}


def read_json(path: Place, form: type[T], *, mend: str = "fetch it anew") -> T:
    """The content of a JSON file, which has to be an object or a list (`form`: dict or list).

    Raises:
        UserError: the file is not there, cannot be read, or is no such JSON; the line ends with the `mend`.
    """
    try:
        content = parse_json(read_regular(path, MAX_BYTES + 1))
        if not isinstance(content, form):
            raise ValueError(f"is no JSON {KINDS[form]}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {mend}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; {mend}") from error
    return content


def read_regular(path: Place, most: int = -1) -> bytes:
    """The content of a file, or its first bytes; `OSError` where it cannot be read.

    Raises:
        ValueError: it is a folder, or a pipe or device, which reading would wait for, perhaps for ever.
    """
    if is_bucket(path):
        return path.read_bytes()[: most if most >= 0 else None]
    if path.exists() and not path.is_file():
        raise ValueError("is no regular file")
    with path.open("rb") as file:
        return file.read(most)


def parse_json(text: bytes | str) -> Any:
    """The value that a JSON text stands for.

    Raises:
        ValueError: it is too large, nested too deep, no UTF-8 or no JSON, has a key twice, or a number that is not
            finite or too long. Its words go behind the name of where the text is from.
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"is longer than {MAX_BYTES:,} bytes, which is more than it could have to say")
    try:
        content = json.loads(
            text.decode("utf-8-sig") if isinstance(text, bytes) else text,
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"is no UTF-8: {error.reason} at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"is nested more than {MAX_DEPTH} deep") from error
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [child for parent in level for child in _children(parent)]
    if level:
        raise ValueError(f"is nested more than {MAX_DEPTH} deep")
    return content


def _children(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) < len(pairs):
        (twice, _), *_ = collections.Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"has {twice} twice")
    return whole


def _whole(number: str) -> int:
    if len(number.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"has a number of {len(number)} digits")
    return int(number)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"has the number {number[:20]}, which is not finite")
    return value


def require(condition: bool, otherwise: str) -> None:
    """Raises `ValueError` with a reason where a condition does not hold."""
    if not condition:
        raise ValueError(otherwise)


def whole(value: Any, low: float, high: float) -> bool:
    """Whether a value is an integer, and no truth value, between bounds that are included."""
    return type(value) is int and low <= value <= high
