"""One process among those of a run: it gives signs of life, looks out for those of the others, and ends with them.

By itself a process that dies leaves the others of `jax.distributed` waiting, one that hangs is seen by nobody, and no
word names who is missing. What the processes leave for one another by name (the key-value store of JAX's service, which
lives in process 0) needs nothing of the devices, so that it works when it is these that fail.
"""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait
from typing import Any, NoReturn, TypeVar

import jax

from deit_jax.base.errors import TryAgain, UserError
from deit_jax.base.text import printable
from deit_jax.base.threads import begun
from deit_jax.parallel.watchdog import COMPILING, Watchdog

SILENT = 60  # seconds without a sign of life after which a process is lost
SUSPECT = 10  # the same, once something that all have to do together has failed
LINGER = 3  # seconds that process 0 stays when it ends, since all others end with its service
_ROOT = "deit_jax"
T = TypeVar("T")


class Peers:
    """This process among those of a run.

    Attributes:
        index, count: which process this is, of how many.
        watchdog: ends it when nothing goes on.

    Args:
        client: of JAX's service.
        coordinator: `HOST:PORT` of that.
        step_timeout: seconds that anything may take.
        about: see `Watchdog`.
    """

    def __init__(
        self,
        client: Any,
        coordinator: str,
        index: int,
        count: int,
        *,
        step_timeout: float,
        about: Callable[[], str] = lambda: "",
    ):
        self._coordinator = coordinator
        self._client, self.index, self.count = client, index, count
        self._timeout, self._silent = step_timeout, min(SILENT, step_timeout)
        self._beat_every = min(5.0, self._silent / 12)
        self._hosts = [""] * count
        self._signs = [("", "")] * count  # the newest sign of life of each: its number, and what is done
        self._quiet = [0.0] * count  # seconds since that came
        self._asking = False  # the service has not answered yet
        self._rounds = itertools.count()
        self._over, self._leaving = threading.Event(), threading.Lock()
        self.watchdog = Watchdog(step_timeout, end=self._hung, tick=self._tick, about=about)

    def start(self) -> None:
        """Begins to give signs of life, and to look out for those of the others.

        Raises:
            UserError: this one expects more or fewer of them than process 0.
        """
        _delay_abort()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._listen)]
        holding = threading.Thread(target=self._hold, daemon=True)
        for thread in (*self._threads, holding, self.watchdog):
            thread.start()
        self._require_same_count()
        self._hosts = self.gather(socket.gethostname())

    def _require_same_count(self) -> None:
        """Raises `UserError` where another number of processes is expected here: some would be waited for in vain."""
        place = f"{_ROOT}/count"
        if self.index == 0:
            self._client.key_value_set(place, str(self.count))
        told = self._client.blocking_key_value_get(place, int(1000 * max(self._timeout, COMPILING)))
        if told != str(self.count):
            raise UserError(
                f"the number of processes: is {told} in process 0 and {self.count} in process {self.index}; start all "
                f"of a run with the same"
            )

    def name(self, index: int) -> str:
        return f"process {index}" + (f" ({printable(self._hosts[index])})" if self._hosts[index] else "")

    def gather(self, value: str) -> list[str]:
        """What each process gives, in their order; all have to call this, and wait for one another.

        Raises:
            TryAgain: one has not come in time.
        """
        number = next(self._rounds)
        limit = max(self._timeout, COMPILING)  # as one may be at that, and a watchdog ends who hangs
        place = f"{_ROOT}/round/{number}"
        gathered: list[str] = []
        try:
            self._client.key_value_set(f"{place}/{self.index}", value)
            while len(gathered) < self.count:
                gathered.append(self._client.blocking_key_value_get(f"{place}/{len(gathered)}", int(1000 * limit)))
            if number:  # what all have read, since they have come to this round
                self._client.key_value_delete(f"{_ROOT}/round/{number - 1}/{self.index}")
        except jax.errors.JaxRuntimeError as error:
            self.blame()
            missing = self.name(len(gathered) % self.count)  # process 0, where its service failed before or after
            late = "DEADLINE_EXCEEDED" in str(error)
            reason = f" has not come within {limit:g} seconds" if late else f": {str(error).partition(chr(10))[0]}"
            raise TryAgain(f"{missing}{reason}") from error
        return gathered

    def together(self, work: Callable[[], T], place: str) -> T:
        """The result of work that waits for the same work of the others; where it fails in one, it fails in all.

        Args:
            place: a name of this work alone, the same in all processes.

        Raises:
            TryAgain: it has failed in another process; here it may be waiting still.
        """
        given_up, done = f"{_ROOT}/given_up/{place}", begun(work)
        while not wait([done], timeout=0.5).done:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # nobody has
                raise TryAgain(self._client.key_value_try_get(given_up))
        if error := done.exception():
            self._client.key_value_set(given_up, f"{self.name(self.index)}: {error}", allow_overwrite=True)
        return done.result()

    def leave(self, status: int, line: str) -> NoReturn:
        """Ends this process and, by telling them, all others; says the line, unless another one has said the same.

        At once: an ordinary way out would wait for the others.
        """
        self._leave_alone()
        known: list[str] = []
        telling = threading.Thread(target=self._tell, args=(status, line, known), daemon=True)
        telling.start()
        telling.join(LINGER)  # the service may be what hangs
        if line not in known:
            self._say(line)
        if self.index == 0:
            time.sleep(LINGER)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(status)

    def blame(self) -> None:
        """After an exception that nobody has foreseen: where it came of a lost process, this does not return."""
        self.watchdog.rest()
        self._silent = min(self._silent, SUSPECT)
        time.sleep(self._silent + 2 * self._beat_every)

    def close(self) -> None:
        """Ends in good order, together with all others."""
        self.watchdog.at("the end")
        self.gather("done")
        self._over.set()
        if self.index == 0:
            self._client.key_value_set(f"{_ROOT}/ended", json.dumps([0, 0, ""]))
        for thread in self._threads:  # none may be within the service when Python ends
            thread.join()
        jax.distributed.shutdown()

    def _leave_alone(self) -> None:
        """The first thread that leaves goes on; others wait for the end that it brings."""
        if not self._leaving.acquire(blocking=False):
            threading.Event().wait()

    def _tell(self, status: int, line: str, known: list[str]) -> None:
        """Leaves the line for the others; where another one was first, its line is `known`."""
        try:
            self._client.key_value_set(f"{_ROOT}/ended", json.dumps([self.index, status, line]))
        except jax.errors.JaxRuntimeError:
            known.append(json.loads(self._client.key_value_try_get(f"{_ROOT}/ended"))[2])

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError):  # nobody may be reading any more
            print(f"{self.name(self.index)}: {line}", file=sys.stderr, flush=True)

    def _beat(self) -> None:
        for number in itertools.count():
            sign, signs = json.dumps([str(number), self.watchdog.doing]), []
            self._asking = True
            try:
                self._client.key_value_set(f"{_ROOT}/alive/{self.index}", sign, allow_overwrite=True)
                signs = self._client.key_value_dir_get(f"{_ROOT}/alive/")
            except jax.errors.JaxRuntimeError:  # the listener knows better
                pass
            self._asking = False
            for place, content in signs:
                peer, (beat, doing) = int(place.rpartition("/")[2]), json.loads(content)
                if beat != self._signs[peer][0]:
                    self._quiet[peer] = 0.0
                self._signs[peer] = beat, doing
            if self._over.wait(self._beat_every):
                return

    def _listen(self) -> None:
        """Hears at once of a process that ends with a word."""
        told = ""
        while not told:
            try:
                told = self._client.blocking_key_value_get(f"{_ROOT}/ended", 86_400_000)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    return  # process 0 is gone
        index, status, line = json.loads(told)
        if status and index != self.index:
            time.sleep(1)  # for what this process says itself, if it ends for the same reason
            self._leave_alone()
            if self.index == 0:
                self._say(f"{self.name(index)} ended with status {status}: {line}")
            os._exit(status)

    def _hold(self) -> None:
        """Hears at once of the end of process 0 without a word, by a connection that its end breaks."""
        host, _, port = self._coordinator.rpartition(":")
        refused = 0
        while self.index and refused < 3:
            try:
                with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as connection:
                    refused = 0
                    connection.settimeout(None)
                    while connection.recv(4096):  # the service greets, and after a while hangs up
                        pass
            except OSError:
                refused += 1
            time.sleep(0.3)
        if self.index and not self._over.is_set():
            self._leave_alone()
            self._say(f"{self.name(0)} is gone, and all others with it; here was {self._at(self.index)}")
            os._exit(75)

    def _tick(self, passed: float) -> None:
        """Counts the time without signs of life, and leaves when there was too much of it."""
        others = [peer for peer in range(self.count) if peer != self.index]
        for peer in others:
            self._quiet[peer] += passed
        # Who gets no answer from the service hears of nobody.
        watched = [0] if self._asking and self.index else others
        lost = [peer for peer in watched if self._quiet[peer] > self._silent]
        if lost and not self._over.is_set():
            told = ", ".join(f"{self.name(peer)}, last heard of at {self._at(peer)}" for peer in lost)
            self.leave(75, f"no sign of life for {self._silent:g} seconds: {told}; here was {self._at(self.index)}")

    def _hung(self, line: str) -> None:
        others = [peer for peer in range(self.count) if peer != self.index]
        # Who is silent is missing, and then who is somewhere else.
        others.sort(key=lambda peer: (not self._is_silent(peer), self._at(peer) == self._at(self.index)))
        self.leave(75, "; ".join([line, *map(self._where, others[:8])]))

    def _is_silent(self, peer: int) -> bool:
        return self._quiet[peer] > 3 * self._beat_every

    def _where(self, peer: int) -> str:
        told = f", silent for {self._quiet[peer]:.0f} seconds, was" if self._is_silent(peer) else " is"
        return f"{self.name(peer)}{told} at {self._at(peer)}"

    def _at(self, peer: int) -> str:
        return (self.watchdog.doing if peer == self.index else self._signs[peer][1]) or "its start"


def _delay_abort() -> None:
    """Lets a thread that aborts the process sleep a few seconds before.

    JAX's runtime does so when process 0 is gone, at once and without saying who is missing; so there is time to say it
    in Python, and to leave with a status that was chosen. The number of the signal, 6, becomes the seconds.
    """
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, libc.sleep)
