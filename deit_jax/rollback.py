"""What happens after too many non-finite updates in a row.

Parameters, optimizer and average go back to the last checkpoint; the stream goes on behind the burst, since the batch
of a step never changes and would do the same again. The jump is stored, so that a resume from there repeats it.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from deit_jax.checkpoint import Checkpoints
from deit_jax.errors import UserError
from deit_jax.state import TrainState


class Rollbacks:
    """The jumps of one run, in a JSON file of its workdir: a list of `{"from": step, "to": step}`.

    Args:
        limit: jumps after which the run gives up.
        batch_size: global, to tell positions in the stream.
    """

    def __init__(self, path: Path, *, limit: int, batch_size: int):
        self._path, self._limit, self._batch_size = path, limit, batch_size
        self._jumps: list[dict[str, int]] = json.loads(path.read_text()) if path.exists() else []

    def repeat(self, state: TrainState) -> TrainState:
        """A state just restored, at the step where the run went on from it."""
        ends = [jump["to"] for jump in self._jumps if jump["from"] == int(state.step)]
        return _at(state, ends[-1]) if ends else state

    def roll_back(self, state: TrainState, checkpoints: Checkpoints, target: TrainState) -> TrainState:
        """The last checkpoint's state at the step of `state`.

        Raises:
            UserError: there is no checkpoint, or the limit is reached.
        """
        step, good = int(state.step), checkpoints.latest()
        if good is None or len(self._jumps) >= self._limit:
            burst = int(state.skipped_in_a_row)
            first, last = (step - burst) * self._batch_size, step * self._batch_size - 1
            raise UserError(
                f"the loss or its gradient is not finite, {burst} steps in a row up to step {step} (stream positions "
                f"{first} to {last}), after {len(self._jumps)} rollbacks; lower optim.learning_rate or set "
                f"optim.clip_norm"
            )
        restored = checkpoints.restore(good, target)
        self._jumps.append({"from": good, "to": step})
        if jax.process_index() == 0:
            fresh = self._path.with_suffix(".tmp")
            fresh.write_text(json.dumps(self._jumps))
            fresh.replace(self._path)
        return _at(restored, step)


def _at(state: TrainState, step: int) -> TrainState:
    return dataclasses.replace(state, step=jax.device_put(np.int32(step), state.step.sharding))
