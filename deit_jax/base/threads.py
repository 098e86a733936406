"""Work beside the main thread."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
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


def begun(work: Callable[[], T]) -> Future[T]:
    """What work will give, which is done in a thread that no exit waits for."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(work())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer
