"""The folder of a run: it has one owner at a time, who alone writes its checkpoints, its rows and its settings."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import OutOfReach, TryAgain, UserError
from deit_jax.base.forms import read_regular
from deit_jax.base.links import refuse_links
from deit_jax.base.storage import Place, copy_whole, is_bucket, scratch, told
from deit_jax.run.lease import Lease

LOCK = ".lock"
CHECKPOINTS, CORRUPT, FAILURES, METRICS = "checkpoints", "corrupt", "failures", "metrics.jsonl"
FOLDERS = (CHECKPOINTS, CORRUPT, FAILURES, "tensorboard", "wandb")
FILES = (LOCK, "config.json", "run.json", METRICS, "rollbacks.json", "wandb.id")


class Workdir:
    """The places of a run's files; whoever only reads them needs no more than this.

    Attributes:
        root: the folder, absolute, or the place in a bucket.
        growing: where those files are that are appended to, which no bucket can: a folder of this machine.
        checkpoints: a folder a step.
        corrupt: those steps that could not be read.
        failures: the training steps that were not finite, see `run.failures`.
        metrics: a row of JSON a step.
        rollbacks: where the run went back, see `run.rollback`.
    """

    def __init__(self, root: Place, growing: Path | None = None, lease: Lease | None = None):
        self.root, self.growing, self._lease = root, growing or root, lease
        self.checkpoints, self.corrupt, self.failures = root / CHECKPOINTS, root / CORRUPT, root / FAILURES
        self.metrics, self.rollbacks = self.growing / METRICS, root / "rollbacks.json"

    def require(self) -> None:
        """Raises `TryAgain` where another run has the workdir now, so that nothing more is to be written there."""
        if self._lease:
            self._lease.require()

    def keep(self) -> bool:
        """Copies what grows into the bucket, if the run is in one; False where that failed, to be done again later.

        Raises:
            TryAgain: another run has the workdir now.
        """
        self.require()
        if self._lease:
            try:
                copy_whole(self.growing, self.root)
            except (OSError, OutOfReach) as error:
                logging.warning("%s: its rows are not copied there: %s", self.root, error)
                return False
        return True

    def write_json(self, name: str, content: Any) -> None:
        """Writes a file of the run, whole or not at all; `UserError` where that fails, `TryAgain` as `keep`."""
        self.require()
        try:
            with replacing(self.root / name) as fresh:
                fresh.write_text(json.dumps(content, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"--workdir: cannot write {self.root / name}: {told(error, self.root)}") from error

    def wandb_id(self) -> str:
        """The run's name at Weights & Biases: drawn once, since workdirs of other places may be called the same."""
        path = self.root / "wandb.id"
        with contextlib.suppress(OSError, ValueError):
            known = read_regular(path, 100).decode().strip()
            if len(known) == 16 and set(known) <= set("0123456789abcdef"):
                return known
        drawn = secrets.token_hex(8)
        with replacing(path) as fresh:
            fresh.write_text(drawn + "\n")
        return drawn


def own(root: Place, *, first: bool = True) -> contextlib.AbstractContextManager[Workdir]:
    """Makes the folder if it is missing, and keeps all other runs out of it; the system lets go at a kill.

    A folder that was made and got nothing is removed in the end. Of several processes the `first` owns it for all.

    Raises:
        TryAgain: another run has it, or a bucket does not answer.
        UserError: it cannot be written to; or what a run writes into is a link, which may lead anywhere, or a folder in
            the place of a file.
    """
    if not first:
        return contextlib.nullcontext(Workdir(root))
    return _own_in_bucket(root) if is_bucket(root) else _own_folder(root)


@contextlib.contextmanager
def _own_in_bucket(root: Any) -> Iterator[Workdir]:
    growing = scratch()
    lease, kept = None, True
    try:
        try:
            lease = Lease(root / LOCK)
            if (root / METRICS).exists():
                (root / METRICS).fetch(growing / METRICS)
        except OSError as error:
            raise UserError(f"--workdir: cannot write to {root}: {told(error, root)}") from error
        workdir = Workdir(root, growing, lease)
        try:
            yield workdir
        finally:
            kept = workdir.keep()
    finally:
        if lease:
            lease.release()
        if kept:
            shutil.rmtree(growing, ignore_errors=True)
        else:
            kept_at = growing.rename(growing.with_name(f"rows_of_{growing.name}"))  # which the next start leaves alone
            logging.warning("%s: its newest rows are in %s alone", root, kept_at)


@contextlib.contextmanager
def _own_folder(root: Path) -> Iterator[Workdir]:
    made: list[Path] = []
    lock = None
    try:
        try:
            made = [folder for folder in (root, *root.parents) if not folder.exists()]
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                pass
            _refuse_others(root)
            lock = _lock(root / LOCK)
        except OSError as error:
            reason = told(error, root, "name a folder that is yours")
            raise UserError(f"--workdir: cannot write to {root}: {reason}") from error
        yield Workdir(root)
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                (root / LOCK).unlink()
            os.close(lock)
        for folder in made:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()


def _lock(path: Path) -> int:
    """The file, open, locked, and still in its place, where whoever had it before may have removed it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise TryAgain(
                f"--workdir: {path.parent} belongs to {owner}, which still runs; wait for it, or take another --workdir"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(file)
                raise
            logging.warning("%s: its file system has no locks; start no second run in it", path.parent)
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False)):
                os.ftruncate(file, 0)
                os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return file
        os.close(file)


def _refuse_others(root: Path) -> None:
    """`UserError` where something else is in the place of what a run writes: opening a pipe would wait for ever."""
    steps = [f"{folder}/{name}" for folder in FOLDERS[:3] for name in _names(root / folder)]
    items = [f"{step}/{name}" for step in steps for name in _names(root / step)]
    places = (root / name for name in (*FOLDERS, *FILES, *steps, *items))
    refuse_links(places, flag="--workdir", folder="the workdir", writer="a run")
    for names, right, kind in ((FOLDERS, Path.is_dir, "folder"), (FILES, Path.is_file, "file")):
        for name in names:
            if (root / name).exists() and not right(root / name):
                raise UserError(f"--workdir: {root / name} is no {kind}, and a run writes one there; remove it")


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() and not folder.is_symlink() else []
