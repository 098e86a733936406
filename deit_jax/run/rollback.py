"""What happens after too many non-finite updates in a row.

Parameters, optimizer and average go back to the last checkpoint; the stream goes on behind the burst, since the batch
of a step never changes and would do the same again. The jump is stored, so that a resume from there repeats it.
"""

import dataclasses
import itertools
import logging

import jax
import numpy as np

from deit_jax.base.errors import TryAgain, UserError, alike
from deit_jax.base.forms import parse_json, read_regular, require, whole
from deit_jax.base.storage import Place, told
from deit_jax.parallel import hosts
from deit_jax.run.checkpoint import Checkpoints
from deit_jax.run.workdir import Workdir
from deit_jax.step.state import TrainState


class Rollbacks:
    """The jumps of one run, in its `rollbacks.json`: a list of `{"from": step, "to": step, "skipped": updates}`.

    `skipped` counts those of the whole run up to the jump; the state that is gone back to knows fewer.

    Args:
        total: steps of the run, which no jump goes beyond.
        limit: jumps after which the run gives up.
        batch_size: global, to tell positions in the stream.

    Raises:
        UserError: the file is there, and is none.
    """

    def __init__(self, workdir: Workdir, *, total: int, limit: int, batch_size: int):
        self._workdir, self._limit, self._batch_size = workdir, limit, batch_size
        self._jumps: list[dict[str, int]] = hosts.of_first(lambda: _read(workdir.rollbacks, total))

    def __len__(self) -> int:
        return len(self._jumps)

    def resume(self, state: TrainState) -> TrainState:
        """A state just restored or made, at the step where the run went on from it; jumps from later ones are void."""
        step = int(state.step)
        self._store([jump for jump in self._jumps if jump["from"] <= step])
        onward = [jump for jump in self._jumps if jump["from"] == step]
        return _after(state, onward[-1]) if onward else state

    def roll_back(self, state: TrainState, checkpoints: Checkpoints, target: TrainState) -> TrainState:
        """The last checkpoint's state at the step of `state`.

        Raises:
            UserError: there is no checkpoint, or the limit is reached.
        """
        step, burst = int(state.step), int(state.skipped_in_a_row)
        restored = None
        if len(self._jumps) < self._limit:
            restored = checkpoints.restore_latest(target, check=lambda meta: None)
        if restored is None:
            first, last = (step - burst) * self._batch_size, step * self._batch_size - 1
            line = (
                f"the loss or its gradient is not finite, {burst} steps in a row up to step {step} (stream positions "
                f"{first} to {last}), after {len(self._jumps)} rollbacks; lower config.optim.learning_rate or set "
                f"config.optim.clip_norm; --mode=replay tells which layer it begins in"
            )
            raise alike(UserError(line))
        jump = {"from": int(restored.step), "to": step, "skipped": int(state.skipped)}
        logging.warning(
            "losses or gradients are not finite: at step %d the state of step %d goes on; %d updates skipped in all",
            *(step, jump["from"], jump["skipped"]),
        )
        self._store([*self._jumps, jump])
        return _after(restored, jump)

    def _store(self, jumps: list[dict[str, int]]) -> None:
        if jumps == self._jumps:
            return
        self._jumps = jumps
        if hosts.index() == 0:
            if not self._workdir.keep():  # the rows before the jump: a start that knows of it goes on behind them
                raise TryAgain(f"{self._workdir.root}: the rows before a rollback cannot be kept; see to the bucket")
            self._workdir.write_json(self._workdir.rollbacks.name, jumps)


def _read(path: Place, total: int) -> list[dict[str, int]]:
    if not path.exists():
        return []
    try:
        jumps = parse_json(read_regular(path))
        require(isinstance(jumps, list) and all(isinstance(jump, dict) for jump in jumps), "is no list of objects")
        for jump in jumps:
            require(whole(jump["from"], 0, total) and whole(jump["to"], jump["from"] + 1, total), f"has {jump}")
            require(whole(jump.get("skipped", 0), 0, total), f"has {jump}")
        ends = [jump["to"] for jump in jumps]
        require(all(before < after for before, after in itertools.pairwise(ends)), "is not in order")
    except (OSError, ValueError, KeyError) as error:
        reason = told(error, path) if isinstance(error, OSError) else error
        raise UserError(
            f"{path}: cannot be read: {reason}; bring it back, or remove it, which forgets where the run went back"
        ) from error
    return jumps


def _after(state: TrainState, jump: dict[str, int]) -> TrainState:
    """The state at the end of a jump."""
    step, skipped = (jax.device_put(np.int32(n), state.step.sharding) for n in (jump["to"], jump.get("skipped", 0)))
    return dataclasses.replace(state, step=step, skipped=skipped if "skipped" in jump else state.skipped)
