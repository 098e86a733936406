"""How commands end, run in this process: for tests that run hundreds of them."""

import contextlib
import dataclasses
import hashlib
import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from deit_jax import cli

PATIENCE = 180  # seconds that a command may take


class Hung(BaseException):
    """A command took too long."""


@dataclasses.dataclass
class Ending:
    """What came of a command.

    Attributes:
        status: of its exit; None where it ended in a traceback or not at all, and `out` says which.
        warnings: what it logged.
    """

    status: int | None
    out: str
    err: str
    warnings: list[str]

    @property
    def refused(self) -> bool:
        return self.status in (2, 75)

    def fault(self) -> str:
        """In words, what is wrong with how it ended, whatever it should have done; "" where nothing is."""
        if self.status is None:
            return self.out
        if self.status not in (0, 2, 75):
            return f"exit status {self.status}"
        lines = self.err.splitlines()
        if self.refused and (len(lines) != 1 or not self.err.endswith("\n") or "Traceback" in self.err):
            return f"exit status {self.status} with {len(lines)} lines on stderr: {self.err!r:.300}"
        if self.status == 2 and not self.err.startswith("error: "):
            return f"exit status 2 with {self.err!r:.300}"
        return ""


def end(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str]) -> Ending:
    """Runs a command as a process would, and puts back what `cli.run` does to this one."""
    logger, terminate, argv = logging.getLogger("absl"), signal.getsignal(signal.SIGTERM), sys.argv
    level, exits, told = logger.level, os._exit, _Told()
    out, err = io.StringIO(), io.StringIO()
    logging.getLogger().addHandler(told)
    before = signal.signal(signal.SIGALRM, _hang)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    sys.argv, os._exit = ["command", *arguments], sys.exit
    status: Any = None
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.run(main)
    except SystemExit as stop:
        status = stop.code
    except Hung:
        out = io.StringIO(f"still there after {PATIENCE} s")
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = next((f"{f.filename}:{f.lineno}" for f in reversed(frames) if "/deit_jax/" in f.filename), "")
        out = io.StringIO(f"traceback at {ours}: {type(error).__name__}: {str(error)[:300]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGTERM, terminate)
        sys.argv, os._exit = argv, exits
        logger.setLevel(level)
        logging.getLogger().removeHandler(told)
    return Ending(status, out.getvalue(), err.getvalue(), told.lines)


class _Told(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _hang(number: int, frame: Any) -> NoReturn:
    raise Hung


def content(folder: Path) -> dict[str, str]:
    """Every file, folder, link and pipe below a folder, with a digest of what is in it."""
    return {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*"))}


def _digest(path: Path) -> str:
    if path.is_symlink():
        return f"to {os.readlink(path)}"
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return "folder" if path.is_dir() else "pipe"


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Relative places are in the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield
