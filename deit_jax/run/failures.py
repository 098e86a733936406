"""The steps of a run whose loss or gradient was not finite: what each was given is kept, to be run again.

A folder `failures/step_N` is all that `run.replay` needs beside the config, wherever it is copied to; step N is the
row N of `metrics.jsonl`. It is a checkpoint directory of weights alone, their step N - 1, and holds, too,

    batch_ROW.npz   what the step was given of the batch, from ROW on, a file a process: uint8 images, labels, what was
                    drawn to mix and erase them, and what was recorded of a teacher
    failure.json    seed, positions in the stream, index and name of each example; written last

The state before a step is donated to it, and its metrics are read when the next one is on its way already, so that
the device never waits. Keeping a copy of it at each step would cost a quarter of the state's memory, and going there
again from the last checkpoint an hour. But a skipped step leaves the parameters as they were: the state of now still
has those that failed, unless the step on its way, which nobody has read yet, was a good one. Then it has moved them by
one update. `updates_since` tells, 0 or 1; it is 0 in every burst longer than a step, and where parameters that have
diverged, and not a single batch, are the cause.

The optimizer's state and the average have no part in the loss and its gradient, and are left out: a quarter of a
checkpoint.
"""

import dataclasses
import io
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from deit_jax import parallel
from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.base.forms import read_json, read_regular, require, whole
from deit_jax.base.storage import Place, is_step, remove
from deit_jax.parallel import hosts
from deit_jax.run.build import Run
from deit_jax.run.monitor import Monitor
from deit_jax.run.workdir import Workdir
from deit_jax.step.state import TrainState
from deit_jax.step.step import Batch
from deit_jax.weights.meta import Meta
from deit_jax.weights.orbax import CheckpointDirectory

MOST = 10  # so that a run that skips now and then does not fill the disk
FACTS = "failure.json"
REPLICATED = ("mix",)  # parts of a batch that are the same for all processes; of the others each has its rows


class Failures:
    """Keeps the failing steps of a run, from each burst the first that is read.

    Of more than `MOST` those alone whose burst ends in a rollback, which `guard.max_rollbacks` bounds. Keeping takes
    the time to write a fourth of a checkpoint; a step that cannot be kept costs a warning.

    Args:
        meta: as of its checkpoints.
    """

    def __init__(self, workdir: Workdir, run: Run, meta: Meta):
        self._workdir, self._folder, self._run, self._meta = workdir, workdir.failures, run, meta
        self._known = set(hosts.of_first(lambda: kept_steps(workdir.failures)))
        self._recent: dict[int, Batch] = {}  # a step's metrics are read when the next one has its batch
        self._burst = 0  # the first step of the burst that was dealt with
        for left in self._folder.glob("step_*") if hosts.index() == 0 else ():
            if is_step(left.name.removeprefix("step_")) and not (left / FACTS).exists():  # a kill came before its end
                remove(left)

    def look(self, step: int, batch: Batch, state: TrainState, monitor: Monitor) -> None:
        """To be called after each step, with its batch and the state after it; all processes decide alike."""
        self._recent = {at: given for at, given in self._recent.items() if at == step - 1} | {step: batch}
        failed, burst = monitor.failed
        first = failed - burst + 1
        room = len(self._known) < MOST or burst >= self._run.config.guard.max_skipped
        if not burst or first == self._burst or not room:
            return
        self._burst = first
        if failed in self._known:  # by a start before this one
            return
        self._known.add(failed)
        self._workdir.require()
        folder = self._folder / f"step_{failed}"
        updates = int(int(state.skipped_in_a_row) != burst + step - failed)
        # What all processes do together comes first: after it each may fail by itself.
        examples = parallel.all_rows(self._recent[failed]["index"], self._run.mesh).tolist()
        parts = (
            lambda: self._keep_rows(folder, self._recent[failed], len(examples)),
            lambda: self._keep_facts(folder, failed, examples, updates),
        )
        if not (self._keep_weights(folder, failed, state) and all(self._done(failed, part) for part in parts)):
            if hosts.index() == 0:
                remove(folder)
            return
        logging.warning(
            "step %d: kept in %s; --mode=replay --step=%d tells what in it is not finite first", failed, folder, failed
        )

    def _done(self, failed: int, work: Callable[[], None]) -> bool:
        """Whether it went well in all processes: else none has the step, and the run goes on without."""
        reason = ""
        try:
            work()
        except Exception as error:  # of a full disk Orbax makes anything; the run needs nothing of this
            reason = str(error) or repr(error)
        objections = hosts.objections(reason)
        for objection in objections:
            logging.warning("step %d: is not kept: %.300s", failed, objection)
        return not objections

    def _keep_weights(self, folder: Place, failed: int, state: TrainState) -> bool:
        step = jax.device_put(np.int32(failed - 1), state.step.sharding)
        weights, kept = CheckpointDirectory(folder), dataclasses.replace(state, step=step, opt_state=(), ema={})
        return self._done(failed, lambda: weights.save(kept, self._meta)) and self._done(failed, weights.close)

    def _keep_rows(self, folder: Place, batch: Batch, count: int) -> None:
        leaves = jax.tree_util.tree_leaves_with_path(batch)
        rows: dict[str, Any] = {_name(path): parallel.own_rows(leaf) for path, leaf in leaves}
        first = parallel.local_rows(self._run.mesh, count).start
        with replacing(folder / f"batch_{first}.npz") as fresh, fresh.open("wb") as file:
            np.savez(file, **rows)

    def _keep_facts(self, folder: Place, failed: int, examples: list[int], updates: int) -> None:
        """What says that all is there, and therefore the last."""
        facts = {
            "step": failed,
            "updates_since": updates,
            "seed": self._run.config.seed,
            "positions": [(failed - 1) * len(examples), failed * len(examples) - 1],
            "split": len(self._run.source),
            "examples": examples,
            "names": [self._run.source.name(example) for example in examples],
        }
        if hosts.index() == 0:
            Workdir(folder).write_json(FACTS, facts)


def _name(path: tuple[Any, ...]) -> str:
    """Of a part of a batch: `image`, `mix/box`."""
    return "/".join(entry.key for entry in path)


def kept_steps(folder: Place) -> list[int]:
    """The steps that are kept whole in a folder, which need not be there."""
    named = [path.parent.name.removeprefix("step_") for path in folder.glob(f"step_*/{FACTS}")]
    return sorted(int(name) for name in named if is_step(name))


def listed(kept: Sequence[int]) -> str:
    """In words, the steps that are kept."""
    return (
        f"kept are {', '.join(map(str, kept))}"
        if kept
        else "none is: a step is, when its loss or gradient is not finite"
    )


@dataclasses.dataclass(frozen=True)
class Failure:
    """A step that was kept.

    Attributes:
        updates_since: by so many updates, 0 or 1, the parameters are later than those that failed.
        split: examples in the training split.
        examples, names: of each row of the batch, the index in the split and what it is called.
        batch: what the step was given of it, on the host.
        weights: the directory of the state before it.
        meta: as of the run's checkpoints.
    """

    updates_since: int
    split: int
    examples: list[int]
    names: list[str]
    batch: Batch
    weights: CheckpointDirectory
    meta: Meta


def read_failure(folder: Place, step: int) -> Failure:
    """What is kept of a step.

    Raises:
        UserError: it is not kept, or not as it was written.
        CorruptCheckpoint: the same of its weights.
    """
    if step not in (kept := kept_steps(folder)):
        raise UserError(f"--step: {step} is not kept in {folder}; {listed(kept)}")
    place = folder / f"step_{step}"
    facts = read_json(place / FACTS, dict, mend="bring it back from a copy")
    try:
        require(facts["step"] == step, f"is of step {facts['step']}")
        for name, most in (("updates_since", 1), ("split", 2**63)):
            require(whole(facts.get(name), 0, most), f"{name} is no number of its kind")
        examples, names = facts["examples"], facts["names"]
        require(isinstance(examples, list) and all(whole(x, 0, facts["split"] - 1) for x in examples), "no examples")
        require(isinstance(names, list) and len(names) == len(examples), "not a name for each example")
        require(all(isinstance(name, str) for name in names), "names are none")
        batch = _read_batch(place, len(examples))
    except (ValueError, KeyError) as error:
        raise UserError(f"{place}: is not what was kept: {error}; bring it back from a copy") from error
    weights = CheckpointDirectory(place)
    given = {name: facts[name] for name in ("updates_since", "split")}
    return Failure(**given, examples=examples, names=names, batch=batch, weights=weights, meta=weights.meta(step - 1))


def _read_batch(place: Place, rows: int) -> Batch:
    """The batch, of all processes' files; `ValueError` where they are not all there and whole."""
    files = sorted(place.glob("batch_*.npz"), key=lambda path: int(path.stem.removeprefix("batch_")))
    parts = []
    for path in files:
        try:
            with np.load(io.BytesIO(read_regular(path))) as file:
                parts.append(dict(file))
        except Exception as error:  # whatever NumPy and zipfile make of damage, which a checksum finds
            raise ValueError(f"{path.name}: {error}") from error
    require(bool(parts) and all(part.keys() == parts[0].keys() for part in parts), "its batch is not there")
    batch: Batch = {"teacher": {}}
    for name in parts[0]:
        group, _, leaf = name.rpartition("/")
        shared = group in REPLICATED
        whole_rows = parts[0][name] if shared else np.concatenate([part[name] for part in parts])
        require(shared or len(whole_rows) == rows, f"{name} has {len(whole_rows)} of {rows} rows")
        (batch.setdefault(group, {}) if group else batch)[leaf] = whole_rows
    batch.setdefault("place", np.arange(rows, dtype=np.int32))  # which runs of before did not tell: they had no other
    return batch
