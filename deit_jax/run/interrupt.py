"""Ends a run in good order when it is asked to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

LINE = "interrupted; the same command goes on"


class Interrupted(BaseException):
    """The run was asked to stop; what it has done is saved, and the same command goes on from there.

    Commands treat it as `TryAgain`. No `Exception`, since it may come anywhere: who deals with faults of a library is
    not to deal with it.
    """


class Stopped(Interrupted):
    """The same, of all processes of a run: they have agreed on it."""

    alike = True  # see `base.errors`


class Interrupt:
    """While entered, the first SIGTERM or SIGINT raises `Interrupted`, wherever the main thread is.

    But within `deferred`, where it only sets `requested`; and there again at once within `at_once`, for what may take
    for ever, such as waiting. A second SIGINT interrupts as usual.

    Of several processes one that leaves ends all others (`Peers.leave`): before the first step, and where what is done
    is kept bit by bit, as in a recording, nothing is lost by that. Within `deferred` nothing is left at once there, and
    what one was asked is told to all, so that they save and stop at the same step (`run.monitor`). JAX has a service
    for this, which is switched off: it and a handler of SIGTERM shut each other out, and it knows of no SIGINT.

    Attributes:
        alone: there is no other process.
        requested: this one was asked to stop.
        heard: one of several was, as all of them know by now.
    """

    requested = heard = False
    _raises = True

    def __init__(self, *, alone: bool = True):
        self.alone = alone

    @property
    def stops(self) -> bool:
        """Whether the run is to stop: the same in all processes."""
        return self.requested if self.alone else self.heard

    def __enter__(self) -> "Interrupt":
        # Only the main thread can listen: in another one, as a library's caller may have it, nothing is heard.
        listens = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if listens else ()
        self._before = {number: signal.signal(number, self._request) for number in numbers}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self.requested and isinstance(error, ImportError):  # which extension modules make of what they are told
            raise Interrupted(LINE) from error

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A block that a signal does not leave."""
        self._raises, before = False, self._raises
        try:
            yield
        finally:
            self._raises = before

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that a signal leaves, those included that came before it."""
        self._raises, before = self._raises or self.alone, self._raises
        try:
            self._check()
            yield
        finally:
            self._raises = before

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._check()

    def _check(self) -> None:
        if self.requested and self._raises:
            raise Interrupted(LINE)
