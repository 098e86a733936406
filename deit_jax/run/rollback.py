"""What happens after too many non-finite updates in a row.

Parameters, optimizer and average go back to the last checkpoint; the stream goes on behind the burst, since the batch
of a step never changes and would do the same again. The jump is stored, so that a resume from there repeats it.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from deit_jax.base.errors import UserError
from deit_jax.run.checkpoint import Checkpoints
from deit_jax.step.state import TrainState


class Rollbacks:
    """The jumps of one run, in a JSON file of its workdir: a list of `{"from": step, "to": step}`.

    Args:
        limit: jumps after which the run gives up.
        batch_size: global, to tell positions in the stream.
    """

    def __init__(self, path: Path, *, limit: int, batch_size: int):
        self._path, self._limit, self._batch_size = path, limit, batch_size
        self._jumps: list[dict[str, int]] = json.loads(path.read_text()) if path.exists() else []

    def resume(self, state: TrainState) -> TrainState:
        """A state just restored or made, at the step where the run went on from it; jumps from later ones are void."""
        step = int(state.step)
        self._store([jump for jump in self._jumps if jump["from"] <= step])
        ends = [jump["to"] for jump in self._jumps if jump["from"] == step]
        return _at(state, ends[-1]) if ends else state

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
            raise UserError(
                f"the loss or its gradient is not finite, {burst} steps in a row up to step {step} (stream positions "
                f"{first} to {last}), after {len(self._jumps)} rollbacks; lower config.optim.learning_rate or set "
                f"config.optim.clip_norm"
            )
        self._store([*self._jumps, {"from": int(restored.step), "to": step}])
        return _at(restored, step)

    def _store(self, jumps: list[dict[str, int]]) -> None:
        if jumps == self._jumps:
            return
        self._jumps = jumps
        if jax.process_index() == 0:
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text(json.dumps(jumps))
            fresh.replace(self._path)


def _at(state: TrainState, step: int) -> TrainState:
    return dataclasses.replace(state, step=jax.device_put(np.int32(step), state.step.sharding))
