"""Ends a process in which nothing goes on any more.

A thread of its own keeps the time, which nothing can stop that the main thread waits for as Python and JAX wait: a peer
in a collective operation, a disk, a reader of photos. Code that computes for ever without letting go of Python's lock
stops it, too; of several processes the others see that this one gives no sign of life.
"""

import faulthandler
import math
import sys
import threading
import time
from collections.abc import Callable

COMPILING = 900  # seconds


class Watchdog(threading.Thread):
    """Calls `end` with a line when what is done `at` one time takes longer than a limit, and shows all stacks.

    While the process is stopped, as by Ctrl-Z, no time passes.

    Args:
        limit: in seconds.
        end: of the line; does not return.
        tick: called every so often with the seconds that have passed.
        about: what else is known of what is done now, in words, to be told with it.
    """

    def __init__(
        self,
        limit: float,
        *,
        end: Callable[[str], object],
        tick: Callable[[float], object] = lambda seconds: None,
        about: Callable[[], str] = lambda: "",
    ):
        super().__init__(daemon=True, name="watchdog")
        self.limit, self._end, self._tick, self._about = limit, end, tick, about
        self._task = "", math.inf, limit  # what is done, since when, and for how long at most; replaced as a whole
        self._now = 0.0  # seconds that this thread has seen

    @property
    def doing(self) -> str:
        """What is done now, and what is known of it."""
        return self._task[0] + self._about()

    def at(self, doing: str, *, compiling: bool = False) -> None:
        """Says what is begun now, and so that what was done before is over.

        Args:
            compiling: at first, which takes minutes whatever the limit.
        """
        self._task = doing, self._now, max(self.limit, COMPILING) if compiling else self.limit

    def rest(self) -> None:
        """From now on nothing has a limit, until something else is begun."""
        doing, _, most = self._task
        self._task = doing, math.inf, most

    def run(self) -> None:
        pause, last = min(1.0, self.limit / 10), time.monotonic()
        while True:
            time.sleep(pause)
            now = time.monotonic()
            passed, last = min(now - last, 2 * pause), now
            self._now += passed
            self._tick(passed)
            _, since, most = self._task
            if self._now - since > most:
                faulthandler.dump_traceback(sys.stderr)
                self._end(f"{self.doing} has taken {most:g} seconds, as long as --step_timeout allows")
