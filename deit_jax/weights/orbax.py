"""A checkpoint directory: the only file that knows Orbax.

It holds, a folder a step, `state` (a whole `TrainState`) and the JSON beside it, see `meta.py`. Saving runs in the
background.

Orbax's `CheckpointManager` has no part in it: it reads the metrics of all steps when it is made, so that a damaged file
keeps all of them out of reach; and it wants the metrics at the save, when a run has not evaluated yet.
"""

import functools
import itertools
import logging
import math
import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.base.storage import COMMITTED, UNFINISHED, Place, is_bucket, is_step, within
from deit_jax.parallel import hosts
from deit_jax.step.state import MAX_STEP, TrainState, Variables
from deit_jax.weights.arrays import check_fit, checksum, describe, of_field
from deit_jax.weights.meta import (
    CorruptCheckpoint,
    Meta,
    complete,
    form_of,
    raise_machines,
    read_meta,
    read_top1,
    write_top1,
)

_SAVERS, _SAVES = itertools.count(), itertools.count()  # of this process, in step with those of the others
SLICE = 2**14  # bytes of an array that a replica writes at least


class AlreadyThere(RuntimeError):
    """There is such a step, or a later one."""


class CheckpointDirectory:
    """The steps in an absolute directory, which need not exist until one is saved."""

    def __init__(self, directory: Place):
        self.directory = directory
        self._saver: ocp.AsyncCheckpointer | None = None
        self._saving = -1  # the newest step whose save was begun
        self._nbytes = 0  # of it

    def steps(self) -> list[int]:
        """The saved steps, whole or damaged, in their order. Whatever else is called is none of them."""
        return sorted(int(path.name) for path in self._numbered() if _committed(path))

    def unfinished(self) -> list[Place]:
        """What a kill has left of saving or removing a step."""
        begun = [path for path in self._numbered() if not _committed(path)]
        return [*self.directory.glob(f"*{UNFINISHED}*"), *begun]

    def _numbered(self) -> list[Place]:
        try:
            named = [path for path in self.directory.iterdir() if is_step(path.name) and path.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [path for path in named if int(path.name) <= MAX_STEP]

    def latest(self) -> int | None:
        """The newest saved step."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The step with the best evaluation, of equals the newest; the newest of all where none was evaluated."""
        judged = []
        for step in self.steps():
            try:
                top1 = self.top1(step)
            except CorruptCheckpoint as error:
                logging.warning("%s; passed over", error)
                continue
            judged.append((-1.0 if top1 is None else top1, step))
        return max(judged)[1] if judged else None

    def best_top1(self) -> tuple[int, float] | None:
        """The best step and the top-1 of its evaluation; None where none was evaluated."""
        step = self.best()
        top1 = None if step is None else self.top1(step)
        return None if step is None or top1 is None else (step, top1)

    def top1(self, step: int) -> float | None:
        """Of the evaluation of `step`, in percent; None where there was none.

        Raises:
            CorruptCheckpoint: it cannot be read.
        """
        return read_top1(self.directory / str(step))

    def judge(self, step: int, top1: float) -> None:
        """Adds its evaluation to a saved step; `OSError` where it cannot be written."""
        write_top1(self.directory / str(step), top1)

    def meta(self, step: int) -> Meta:
        """What was saved beside the state of `step`.

        Raises:
            UserError: it is a checkpoint of another program, or of another layout.
            CorruptCheckpoint: it cannot be read, or is not of the form.
        """
        return read_meta(self.directory / str(step))

    def save(self, state: TrainState, meta: Meta) -> None:
        """Begins to save the state under its step, in the background; waits for the save before it.

        Args:
            meta: JSON content, with the `card` of the weights; the description of the arrays is added to it.

        Raises:
            OSError: there is no room for a folder, or `TryAgain`: the bucket does not answer; in all processes alike,
                none of which has begun anything.
            AlreadyThere: in all processes alike, too.
        """
        step = int(state.step)
        newest = max(self._saving, self._make_room())
        if step <= newest:
            raise AlreadyThere(f"step {step} was not saved: {self.directory} has step {newest}")
        if self._saver is None:
            handlers = {"state": _state_handler(), "meta": ocp.JsonCheckpointHandler()}
            # Of its own, since the one before may wait for another process for a while; and by JAX's service, which
            # all processes have to be named for: else by the devices, where what still waits would meet other things.
            barriers = ocp.options.MultiprocessingOptions(
                active_processes=set(range(jax.process_count())), barrier_sync_key_prefix=f"saver_{next(_SAVERS)}"
            )
            options = ocp.CompositeOptions(multiprocessing_options=barriers)
            self._saver = ocp.AsyncCheckpointer(
                ocp.CompositeCheckpointHandler(composite_options=options, **handlers), multiprocessing_options=barriers
            )
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(complete(meta, state)))
        self._nbytes = _nbytes(state)
        self._together(functools.partial(self._saver.save, self.directory / str(step), args=items))
        self._saving = step

    def _make_room(self) -> int:
        """Makes the directory if it is missing; its newest step, or -1.

        The first process does so, before all of them meet in what the saver does together: there the others would wait
        for one that has failed already.
        """

        def made() -> tuple[int, str]:
            try:
                if not is_bucket(self.directory):
                    self.directory.mkdir(parents=True, exist_ok=True)
                    with tempfile.TemporaryFile(dir=self.directory):
                        pass
                return max(self.steps(), default=-1), ""
            except (OSError, TryAgain) as error:
                return -1, str(error)

        newest, failed = hosts.of_first(made)
        if failed:
            raise (TryAgain if is_bucket(self.directory) else OSError)(failed)
        return newest

    def wait(self) -> None:
        """Waits for the save in the background; raises what it failed with, which may be anything."""
        saving, self._saving = self._saving, -1
        if self._saver and saving >= 0:
            self._together(self._saver.wait_until_finished)

    def _together(self, work: Callable[[], None]) -> None:
        """Does what the saver does together with those of the other processes; what fails in one fails in all."""
        work = functools.partial(within, work, self.directory, nbytes=self._nbytes)
        try:
            hosts.together(work, f"saving/{next(_SAVES)}")
        except Exception:
            self.give_up()  # nobody knows its state, and it may be at it still
            raise

    def give_up(self) -> None:
        """Leaves alone a save that was begun, and whoever does it."""
        self._saver, self._saving = None, -1

    def close(self) -> None:
        """Waits for the save in the background and lets go of the directory."""
        self.wait()
        if self._saver:
            self._saver.close()
            self._saver = None

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The state of `step`, with the shapes and shardings of `target` (arrays or `ShapeDtypeStruct`s).

        Raises:
            UserError: the checkpoint holds other arrays than `target` has.
            CorruptCheckpoint: the arrays cannot be read, or differ from what was saved.
        """
        meta = self.meta(step)
        state = self.read(step, target, meta)
        self.require_whole(step, state, meta)
        return state

    def read(self, step: int, target: TrainState, meta: Meta) -> TrainState:
        """The same without a look at what was read; each process reads its own part, and waits for no other."""
        check_fit(meta["arrays"], target, self.directory / str(step))
        return self._read(step, ocp.StandardCheckpointHandler(), ocp.args.StandardRestore(target), meta)

    def require_whole(self, step: int, state: TrainState, meta: Meta) -> None:
        """Raises `CorruptCheckpoint`, in all processes alike, where what they have read is not what was saved."""
        for path, entry in describe(state).items():
            if entry["checksum"] != meta["arrays"][path]["checksum"]:
                raise CorruptCheckpoint(f"{self.directory / str(step)}: {path} is not what was saved")
        if int(state.step) != step:
            raise CorruptCheckpoint(f"{self.directory / str(step)}: is of step {state.step}, by another name")

    def variables(self, step: int, *, ema: bool | None = None) -> tuple[Variables, Meta]:
        """The weights alone of `step`, parameters and statistics as host arrays, and what was saved beside them.

        Args:
            ema: True for the moving average, False for the raw weights, None for the average where there is one.

        Raises:
            UserError: there is no such step, or no average in it.
            CorruptCheckpoint: the arrays cannot be read, or differ from what was saved.
        """
        if step not in self.steps():
            raise UserError(f"{self.directory}: has no step {step}; there are {self.steps()}")
        meta = self.meta(step)
        groups = {"ema": of_field(meta["arrays"], "ema")}
        if ema and not groups["ema"]:
            raise UserError(f"{self.directory}: step {step} has no moving average; take the raw weights")
        if ema is False or not groups["ema"]:
            groups = {name: of_field(meta["arrays"], name) for name in ("params", "stats")}
        groups = {name: group for name, group in groups.items() if group}
        arguments = ocp.args.PyTreeRestore(
            groups,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), groups),
            partial_restore=True,
        )
        read = self._read(step, ocp.PyTreeCheckpointHandler(), arguments, meta)
        for name, group in read.items():
            for path, value in group.items():
                if checksum(value) != meta["arrays"][f".{name}['{path}']"]["checksum"]:
                    raise CorruptCheckpoint(f"{self.directory / str(step)}: {path} is not what was saved")
        return {path: value for group in read.values() for path, value in group.items()}, meta

    def _read(self, step: int, handler: Any, arguments: Any, meta: Meta) -> Any:
        """The state, by a handler of Orbax's: its `Checkpointer` would wait for the other processes afterwards."""
        where = self.directory / str(step)
        read = functools.partial(handler.restore, where / "state", args=arguments)
        try:
            if not is_bucket(where):
                _require_regular(where / "state")
            with closing(handler):
                return within(read, where, nbytes=_nbytes(arguments.item))
        except (MemoryError, TryAgain, jax.errors.JaxRuntimeError):
            raise  # of the machine, not of the files
        except Exception as error:  # Orbax raises ValueError, JSONDecodeError, FileNotFoundError and bare Exception.
            raise_machines(error, where)
            # Of the same arrays: `check_fit` has looked.
            if "tree structures do not match" in str(error) and meta.get("form") != form_of(arguments.item):
                raise UserError(
                    f"{where}: holds the state of an optimizer of another form; go on with the config and the versions "
                    f"of optax and deit_jax that wrote it, or begin from its weights by config.init_from"
                ) from error
            raise CorruptCheckpoint(f"{where}: cannot be read: {str(error)[:300]}") from error


