"""Who has a workdir in a bucket, which has no locks: its owner writes an object anew every few seconds.

One that is no longer written is left of a run that was killed, and is taken over. So of two runs in one workdir the
second is refused, and a killed one costs the next as long as it takes to see that nobody writes.
"""

import contextlib
import os
import secrets
import socket
import threading
import time
from typing import Any

from deit_jax.base.errors import OutOfReach, TryAgain

REFRESH = 5.0  # seconds
WATCH = 3 * REFRESH  # without a change, after which the owner is gone
SETTLE = 1.0  # in which others may have taken it over at the same moment


class Lease:
    """Keeps a workdir until it is released; `place` is the object in the bucket.

    Raises:
        TryAgain: another run has it.
        OSError: it cannot be written to.
    """

    def __init__(self, place: Any):
        self._place, self._token = place, secrets.token_hex(8)
        self._times, self._lost, self._over = 0, "", threading.Event()
        try:
            place.write_new(self._text())
        except FileExistsError:
            self._take_over()
        self._thread = threading.Thread(target=self._refresh, daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raises `TryAgain` where another run has taken the workdir, since this one stood still for too long."""
        if self._lost:
            raise TryAgain(
                f"--workdir: {self._place.parent} was taken by {self._lost} while this run stood still; wait for it"
            )

    def release(self) -> None:
        """Lets others have it at once."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError, OutOfReach):
            if self._token in self._read():
                self._place.unlink(missing_ok=True)

    def _text(self) -> bytes:
        self._times += 1
        return f"process {os.getpid()} on {socket.gethostname()}\n{self._token} {self._times}\n".encode()

    def _read(self) -> str:
        try:
            return self._place.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def _take_over(self) -> None:
        before, since = self._read(), time.monotonic()
        while before and time.monotonic() - since < WATCH:
            time.sleep(WATCH / 15)
            now = self._read()
            if now and now != before:
                raise TryAgain(
                    f"--workdir: {self._place.parent} belongs to {_owner(now)}, which still runs; wait for it, or take "
                    f"another --workdir"
                )
            before = now
        self._place.write_bytes(self._text())
        time.sleep(SETTLE)
        if self._token not in (now := self._read()):
            raise TryAgain(f"--workdir: {self._place.parent} was taken by {_owner(now)} just now; wait for it")

    def _refresh(self) -> None:
        while not self._over.wait(REFRESH):
            # Whoever takes it over meanwhile is seen when the bucket answers again, whatever it says until then.
            with contextlib.suppress(Exception):
                if self._token not in (now := self._read()):
                    self._lost = _owner(now)
                    return
                self._place.write_bytes(self._text())


def _owner(text: str) -> str:
    return text.partition("\n")[0].strip()[:200] or "another process"
