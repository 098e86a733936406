#!/usr/bin/env python3
"""Starts a run as several processes on this machine, each with some CPU devices: to try what a pod does.

    python launch/local.py --processes=2 --devices_per_process=4 -- --config=configs/quickstart.py --workdir=runs/two

What follows `--` goes to `python -m deit_jax.main` in every process; `--module=deit_jax.precompute` starts another
command. A signal (SIGTERM, Ctrl-C) is passed on to all processes. Where one of them ends with a fault, of which it
tells the others, or dies without a word, these have some time to end by themselves. `--restarts=N` starts all of them
again, N times at most, where the exit status says that the same command goes on, and nobody has sent such a signal.

Exit status: 0 when all processes ended well; 75 when the same command goes on; else that of the process that failed.
"""

import argparse
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from typing import NoReturn

TOLD, UNTOLD = 15, 120  # seconds that the others have
AGAIN = (75, 134, -signal.SIGABRT, -signal.SIGKILL)  # JAX's runtime ends those that have lost process 0 by SIGABRT


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """In one line, without the usage."""
        self.exit(2, f"error: {message}\n")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices_per_process", type=int, default=1)
    parser.add_argument("--module", default="deit_jax.main")
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="print the commands and start nothing")
    parser.add_argument("flags", nargs="*", help="of the command, after --")
    given, unknown = parser.parse_known_args()
    if unknown:
        parser.error(f"{unknown[0]}: unknown flag; --help names them, those of {given.module} come after --")
    for name, least in (("processes", 1), ("devices_per_process", 1), ("restarts", 0)):
        if getattr(given, name) < least:
            parser.error(f"--{name}: give a number from {least} on")
    if given.module == "deit_jax.main" and not any(re.match("--?(config(=|$)|help)", flag) for flag in given.flags):
        parser.error("--config: missing; give it after --, such as -- --config=configs/quickstart.py")
    for attempt in range(given.restarts + 1):
        status, asked = run(commands(given), given.devices_per_process, dry=given.dry_run)
        if status != 75 or asked:
            break
        if attempt < given.restarts:
            print(f"started again, {attempt + 1} of {given.restarts} times", file=sys.stderr, flush=True)
    return status


def commands(given: argparse.Namespace) -> list[list[str]]:
    """One for each process."""
    command = [sys.executable, "-m", given.module, *given.flags]
    if given.processes == 1:
        return [command]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    common = [f"--coordinator={coordinator}", f"--processes={given.processes}"]
    return [[*command, *common, f"--process={i}"] for i in range(given.processes)]


def run(commands: list[list[str]], devices: int, *, dry: bool) -> tuple[int, bool]:
    """Runs them side by side; returns the exit status for all, and whether a signal asked them to end."""
    environment = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if dry:
        for command in commands:
            print(shlex.join([*(f"{name}={value}" for name, value in environment.items()), *command]))
        return 0, False
    # Of the others' stdout there is nothing: the first process speaks.
    processes = [
        # In sessions of their own, where a terminal's Ctrl-C does not come a second time.
        subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=None if i == 0 else subprocess.DEVNULL,
            start_new_session=True,
        )
        for i, command in enumerate(commands)
    ]

    asked = []

    def pass_on(number: int, frame: object) -> None:
        asked.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    deadline = float("inf")
    while None in (statuses := [process.poll() for process in processes]):
        time.sleep(0.05)
        for status in filter(None, statuses):
            deadline = min(deadline, time.monotonic() + (TOLD if status > 0 else UNTOLD))
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
    return together([process.returncode for process in processes]), bool(asked)


def together(statuses: list[int]) -> int:
    """The exit status for all, with a word on those that a signal ended."""
    for i, status in enumerate(statuses):
        if status < 0:
            print(f"process {i} was ended by {signal.Signals(-status).name}", file=sys.stderr, flush=True)
    failed = [status for status in statuses if status]
    for_good = [status if status > 0 else 128 - status for status in failed if status not in AGAIN]
    return for_good[0] if for_good else 75 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
