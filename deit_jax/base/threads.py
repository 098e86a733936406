"""Reading many files at a time."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def map_in_threads(threads: int, function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """As `list(map(function, *arguments))`, some at a time; the first exception is raised.

    A signal's is raised at once: a read that hangs keeps nobody waiting.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        return list(pool.map(function, *arguments))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
