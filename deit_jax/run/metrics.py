"""What a run tells: rows in `metrics.jsonl` and TensorBoard, a progress bar, images per second and data wait."""

import bisect
import contextlib
import dataclasses
import importlib.util
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.base.forms import parse_json, read_regular, require, whole
from deit_jax.parallel import Exchange, hosts
from deit_jax.run.tensorboard import Events
from deit_jax.run.workdir import Workdir
from deit_jax.step.state import MAX_STEP

Row = dict[str, Any]
Batch = dict[str, Any]


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
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"--workdir: cannot write {self.path}: {reason}; make it a file of yours") from error

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

    def told(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: finite(value) if isinstance(value, Mapping) else told(value) for name, value in values.items()}


def read_rows(path: Path) -> list[Row]:
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


class _Screen:
    """stderr, as long as it takes anything: a bar is worth no run."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class Monitor:
    """Follows the training loop: reads each step's metrics one step late, so that the device never waits for the host.

    Args:
        writer: None on all processes but the first.
        exchange: by which it hears what the monitors of other processes have seen.
        start, total: steps done, and to do in all.
        log_every: steps between rows.
        batch_size: global.
        progress: of the steps done.
        show: draw a bar.
        image_seconds: what an image of a step would take at the speed of large matrix products; 0 where utilisation is
            not told.

    Attributes:
        burst: most skipped updates in a row so far; set back by who has dealt with them.
        failed: the newest step read whose update was skipped, and how many in a row end with it; (0, 0): none was.
        progress: of the steps done.
        asked: some process was asked to stop; known to all at the same step.
    """

    def __init__(
        self,
        writer: Writer | None,
        exchange: Exchange,
        *,
        start: int,
        total: int,
        log_every: int,
        batch_size: int,
        progress: Progress | None = None,
        show: bool = False,
        image_seconds: Callable[[int], float] = lambda step: 0.0,
    ):
        self._writer, self._exchange = writer, exchange
        self._log_every, self._batch_size = log_every, batch_size
        self._image_seconds = image_seconds
        # In a log file a line every half a minute; on a terminal a bar that moves.
        often = 0.5 if sys.stderr.isatty() else 30
        self._bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            mininterval=often,
            dynamic_ncols=True,
            disable=not (show and writer),
            file=_Screen(),
        )
        self._pending: tuple[int, Mapping[str, Any], Any] | None = None
        self._seen, self._asked_at = (0, 0.0), 0.0  # of the newest batch: corrupt images and seconds; asked for when
        self.progress = progress or Progress()
        self.burst, self._newest_burst, self.asked = 0, 0, False
        self.failed = (0, 0)
        self._compiling = True  # the first step's time is the compiler's
        self._skipped = False
        self._restart_clock(time.perf_counter())

    def _restart_clock(self, now: float) -> None:
        self._since, self._steps, self._needed = now, 0, 0.0
        # A step is read after the next batch was waited for: waits are shares of the time from one to another.
        self._asked_since = now if self._pending is None else self._asked_at
        self._waited = np.zeros(jax.process_count())

    def wait_for(self, batches: Iterator[tuple[Batch, int]]) -> Batch:
        """The next batch, its corrupt images counted; the time spent here is the run's data wait."""
        self._asked_at = time.perf_counter()
        batch, corrupt = next(batches)
        self._seen = corrupt, time.perf_counter() - self._asked_at
        return batch

    def add(self, step: int, metrics: Mapping[str, Any], asked: bool = False) -> None:
        """Takes the metrics, still being computed, of `step`; reads those of the step before, if not yet read.

        Args:
            asked: this process was asked to stop.
        """
        previous, self._pending = self._pending, (step, metrics, self._exchange([asked, *self._seen]))
        if previous:
            self._read(*previous)

    def settle(self, *, due: bool = False) -> None:
        """Reads the newest step's metrics now, if not yet read.

        Args:
            due: there will be an evaluation, which the row waits for.
        """
        if self._pending:
            (step, metrics, told), self._pending = self._pending, None
            self._read(step, metrics, told, due)

    def hear(self, asked: bool) -> bool:
        """Whether any process was asked to stop, this one if `asked`; all have to call it, and wait for one another."""
        self.asked |= bool(self._exchange.read(self._exchange([asked]))[:, 0].any())
        return self.asked

    def add_evaluation(self, metrics: Row) -> None:
        """Writes the row that waits with the metrics of its evaluation, which took no time of the steps."""
        if self.progress.row and self._writer:
            self._writer.write(self.progress.row | metrics)
        self.progress.row = None
        self._restart_clock(time.perf_counter())

    @property
    def healthy(self) -> bool:
        """Whether the newest step read was not skipped."""
        return self._newest_burst == 0

    def _read(self, step: int, metrics: Mapping[str, Any], told: Any, due: bool = False) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        asked, corrupt, waited = self._exchange.read(told).T
        self.asked |= bool(asked.any())
        self.progress.corrupt += int(corrupt.sum())
        self._waited += waited
        now = time.perf_counter()
        self._newest_burst = int(values["skipped_in_a_row"])
        self.burst = max(self.burst, self._newest_burst)
        if self._newest_burst:
            self.failed = step, self._newest_burst
        if self._newest_burst and not self._skipped:
            self._skipped = True
            logging.warning("step %d: its loss or gradient is not finite; updates like this are skipped", step)
        self._steps += 1
        self._needed += self._batch_size * self._image_seconds(step - 1)  # the step is counted when it is done
        self._bar.update(step - self._bar.n)
        logged = step % self._log_every == 0 or due
        if logged:
            self._tell(step, values, now, due)
        if logged or self._compiling:
            self._compiling = False
            self._restart_clock(now)

    def _tell(self, step: int, values: Mapping[str, float], now: float, due: bool) -> None:
        elapsed, slowest = now - self._since, int(self._waited.argmax())
        asking = (self._asked_at if self._pending else now) - self._asked_since
        speed, wait = self._steps * self._batch_size / elapsed, float(self._waited[slowest]) / max(asking, 1e-9)
        several = len(self._waited) > 1
        text = f"loss {values['loss']:.3f}, {speed:.0f} images/s, data wait {wait:.0%}"
        text += f" of {hosts.name(slowest)}" if several else ""
        used = {"train/utilisation": self._needed / elapsed} if self._needed else {}
        text += "".join(f", utilisation {share:.1%}" for share in used.values())
        self._bar.set_postfix_str(text, refresh=False)
        row = {"step": step, **{f"train/{name}": value for name, value in values.items()}}
        row |= {
            "train/images_per_second": speed,
            "train/data_wait": wait,
            **({"train/data_wait_process": slowest} if several else {}),
            "train/corrupt": self.progress.corrupt,
            **used,
        }
        if due:
            self.progress.row = row
        elif self._writer:
            self._writer.write(row)

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()
