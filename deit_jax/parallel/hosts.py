"""The processes of a run: how they meet, and what they tell one another. Most of it does nothing where there is one.

`jax.distributed` brings them together. It has no public name for its key-value store: that is taken from where Orbax
takes it.
"""

import json
import os
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed

from deit_jax.base.cluster import FLAGS, Cluster
from deit_jax.base.errors import TryAgain, UserError, alike
from deit_jax.base.text import printable
from deit_jax.parallel.peers import SILENT, Peers
from deit_jax.parallel.watchdog import Watchdog

STEP_TIMEOUT = 1800  # seconds; compiling for large machines takes minutes
T = TypeVar("T")
_peers: Peers | None = None
_watchdog: Watchdog | None = None
_waited = 0.0


def start(
    cluster: Cluster | None, *, start_timeout: float, step_timeout: float, about: Callable[[], str] = lambda: ""
) -> None:
    """Starts JAX's service where there are several processes, and the watch over this one.

    Before any device is asked for. JAX's own notice of preemption is switched off, see `run.interrupt`.

    Args:
        cluster: None for a process alone.
        start_timeout: seconds in which all have to be there.
        step_timeout: seconds that anything may take; 0: `STEP_TIMEOUT`, and for ever, where there is one process.
        about: see `Watchdog`.

    Raises:
        UserError: the coordinator that the user named cannot be reached, or not be made.
        TryAgain: the cluster's own cannot.
    """
    global _peers, _watchdog
    limit = step_timeout or STEP_TIMEOUT
    if cluster:
        _connect(cluster, start_timeout, limit)
    told = distributed.global_state
    if told.num_processes > 1:
        place = str(told.coordinator_address)
        _peers = Peers(told.client, place, told.process_id, told.num_processes, step_timeout=limit, about=about)
        _peers.start()
        _watchdog = _peers.watchdog
    elif step_timeout:
        _watchdog = Watchdog(step_timeout, end=_end_alone, about=about)
        _watchdog.start()
    at("its start", compiling=True)


def several() -> bool:
    """Whether there is more than this process."""
    return _peers is not None


def index() -> int:
    """Which process this is, by JAX's service; number 0 speaks and writes.

    Which rows a process feeds follows from its devices, and so from `jax.process_index`.
    """
    return _peers.index if _peers else distributed.global_state.process_id


def name(process: int) -> str:
    """What people call a process: its number and its host."""
    return _peers.name(process) if _peers else f"process {process}"


def at(doing: str, *, compiling: bool = False) -> None:
    """See `Watchdog.at`; the other processes hear of it, too."""
    if _watchdog:
        _watchdog.at(doing, compiling=compiling)


def gather(value: str) -> list[str]:
    """See `Peers.gather`."""
    global _waited
    if not _peers:
        return [value]
    start = time.monotonic()
    told = _peers.gather(value)
    _waited += time.monotonic() - start
    return told


def waited() -> float:
    """Seconds that this process has spent in `gather`, where who is early waits for the others."""
    return _waited


def of_first(read: Callable[[], Any]) -> Any:
    """What process 0 reads, of what JSON holds; all have to ask, and the others read nothing.

    In a shared folder, say: for a while it may look older to others, and what each of them made of it by itself would
    part their ways.
    """
    return json.loads(gather("" if index() else json.dumps(read()))[0])


def objections(reason: str) -> list[str]:
    """What the processes object, by their names, and once what all do; "" is no objection; all have to ask."""
    told = gather(reason)
    if set(told) == {reason}:
        return [reason] if reason else []
    named = [f"{name(process)}: {each}" for process, each in enumerate(told) if each]
    # But for what one has heard of another, cut or whole, which tells it, too.
    own = [not any(line.startswith(each) for line in named) for each in told if each]
    return [line for line, is_own in zip(named, own, strict=True) if is_own] or named


def notes(note: str) -> list[str]:
    """What process 0 is to say of what the processes note, and the others nothing; "" is no note; all have to ask.

    Told as what they object is.
    """
    told = objections(note)
    return [] if index() else told


def together(work: Callable[[], T], place: str) -> T:
    """See `Peers.together`."""
    return _peers.together(work, place) if _peers else work()


