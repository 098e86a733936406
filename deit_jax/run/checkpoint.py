"""The checkpoints of a run: saving that goes on after a failure, and restoring that goes round what is corrupt."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from deit_jax.base.errors import UserError
from deit_jax.step.state import TrainState
from deit_jax.weights.orbax import CheckpointDirectory, CorruptCheckpoint, Meta


class Checkpoints(CheckpointDirectory):
    """A checkpoint directory that training writes; arguments as there."""

    def save(self, state: TrainState, meta: Meta, *, top1: float | None = None, last: bool = False) -> None:
        """As in `CheckpointDirectory`; with `last` it waits for the end, and tries twice."""
        if not self._finished():
            logging.warning("the checkpoint before step %d could not be written; this one is tried again", state.step)
        super().save(state, meta, top1=top1)
        if last and not self._finished():
            super().save(state, meta, top1=top1)
            self.wait()

    def _finished(self) -> bool:
        """Waits for the save in the background; False, with the directory opened anew, if it failed."""
        try:
            self.wait()
        except Exception as error:
            logging.warning("saving to %s failed: %s", self.directory, error)
            self.reopen()
            return False
        return True

    def restore_latest(self, target: TrainState, check: Callable[[Meta], None]) -> TrainState | None:
        """The newest state that is whole, None where nothing was saved. Corrupt ones are moved aside.

        Args:
            check: of the meta, before any array is read; raises `UserError` where it is another run's.

        Raises:
            UserError: there were checkpoints, and none of them can be read.
        """
        aside = self.directory.parent / "corrupt"
        moved = False
        while (step := self.latest()) is not None:
            try:
                check(self.meta(step))
                return self.restore(step, target)
            except CorruptCheckpoint as error:
                logging.warning("%s; moved to %s, the one before is taken", error, aside)
                self.close()
                if jax.process_index() == 0:
                    aside.mkdir(exist_ok=True)
                    shutil.rmtree(aside / str(step), ignore_errors=True)
                    (self.directory / str(step)).rename(aside / str(step))
                self.reopen(clean=False)
                moved = True
        if moved:
            raise UserError(
                f"{self.directory}: no checkpoint is whole; they were moved to {aside}; "
                f"bring one back from a copy, or start anew with another --workdir"
            )
        return None


def has_steps(directory: Path) -> bool:
    """Whether a checkpoint, whole or not, is in the directory; makes nothing."""
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())
