"""Ends a run in good order when it is asked to stop."""

import signal
from types import FrameType, TracebackType

# EX_TEMPFAIL of sysexits.h: a scheduler should start the same command again.
EXIT_INTERRUPTED = 75


class Interrupted(Exception):
    """The run stopped early, its state saved; the same command goes on from there."""


class Interrupt:
    """While entered, the first SIGTERM or SIGINT only sets `requested`; a second SIGINT interrupts as usual."""

    requested = False

    def __enter__(self) -> "Interrupt":
        self._before = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
