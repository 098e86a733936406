"""The processes of a run: they meet at the start, compare what they have, and end together.

`jax.distributed` carries all of it. Its service lives in process 0; what is left there by name (its key-value store)
needs nothing of the devices, so that it works when it is these that fail. JAX has no public name for the store: it is
taken from where Orbax takes it.

There is more here than its `initialize`, since by itself a process that dies leaves the others waiting, one that hangs
is seen by nobody, and no word names who is missing.
"""

import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
from jax._src import distributed

from deit_jax.base.errors import TryAgain, UserError
from deit_jax.base.text import printable
from deit_jax.parallel.cluster import FLAGS, Cluster
from deit_jax.parallel.watchdog import Watchdog

SILENT = 60  # seconds without a sign of life after which a process is lost
SUSPECT = 10  # the same, once something that all have to do together has failed
LINGER = 3  # seconds that process 0 stays when it ends, since all others end with its service
_ROOT = "deit_jax"


class Peers:
    """This process among those of a run.

    Attributes:
        index, count: which process this is, of how many.
        watchdog: ends it when nothing goes on.

    Args:
        client: of JAX's service.
        step_timeout: seconds that anything may take.
    """

    def __init__(self, client: Any, index: int, count: int, step_timeout: float):
        self._client, self.index, self.count = client, index, count
        self._timeout, self._silent = step_timeout, min(SILENT, step_timeout)
        self._beat_every = min(5.0, self._silent / 12)
        self._hosts = [""] * count
        self._signs = [("", "")] * count  # the newest sign of life of each: its number, and what is done
        self._quiet = [0.0] * count  # seconds since that came
        self._asking = False  # the service has not answered yet
        self._rounds = itertools.count()
        self._over, self._leaving = threading.Event(), threading.Lock()
        self.watchdog = Watchdog(step_timeout, end=self._hung, tick=self._tick)

    def start(self) -> None:
        """Begins to give signs of life, and to look out for those of the others."""
        _delay_abort()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._beat, self._listen)]
        holding = threading.Thread(target=self._hold, daemon=True)
        for thread in (*self._threads, holding, self.watchdog):
            thread.start()
        self._hosts = self.gather(socket.gethostname())

    def name(self, index: int) -> str:
        return f"process {index}" + (f" ({printable(self._hosts[index])})" if self._hosts[index] else "")

    def gather(self, value: str) -> list[str]:
        """What each process gives, in their order; all have to call this, and wait for one another.

        Raises:
            TryAgain: one has not come in time.
        """
        place = f"{_ROOT}/round/{next(self._rounds)}"
        self._client.key_value_set(f"{place}/{self.index}", value)
        gathered = []
        for peer in range(self.count):
            try:
                gathered.append(self._client.blocking_key_value_get(f"{place}/{peer}", int(1000 * self._timeout)))
            except jax.errors.JaxRuntimeError as error:
                self.blame()
                raise TryAgain(f"{self.name(peer)} has not come within {self._timeout:g} seconds") from error
        return gathered

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
        host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
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
        others = [f"{self.name(peer)} is at {self._at(peer)}" for peer in range(self.count) if peer != self.index]
        self.leave(75, "; ".join([line, *others[:8]]))

    def _at(self, peer: int) -> str:
        return (self.watchdog.doing if peer == self.index else self._signs[peer][1]) or "its start"


_peers: Peers | None = None
_watchdog: Watchdog | None = None


def start(cluster: Cluster | None, *, start_timeout: float, step_timeout: float) -> None:
    """Starts JAX's service where there are several processes, and the watch over this one.

    Before any device is asked for. JAX's own notice of preemption is switched off, see `run.interrupt`.

    Args:
        cluster: None for a process alone.
        start_timeout: seconds in which all have to be there.
        step_timeout: seconds that anything may take; 0: for ever, where there is one process.

    Raises:
        UserError: the coordinator that the user named cannot be reached, or not be made.
        TryAgain: the cluster's own cannot.
    """
    global _peers, _watchdog
    if cluster:
        _connect(cluster, start_timeout, step_timeout)
        state = distributed.global_state
        if state.num_processes > 1:
            _peers = Peers(state.client, state.process_id, state.num_processes, step_timeout)
            _peers.start()
            _watchdog = _peers.watchdog
    elif step_timeout:
        _watchdog = Watchdog(step_timeout, end=_end_alone)
        _watchdog.start()


