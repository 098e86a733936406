"""What a run tells: rows in `metrics.jsonl` and TensorBoard, a progress bar, images per second and data wait."""

import importlib.util
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
from tqdm import tqdm

from deit_jax.base.errors import UserError

Row = dict[str, Any]
Batch = dict[str, Any]


class Writer:
    """Writes rows to `metrics.jsonl` and, where asked, TensorBoard and Weights & Biases.

    Opening it for a run that resumes drops the rows after `step` and a torn last line, so that each step stands once.
    """

    def __init__(self, workdir: Path, *, step: int, tensorboard: bool, wandb: bool, config: Mapping[str, Any]):
        self._tensorboard = self._wandb = None
        if wandb:
            self._wandb = _start_wandb(workdir, config)
        if tensorboard:
            # The suffix: files are named by the second, and one started within the same would replace the other.
            self._tensorboard = _summary_writer()(
                str(workdir / "tensorboard"), purge_step=step + 1, filename_suffix=f".{step}", write_to_disk=True
            )
        self.path = workdir / "metrics.jsonl"
        kept = [row for row in read_rows(self.path) if row["step"] <= step]
        fresh = self.path.with_suffix(".tmp")
        fresh.write_text("".join(json.dumps(row) + "\n" for row in kept))
        fresh.replace(self.path)
        self._file = self.path.open("a")

    def write(self, row: Row) -> None:
        """Writes one row, `step` and metrics by name, through to the disk; what is not finite becomes null."""
        row = finite(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, row["step"])
        if self._wandb:
            self._wandb.log(values, step=row["step"])

    def close(self) -> None:
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


def _summary_writer() -> Any:
    """tensorboardX's class, imported as if torch were not there: it would load it only to accept its tensors too."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = cast(Any, None)
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter


def require_wandb() -> None:
    """Raises `UserError` unless Weights & Biases can be imported."""
    if importlib.util.find_spec("wandb") is None:
        raise UserError("config.log.wandb: there is no package wandb; pip install wandb, or set it to False")


def _start_wandb(workdir: Path, config: Mapping[str, Any]) -> Any:
    require_wandb()
    import wandb

    return wandb.init(dir=str(workdir), config=dict(config), id=workdir.name, resume="allow")


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """What is not finite becomes None, since JSON has no NaN; groups within are treated alike."""
    return {
        name: finite(value) if isinstance(value, Mapping) else value if math.isfinite(value) else None
        for name, value in values.items()
    }


def read_rows(path: Path) -> list[Row]:
    """The whole rows of a `metrics.jsonl`; a line torn by a kill is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class Monitor:
    """Follows the training loop: reads each step's metrics one step late, so that the device never waits for the host.

    Args:
        writer: None on all processes but the first.
        start, total: steps done, and to do in all.
        log_every: steps between rows.
        batch_size: global.
        image_seconds: what an image would take at the speed of large matrix products; 0 where utilisation is not told.
    """

    def __init__(
        self,
        writer: Writer | None,
        *,
        start: int,
        total: int,
        log_every: int,
        batch_size: int,
        progress: bool,
        image_seconds: float = 0.0,
    ):
        self._writer, self._log_every, self._batch_size = writer, log_every, batch_size
        self._image_seconds = image_seconds
        # In a log file a line every half a minute; on a terminal a bar that moves.
        often = 0.5 if sys.stderr.isatty() else 30
        self._bar = tqdm(
            total=total,
            initial=start,
            unit="step",
            mininterval=often,
            dynamic_ncols=True,
            disable=not (progress and writer),
        )
        self._pending: tuple[int, Mapping[str, Any]] | None = None
        self._corrupt = self._newest_burst = 0
        self.burst = 0  # most skipped updates in a row so far; set back by who has dealt with them
        self._compiling = True  # the first step's time is the compiler's
        self._restart_clock()

    def _restart_clock(self) -> None:
        self._since, self._waited, self._steps = time.perf_counter(), 0.0, 0

    def wait_for(self, batches: Iterator[tuple[Batch, int]]) -> Batch:
        """The next batch, its corrupt images counted; the time spent here is the run's data wait."""
        began = time.perf_counter()
        batch, corrupt = next(batches)
        self._waited += time.perf_counter() - began
        self._corrupt += corrupt
        return batch

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics, still being computed, of `step`; reads those of the step before, if not yet read."""
        previous, self._pending = self._pending, (step, metrics)
        if previous:
            self._read(*previous)

    def settle(self, evaluate: Callable[[], Row] | None = None) -> None:
        """Reads the newest step's metrics now, if not yet read; what `evaluate` returns joins its row."""
        if self._pending:
            (step, metrics), self._pending = self._pending, None
            self._read(step, metrics, evaluate)

    @property
    def healthy(self) -> bool:
        """Whether the newest step read was not skipped."""
        return self._newest_burst == 0

    def _read(self, step: int, metrics: Mapping[str, Any], evaluate: Callable[[], Row] | None = None) -> None:
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._newest_burst = int(values["skipped_in_a_row"])
        self.burst = max(self.burst, self._newest_burst)
        self._steps += 1
        self._bar.update(step - self._bar.n)
        if step % self._log_every == 0 or evaluate:
            elapsed = time.perf_counter() - self._since
            speed, wait = self._steps * self._batch_size / elapsed, self._waited / elapsed
            text = f"loss {values['loss']:.3f}, {speed:.0f} images/s, data wait {wait:.0%}"
            used = {"train/utilisation": speed * self._image_seconds} if self._image_seconds else {}
            text += "".join(f", utilisation {share:.1%}" for share in used.values())
            self._bar.set_postfix_str(text, refresh=False)
            row = {"step": step, **{f"train/{name}": value for name, value in values.items()}}
            row |= {"train/images_per_second": speed, "train/data_wait": wait, "train/corrupt": self._corrupt, **used}
            row |= evaluate() if evaluate else {}
            if self._writer:
                self._writer.write(row)
        if step % self._log_every == 0 or evaluate or self._compiling:
            self._compiling = False
            self._restart_clock()

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()
