"""A checkpoint directory: the only file that knows Orbax.

It holds, a folder a step, `state` (a whole `TrainState`) and `meta` (JSON: what the run was, and shape, dtype and
checksum of every array). The latest few and the best are kept. Saving runs in the background.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array
from orbax.checkpoint import checkpoint_managers as policies

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.step.state import TrainState, Variables

Meta = dict[str, Any]
METRIC = "top1"
LAYOUT = 1  # of a step's items; to be raised by whoever changes what older versions cannot read


class CorruptCheckpoint(Exception):
    """A checkpoint that cannot be read, or whose arrays are not those that were saved."""


class CheckpointDirectory:
    """The steps in an absolute directory.

    Args:
        directory: made if missing, unless `read_only`.
        keep: the number of latest ones kept beside the best.
    """

    def __init__(self, directory: Path, *, keep: int = 1, read_only: bool = False):
        self.directory, self._keep, self._read_only = directory, keep, read_only
        self.reopen()

    def reopen(self, *, clean: bool = True) -> None:
        """Looks at the directory anew: after a failure Orbax's manager has forgotten the steps before it.

        Args:
            clean: removes what unfinished saves have left, in a thread that nobody can wait for: where the process may
                end at once, it ends in that thread's traceback.
        """
        kept = [
            policies.LatestN(self._keep),
            policies.BestN(get_metric_fn=_metric, n=1, keep_checkpoints_without_metrics=False),
        ]
        # Without best_fn Orbax would not read the metrics that the policy needs; without the policy it drops the best.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(kept),
            best_fn=_metric,
            best_mode="max",
            cleanup_tmp_directories=clean and not self._read_only,
            create=not self._read_only,
            read_only=self._read_only,
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """The newest saved step."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step with the best evaluation; the newest where none was evaluated."""
        return self._manager.best_step() or self.latest()

    def meta(self, step: int) -> Meta:
        """What was saved beside the state of `step`.

        Raises:
            UserError: it is a checkpoint of another program, or of another layout.
            CorruptCheckpoint: it cannot be read.
        """
        where = self.directory / str(step)
        items = {path.name for path in where.glob("*") if path.is_dir()} - {"metrics"}
        if items and not {"state", "meta"} & items:
            raise UserError(
                f"{where}: is no checkpoint of deit_jax, it holds {', '.join(sorted(items))}; write its weights as "
                f".safetensors or .pth with what made it, and convert those with deit_jax.convert"
            )
        arguments = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = self._read(lambda: self._manager.restore(step, args=arguments)["meta"], step)
        layout = meta.get("layout", LAYOUT)
        if layout > LAYOUT:
            raise UserError(f"{where}: is of layout {layout}, and this version reads {LAYOUT}; update deit_jax")
        if "arrays" not in meta:
            raise UserError(
                f"{where}: is of an older layout, which does not describe its arrays; convert it to .safetensors with "
                f"the deit_jax that wrote it (python -m deit_jax.convert), and begin from that by config.init_from"
            )
        return meta

    def save(self, state: TrainState, meta: Meta, *, top1: float | None = None) -> None:
        """Begins to save the state under its step, in the background.

        Args:
            meta: JSON content; the description of the arrays is added to it.
            top1: of the evaluation at this step, by which the best is known; None where there was none.
        """
        step = int(state.step)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({**meta, "layout": LAYOUT, "arrays": describe(state)}),
        )
        if not self._manager.save(step, args=items, metrics=None if top1 is None else {METRIC: top1}):
            raise RuntimeError(f"step {step} was not saved: {self.directory} has step {self.latest()}")

    def wait(self) -> None:
        """Waits for the save in the background; raises what it failed with, which may be anything."""
        self._manager.wait_until_finished()

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The state of `step`, with the shapes and shardings of `target` (arrays or `ShapeDtypeStruct`s).

        Raises:
            UserError: the checkpoint holds other arrays than `target` has.
            CorruptCheckpoint: the arrays cannot be read, or differ from what was saved.
        """
        saved = self.meta(step)["arrays"]
        _check_fit(saved, target, self.directory / str(step))
        arguments = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        state = self._read(lambda: self._manager.restore(step, args=arguments)["state"], step)
        for path, entry in describe(state).items():
            if entry["checksum"] != saved[path]["checksum"]:
                raise CorruptCheckpoint(f"{self.directory / str(step)}: {path} is not what was saved")
        return state

    def variables(self, step: int, *, ema: bool | None = None) -> tuple[Variables, Meta]:
        """The weights alone of `step`, parameters and statistics as host arrays, and what was saved beside them.

        Args:
            ema: True for the moving average, False for the raw weights, None for the average where there is one.

        Raises:
            UserError: there is no such step, or no average in it.
            CorruptCheckpoint: the arrays cannot be read, or differ from what was saved.
        """
        if step not in self._manager.all_steps():
            raise UserError(f"{self.directory}: has no step {step}; there are {self._manager.all_steps()}")
        meta = self.meta(step)
        groups = {"ema": _group(meta["arrays"], "ema")}
        if ema and not groups["ema"]:
            raise UserError(f"{self.directory}: step {step} has no moving average; take the raw weights")
        if ema is False or not groups["ema"]:
            groups = {name: _group(meta["arrays"], name) for name in ("params", "stats")}
        groups = {name: group for name, group in groups.items() if group}
        arguments = ocp.args.PyTreeRestore(
            groups,
            restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), groups),
            partial_restore=True,
        )
        where = self.directory / str(step) / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            read = self._read(lambda: reader.restore(where, args=arguments), step)
        for name, group in read.items():
            for path, value in group.items():
                if _checksum(value) != meta["arrays"][f".{name}['{path}']"]["checksum"]:
                    raise CorruptCheckpoint(f"{where}: {path} is not what was saved")
        return {path: value for group in read.values() for path, value in group.items()}, meta

    def _read(self, read: Callable[[], Any], step: int) -> Any:
        try:
            return read()
        except (PermissionError, MemoryError, jax.errors.JaxRuntimeError):
            raise  # of the machine, not of the files
        except Exception as error:  # Orbax raises ValueError, JSONDecodeError, FileNotFoundError and bare Exception.
            raise CorruptCheckpoint(f"{self.directory / str(step)}: cannot be read: {error}") from error

    def close(self) -> None:
        """Waits for the save in the background and lets go of the directory."""
        self._manager.close()


def read_variables(directory: Path, *, step: int | str = "best", ema: bool | None = None) -> tuple[Variables, Meta]:
    """The weights in a checkpoint directory, see `CheckpointDirectory.variables`.

    Args:
        step: a number, "latest", or "best": by evaluation, or the latest where none was evaluated.

    Raises:
        UserError: they are not there, or cannot be read.
    """
    checkpoints = CheckpointDirectory(directory, read_only=True)
    try:
        named = {"best": checkpoints.best, "latest": checkpoints.latest}
        number = named[step]() if isinstance(step, str) else step
        if number is None:
            raise UserError(f"{directory}: has no finished checkpoint; train longer first")
        return checkpoints.variables(number, ema=ema)
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; name another step of it, as in {directory}@STEP, or bring it back") from error
    finally:
        checkpoints.close()


def write_variables(directory: Path, variables: Variables, meta: Meta) -> None:
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
            checkpoints.wait()
            checkpoints.close()
    except Exception as error:  # Orbax raises ValueError, RuntimeError and others for a full disk
        raise UserError(f"{directory}: cannot be written: {error}; is there room, and is the place yours?") from error


def describe(state: TrainState) -> dict[str, dict[str, Any]]:
    """Shape, dtype and checksum of every array, by its path in the state."""
    sums = jax.device_get(_checksums(state))
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": int(sums[path])}
        for path, leaf in _leaves(state).items()
    }


def _leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _group(arrays: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The described arrays of one field of the state, by their path in it."""
    head, tail = f".{name}['", "']"
    return {
        path.removeprefix(head).removesuffix(tail): jax.ShapeDtypeStruct(entry["shape"], entry["dtype"])
        for path, entry in arrays.items()
        if path.startswith(head)
    }


def _checksum(value: np.ndarray) -> int:
    """Of an array on the host: what `_checksums` makes of it on the devices."""
    words = np.ascontiguousarray(value).view(f"uint{8 * value.dtype.itemsize}")
    return int(words.sum(dtype=np.uint32))


@jax.jit
def _checksums(state: TrainState) -> dict[str, Array]:
    """The sum of each array's words modulo 2^32: the same on any mesh, and changed by any single flipped bit.

    Restoring does not notice a flipped byte in array data by itself.
    """

    def words(leaf: Array) -> Array:
        unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)

    return {path: jnp.sum(words(leaf), dtype=jnp.uint32) for path, leaf in _leaves(state).items()}


def _check_fit(saved: Mapping[str, Any], target: TrainState, where: Path) -> None:
    wanted = {path: (list(leaf.shape), str(leaf.dtype)) for path, leaf in _leaves(target).items()}
    found = {path: (entry["shape"], entry["dtype"]) for path, entry in saved.items()}
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            raise UserError(
                f"{where}: is of another model: {path} is {found.get(path, 'missing')} there and "
                f"{wanted.get(path, 'missing')} here; take another --workdir or the run's own config"
            )


def _metric(metrics: Mapping[str, float]) -> float:
    return metrics[METRIC]