def require_same(
    facts: Mapping[str, Any], *, mend: str = "start all of a run with the same command, code and data"
) -> None:
    """Raises `UserError` in all processes where the facts, by name, of one are not those of process 0."""
    first, *rest = (json.loads(told) for told in gather(json.dumps(facts, default=str)))
    for peer, other in enumerate(rest, 1):
        for name in sorted(first.keys() | other.keys()):
            here, there = first.get(name, "missing"), other.get(name, "missing")
            if here != there and _peers:
                line = f"{name}: is {here!r} in {_peers.name(0)} and {there!r} in {_peers.name(peer)}; {mend}"
                raise alike(UserError(line))


def require_equal(name: str, tree: Any) -> None:
    """Raises `UserError` in all processes where what each has read by itself, arrays or numbers, is not process 0's."""
    if several():
        total = 0
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            total = zlib.crc32(np.asarray(leaf).tobytes(), zlib.crc32(str(path).encode(), total))
        require_same({name: f"of checksum {total:08x}"})


def end(status: int, line: str) -> None:
    """See `Peers.leave`."""
    if _peers:
        _peers.leave(status, line)


def blame() -> None:
    """See `Peers.blame`."""
    if _peers:
        _peers.blame()


def late(error: BaseException) -> bool:
    """Whether JAX's runtime gave up waiting for another process, as where a machine has too much to do."""
    codes = "DEADLINE_EXCEEDED", "UNAVAILABLE"
    return several() and isinstance(error, jax.errors.JaxRuntimeError) and any(code in str(error) for code in codes)


def close() -> None:
    """The end of a command that did what it should."""
    if _peers:
        _peers.close()


def _connect(cluster: Cluster, start_timeout: float, step_timeout: float) -> None:
    given = cluster.source == FLAGS[0]  # else something that starts many hosts, of which one may be late
    kind = UserError if given else TryAgain
    where = f"{cluster.source}: {cluster.coordinator or 'its processes'}"
    if cluster.coordinator and cluster.process:
        _require_reachable(where, cluster.coordinator, start_timeout, kind)
    elif cluster.coordinator:
        _require_free(where, cluster.coordinator, kind)

    failed: list[Exception] = []

    def connect() -> None:
        try:
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.processes,
                cluster.process,
                cluster.devices,
                # Else what started this job would give each process a single GPU, beside what the user says of it.
                cluster_detection_method="deactivate" if cluster.coordinator else None,
                initialization_timeout=int(start_timeout) + 60,
                heartbeat_timeout_seconds=int(min(SILENT, step_timeout)) + 30,  # ours comes first, and says more
                shutdown_timeout_seconds=30,
            )
        except Exception as error:
            failed.append(error)

    jax.config.update("jax_enable_preemption_service", False)
    # In a thread: it hears of no Ctrl-C, and what comes too late it ends by SIGABRT with a stack trace of its own.
    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    until = time.monotonic() + start_timeout
    while connecting.is_alive():
        connecting.join(0.2)
        if time.monotonic() > until:
            found = distributed.global_state  # by JAX, where nobody has told it, if it has got so far
            number = cluster.process
            if number is None and found.coordinator_address:
                number = found.process_id
            host = printable(socket.gethostname())
            own = host if number is None else f"process {number} ({host})"
            at = f" at {found.coordinator_address}" if found.coordinator_address and not cluster.coordinator else ""
            line = (
                f"{own}: error: {where}{at}: not all processes have come within {start_timeout:g} seconds; start all, "
                f"and see what those have said that have ended"
            )
            print(line, file=sys.stderr, flush=True)
            os._exit(2 if given else 75)
    for error in failed:
        if isinstance(error, OSError):  # of what tells a machine of its peers, over the network
            raise kind(f"{where}: cannot be started: {printable(str(error))}") from error
        if not isinstance(error, RuntimeError | ValueError):
            raise error
        reason = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError):
            raise kind(f"{where}: cannot be started: {reason}") from error
        if cluster.coordinator or "coordinator_address" not in reason:  # else there is no cluster
            raise UserError(f"{where}: {reason}; see to it, or give {', '.join(FLAGS)}") from error


def _require_free(where: str, coordinator: str, kind: type[Exception]) -> None:
    """Raises a `kind` of exception where the coordinator's port is another program's; JAX crashes there."""
    port, both = int(coordinator.rpartition(":")[2]), socket.has_dualstack_ipv6()
    try:
        family = socket.AF_INET6 if both else socket.AF_INET
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise kind(f"{where}: cannot be started: {reason}; name another port") from error


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
