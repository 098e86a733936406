"""Follows the training loop: a progress bar, images per second, data wait, and what other processes have seen."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from deit_jax.parallel import Exchange, hosts
from deit_jax.run.interrupt import LINE, Interrupt, Stopped
from deit_jax.run.judged import Judged
from deit_jax.run.metrics import Progress, Row, Writer

Batch = dict[str, Any]


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
        interrupt: what it hears of one is told to all, by the same step.
        start, total: steps done, and to do in all.
        log_every: steps between rows.
        batch_size: global.
        progress: of the steps done.
        show: draw a bar.
        image_seconds: what an image of a step would take at the speed of large matrix products; 0 where utilisation is
            not told.
        judged: what is said of the evaluations beside the bar.

    Attributes:
        burst: most skipped updates in a row so far; set back by who has dealt with them.
        failed: the newest step read whose update was skipped, and how many in a row end with it; (0, 0): none was.
        progress: of the steps done.
    """

    def __init__(
        self,
        writer: Writer | None,
        exchange: Exchange,
        interrupt: Interrupt,
        *,
        start: int,
        total: int,
        log_every: int,
        batch_size: int,
        progress: Progress | None = None,
        show: bool = False,
        image_seconds: Callable[[int], float] = lambda step: 0.0,
        judged: Judged | None = None,
    ):
        self._writer, self._exchange, self._interrupt = writer, exchange, interrupt
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
        self.burst = self._newest_burst = 0
        self.failed = (0, 0)
        self._judged = judged or Judged(None)
        self._compiling = True  # the first step's time is the compiler's
        self._skipped = False
        self._restart_clock(time.perf_counter())

    def _restart_clock(self, now: float) -> None:
        self._since, self._steps, self._needed = now, 0, 0.0
        # A step is read after the next batch was waited for: waits are shares of the time from one to another.
        self._asked_since = now if self._pending is None else self._asked_at
        self._waited = np.zeros(jax.process_count())

    def wait_for(self, batches: Iterator[tuple[Batch, int]]) -> Batch:
        """The next batch, its corrupt images counted; the time spent here, but for what the processes then tell one
        another of these, is the run's data wait."""
        self._asked_at, before = time.perf_counter(), hosts.waited()
        batch, corrupt = next(batches)
        self._seen = corrupt, time.perf_counter() - self._asked_at - (hosts.waited() - before)
        return batch

    def add(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes the metrics, still being computed, of `step`; reads those of the step before, if not yet read."""
        told = self._exchange([self._interrupt.requested, *self._seen])
        previous, self._pending = self._pending, (step, metrics, told)
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

    def evaluating(self) -> None:
        """To be called before each batch of an evaluation.

        Raises:
            Stopped: in all of several processes, where one was asked to stop.
        """
        if not self._interrupt.alone:
            self._interrupt.heard |= bool(self._exchange.read(self._exchange([self._interrupt.requested])).any())
            if self._interrupt.heard:
                raise Stopped(LINE)

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
        self._interrupt.heard |= bool(asked.any())
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
        elapsed = now - self._since
        asking = (self._asked_at if self._pending else now) - self._asked_since
        speed, waits = self._steps * self._batch_size / elapsed, (self._waited / max(asking, 1e-9)).tolist()
        wait, several = max(waits), len(waits) > 1
        slowest = waits.index(wait)
        text = f"loss {values['loss']:.3f}, {speed:.0f} images/s, data wait {wait:.0%}"
        text += f" of {hosts.name(slowest)}" if several else ""
        used = {"train/utilisation": self._needed / elapsed} if self._needed else {}
        text += "".join(f", utilisation {share:.1%}" for share in used.values())
        self._bar.set_postfix_str(_in_short(self._judged) + text, refresh=False)
        row = {"step": step, **{f"train/{name}": value for name, value in values.items()}}
        row |= {
            "train/images_per_second": speed,
            "train/data_wait": wait,
            "train/corrupt": self.progress.corrupt,
            **used,
        }
        if several:
            row["train/data_wait_process"] = slowest
            row |= {f"train/data_wait/{process}": each for process, each in enumerate(waits)}
        if due:
            self.progress.row = row
        elif self._writer:
            self._writer.write(row)

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()


def _in_short(judged: Judged) -> str:
    """The last evaluation, and the best where that was another: `top-1 88.9 (best 90.1 at 40), `."""
    if not judged.last or not judged.best:
        return ""
    (step, last), (best_step, best) = judged.last, judged.best
    return f"top-1 {last:.1f}{f' (best {best:.1f} at {best_step})' if best_step != step else ''}, "