def several() -> bool:
    """Whether there is more than this process."""
    return _peers is not None


def index() -> int:
    """Which process this is; `jax.process_index`, which that asks the devices for, is the same."""
    return _peers.index if _peers else 0


def name(process: int) -> str:
    """What people call a process: its number and its host."""
    return _peers.name(process) if _peers else f"process {process}"


def at(doing: str, *, compiling: bool = False) -> None:
    """See `Watchdog.at`; the other processes hear of it, too."""
    if _watchdog:
        _watchdog.at(doing, compiling=compiling)


def gather(value: str) -> list[str]:
    """See `Peers.gather`."""
    return _peers.gather(value) if _peers else [value]


def all_agree(yes: bool) -> bool:
    """Whether the answer of every process is yes; all have to ask."""
    return all(answer == "yes" for answer in gather("yes" if yes else "no"))


def require_same(facts: Mapping[str, Any]) -> None:
    """Raises `UserError` in all processes where the facts, by name, of one are not those of process 0."""
    first, *rest = (json.loads(told) for told in gather(json.dumps(facts, default=str)))
    for peer, other in enumerate(rest, 1):
        for name in sorted(first.keys() | other.keys()):
            here, there = first.get(name, "missing"), other.get(name, "missing")
            if here != there and _peers:
                raise UserError(
                    f"{name}: is {here!r} in {_peers.name(0)} and {there!r} in {_peers.name(peer)}; start all of a run "
                    f"with the same command, code and data"
                )


def end(status: int, line: str) -> None:
    """See `Peers.leave`."""
    if _peers:
        _peers.leave(status, line)


def blame() -> None:
    """See `Peers.blame`."""
    if _peers:
        _peers.blame()


def close() -> None:
    """The end of a command that did what it should."""
    if _peers:
        _peers.close()


def _delay_abort() -> None:
    """Lets a thread that aborts the process sleep a few seconds before.

    JAX's runtime does so when process 0 is gone, at once and without saying who is missing; so there is time to say it
    in Python, and to leave with a status that was chosen. The number of the signal, 6, becomes the seconds.
    """
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, libc.sleep)


def _connect(cluster: Cluster, start_timeout: float, step_timeout: float) -> None:
    given = cluster.source == FLAGS[0]  # else something that starts many hosts, of which one may be late
    kind = UserError if given else TryAgain
    where = f"{cluster.source}: {cluster.coordinator or 'its processes'}"
    if cluster.coordinator and cluster.process:
        _require_reachable(where, cluster.coordinator, start_timeout, kind)

    def give_up() -> None:
        print(
            f"error: {where}: not all processes have come within {start_timeout:g} seconds", file=sys.stderr, flush=True
        )
        os._exit(2 if given else 75)

    # JAX would end the process by SIGABRT, with a stack trace of its own.
    deadline = threading.Timer(start_timeout, give_up)
    deadline.daemon = True
    deadline.start()
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process,
            cluster.devices,
            initialization_timeout=int(start_timeout) + 60,
            heartbeat_timeout_seconds=int(min(SILENT, step_timeout)) + 30,  # ours comes first, and says more
            shutdown_timeout_seconds=30,
        )
    except ValueError as error:
        if cluster.coordinator or "coordinator_address" not in str(error):
            raise UserError(f"{where}: {error}; see to it, or give {', '.join(FLAGS)}") from error
    except RuntimeError as error:  # such as a port that is taken
        reason = str(error).partition("\n")[0]
        raise kind(f"{where}: cannot be started: {reason}; name another port") from error
    finally:
        deadline.cancel()


def _require_reachable(where: str, coordinator: str, timeout: float, kind: type[Exception]) -> None:
    """Raises a `kind` of exception where nobody answers at the coordinator's address in time."""
    host, _, port = coordinator.rpartition(":")
    begun, reason = time.monotonic(), ""
    while time.monotonic() - begun < timeout:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            time.sleep(0.2)
    raise kind(
        f"{where} cannot be reached, tried for {timeout:g} seconds: {reason}; name the host of process 0, and start "
        f"that one, too"
    )


def _end_alone(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    os._exit(75)