def _state_handler() -> ocp.PyTreeCheckpointHandler:
    """Replicas share the writing of large arrays; to cut small ones, too, makes the steps wait ten times as long."""
    handlers = ocp.type_handlers
    of_arrays = handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=SLICE)
    kinds = (jax.Array, of_arrays), (np.ndarray, handlers.NumpyHandler()), (np.number, handlers.ScalarHandler())
    return ocp.PyTreeCheckpointHandler(type_handler_registry=handlers.create_type_handler_registry(*kinds))


def _committed(step: Place) -> bool:
    """Whether a step was saved to its end. On a disk its name says so, unless it was copied from a bucket."""
    if (step / COMMITTED).exists():
        return True
    about = step / "_CHECKPOINT_METADATA"  # tells when the saving began, and when it ended
    if is_bucket(step) or not about.is_file():
        return not is_bucket(step)
    try:
        return b'"commit_timestamp_nsecs": null' not in about.read_bytes()
    except FileNotFoundError:  # removed meanwhile, by the first process
        return False


def _nbytes(tree: Any) -> int:
    """Bytes of all arrays, or of what they are to be."""
    return sum(math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _require_regular(folder: Place) -> None:
    """`ValueError` where it holds what is neither a file nor a folder: TensorStore would wait for a pipe for ever."""
    for root, _, names in os.walk(folder):
        for name in names:
            if not stat.S_ISREG(os.stat(os.path.join(root, name)).st_mode):
                raise ValueError(f"{name} is no file")


def read_variables(directory: Place, *, step: int | str = "best", ema: bool | None = None) -> tuple[Variables, Meta]:
    """The weights in a checkpoint directory, see `CheckpointDirectory.variables`.

    Args:
        step: a number, "latest", or "best": by evaluation, or the latest where none was evaluated.

    Raises:
        UserError: they are not there, or cannot be read.
    """
    checkpoints = CheckpointDirectory(directory)
    try:
        named = {"best": checkpoints.best, "latest": checkpoints.latest}
        number = named[step]() if isinstance(step, str) else step
        if number is None:
            raise UserError(f"{directory}: has no finished checkpoint; train longer first")
        return checkpoints.variables(number, ema=ema)
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; name another step of it, as in {directory}@STEP, or bring it back") from error


def write_variables(directory: Place, variables: Variables, meta: Meta) -> None:
    """Writes weights alone as step 0 of a new checkpoint directory, which is there whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    zero = np.int32(0)
    state = TrainState(zero, variables, stats={}, opt_state=(), ema={}, skipped=zero, skipped_in_a_row=zero)
    try:
        with replacing(directory) as unfinished:
            checkpoints = CheckpointDirectory(unfinished)
            checkpoints.save(state, meta)
            checkpoints.close()
    except TryAgain:
        raise
    except Exception as error:  # Orbax raises ValueError, RuntimeError and others for a full disk
        raise UserError(f"{directory}: cannot be written: {error}; is there room, and is the place yours?") from error
