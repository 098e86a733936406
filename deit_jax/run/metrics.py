"""What a run tells and keeps: rows in `metrics.jsonl`, TensorBoard and Weights & Biases."""

import bisect
import contextlib
import dataclasses
import importlib.util
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.base.forms import parse_json, read_regular, require, whole
from deit_jax.base.storage import Place, told
from deit_jax.run.tensorboard import Events
from deit_jax.run.workdir import Workdir
from deit_jax.step.state import MAX_STEP

Row = dict[str, Any]


class Writer:
    """Writes rows to `metrics.jsonl` and, where asked, TensorBoard and Weights & Biases.

    Opening it for a run that resumes drops the rows after `step` and a torn last line, so that each step stands once.
    Rows that the disk does not take are kept, and written with the next that it takes.

    Raises:
        UserError: `metrics.jsonl` cannot be written.
    """

    def __init__(self, workdir: Workdir, *, step: int, tensorboard: bool, wandb: bool, config: Mapping[str, Any]):
        self._tensorboard = self._wandb = None
        if wandb:
            self._wandb = _start_wandb(workdir, config)
        if tensorboard:
            self._tensorboard = Events(workdir.growing / "tensorboard", step=step)
        self.path, self._waiting = workdir.metrics, b""
        try:
            with replacing(self.path) as fresh:
                fresh.write_text("".join(json.dumps(row) + "\n" for row in read_rows(self.path) if row["step"] <= step))
            self._file = self.path.open("ab", buffering=0)
        except (OSError, ValueError) as error:
            mend = "make it a file of yours"
            reason = told(error, self.path, mend) if isinstance(error, OSError) else f"{error}; {mend}"
            raise UserError(f"--workdir: cannot write {self.path}: {reason}") from error

    def write(self, row: Row) -> None:
        """Writes one row, `step` and metrics by name, through to the disk; what is not finite becomes null."""
        row = finite(row)
        self._append((json.dumps(row) + "\n").encode())
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        if self._tensorboard:
            self._tensorboard.write(row["step"], values)
        if self._wandb:
            try:
                self._wandb.log(values, step=row["step"])
            except Exception as error:  # of the network, which is not worth a run
                logging.warning("Weights & Biases: %s; it gets nothing more", error)
                self._wandb = None

    def _append(self, line: bytes) -> None:
        first, self._waiting, end = not self._waiting, self._waiting + line, None
        try:
            end = os.fstat(self._file.fileno()).st_size
            written = self._file.write(self._waiting)
            if written < len(self._waiting):
                raise OSError(0, "there is no room")
            os.fsync(self._file.fileno())
            self._waiting = b""
        except OSError as error:
            with contextlib.suppress(OSError):
                if end is not None:
                    os.ftruncate(self._file.fileno(), end)
            if first:
                logging.warning("%s: %s; its rows wait until there is room", self.path, error.strerror)

    def close(self) -> None:
        if self._waiting:
            self._append(b"")
        if self._waiting:
            logging.warning("%s: its last %d rows are lost", self.path, self._waiting.count(b"\n"))
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def require_wandb() -> None:
    """Raises `UserError` unless Weights & Biases can be imported."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("config.log.wandb: there is no package wandb; pip install wandb, or set it to False")


def _start_wandb(workdir: Workdir, config: Mapping[str, Any]) -> Any:
    require_wandb()
    import wandb

    name, identity = workdir.root.name, workdir.wandb_id()
    try:
        return wandb.init(dir=str(workdir.growing), config=dict(config), name=name, id=identity, resume="allow")
    except Exception as error:  # of the network, the account, the settings
        reason = str(error).partition("\n")[0]
        raise UserError(f"config.log.wandb: wandb does not start: {reason}; see to it, or set it to False") from error


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not finite becomes None, since JSON has no NaN; groups within are treated alike."""

    def known(value: Any) -> Any:
        number = isinstance(value, float | np.floating)  # and no list or text
        return None if number and not math.isfinite(value) else value

    return {name: finite(value) if isinstance(value, Mapping) else known(value) for name, value in values.items()}


def read_rows(path: Place) -> list[Row]:
    """The rows of a `metrics.jsonl`: objects with their `step`, which grows, and numbers or null by name.

    A line torn by a kill is left out, and what else is no row with a warning.
    """
    *lines, last = read_regular(path).split(b"\n") if path.exists() else [b""]
    rows = [_row(line) for line in (*lines, last)]
    kept = _growing([row for row in rows if row])
    foreign = sum(map(bool, lines)) + bool(rows[-1]) - len(kept)
    if foreign:
        logging.warning("%s: %d lines are no rows of a run; left out", path, foreign)
    return kept


def _growing(rows: Sequence[Row]) -> list[Row]:
    """The most rows whose steps grow: one that is out of place costs no other."""
    steps: list[int] = []  # for each length the smallest step that so many rows can end with, and which row has it
    ends: list[int] = []
    before: list[int] = []  # for each row the one before it in the longest that ends with it
    for i, row in enumerate(rows):
        length = bisect.bisect_left(steps, row["step"])
        before.append(ends[length - 1] if length else -1)
        if steps[length : length + 1] != [row["step"]]:  # of two rows of a step the first is kept
            steps[length : length + 1], ends[length : length + 1] = [row["step"]], [i]
    kept, i = [], ends[-1] if ends else -1
    while i >= 0:
        kept.append(rows[i])
        i = before[i]
    return kept[::-1]


def _row(line: bytes) -> Row | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if _is_row(row) else None


def _is_row(value: Any) -> bool:
    if not isinstance(value, dict) or not whole(value.get("step"), 0, MAX_STEP):
        return False
    return all(number is None or type(number) in (int, float) for number in value.values())


@dataclasses.dataclass
class Progress:
    """What a run has told beside its rows; it stands in the meta of checkpoints.

    Attributes:
        corrupt: images that were replaced in the steps done.
        row: the newest step's, while it waits for the evaluation that joins it.
    """

    corrupt: int = 0
    row: Row | None = None

    def to_json(self) -> dict[str, Any]:
        """A part of the meta of a checkpoint."""
        return {"progress": {"corrupt": self.corrupt, "row": self.row and finite(self.row)}}

    @classmethod
    def from_json(cls, meta: Mapping[str, Any]) -> "Progress":
        """Of a meta, which may have none; `ValueError`, `TypeError` or `KeyError` where it is something else."""
        if "progress" not in meta:
            return cls()
        corrupt, row = meta["progress"]["corrupt"], meta["progress"]["row"]
        require(whole(corrupt, 0, 2**63 - 1), "its corrupt images are no number")
        require(row is None or _is_row(row), "its row is none")
        return cls(corrupt, row)
