"""The checkpoints of a run: saving that goes on after a failure, and restoring that goes round what is corrupt.

Of several processes each calls the same, and what one of them meets, such as a full disk or a file that it cannot read,
decides for all: each alone would wait for the others for ever.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from deit_jax.base.errors import TryAgain, UserError, alike
from deit_jax.base.storage import COMMITTED, UNFINISHED, Place, is_bucket, remove, told
from deit_jax.parallel import hosts
from deit_jax.step.state import TrainState, Variables
from deit_jax.weights.meta import CorruptCheckpoint, Meta
from deit_jax.weights.orbax import AlreadyThere, CheckpointDirectory

FAILURES = 3  # of checkpoints in a row, after which a run has nothing to hope for


class Checkpoints(CheckpointDirectory):
    """A checkpoint directory that training writes.

    Args:
        directory: see `CheckpointDirectory`.
        aside: the folder for steps that cannot be read.
        keep: the number of latest ones kept beside the best.
        require: raises `TryAgain` where the directory is another run's now, in which nothing is to be removed.
        before: keeps what belongs to a step before it is saved; False where that failed.
    """

    def __init__(
        self,
        directory: Place,
        *,
        aside: Place,
        keep: int,
        require: Callable[[], None] = lambda: None,
        before: Callable[[], bool] = lambda: True,
    ):
        super().__init__(directory)
        self._aside, self._keep, self._require, self._before = aside, keep, require, before
        self._failures = 0  # in a row
        self._remove_unfinished()  # which a kill has left

    def save(self, state: TrainState, meta: Meta, *, last: bool = False) -> None:
        """As in `CheckpointDirectory`; what fails is told, and done again by the next save, but not for ever.

        Args:
            last: waits for the end, and tries twice.

        Raises:
            UserError: the last one, or one after `FAILURES` that failed, cannot be written; `TryAgain` where that is a
                bucket's fault.
        """
        if not self.finish():
            logging.warning("the checkpoint before step %d could not be written", state.step)
        tries = 2 if last else 1 if self._failures < FAILURES else 0
        for _ in range(tries):
            if self._begin(state, meta) and (not last or self.finish()):
                return
            if last and self._newest() == int(state.step):  # what failed came after its end
                return
        if last or self._failures >= FAILURES:
            remote = is_bucket(self.directory)
            line = (
                f"{self.directory}: step {state.step} could not be saved, see above; "
                f"{'see to the bucket' if remote else 'make room'}, and the same command goes on from step "
                f"{self._newest() or 0}"
            )
            raise alike(TryAgain(line) if remote else UserError(line))

    def _newest(self) -> int | None:
        """As the first process sees it; None where a bucket does not answer now."""

        def look() -> int | None:
            with contextlib.suppress(OSError, TryAgain):
                return self.latest()
            return None

        return hosts.of_first(look)

    def _begin(self, state: TrainState, meta: Meta) -> bool:
        """Begins to save; False where that fails at once, since there is no room for a folder."""
        objections = hosts.objections("" if self._before() else "what comes before it cannot be kept")
        if not objections:
            failed = ""
            try:
                super().save(state, meta)
            except AlreadyThere as error:
                if not self._failures:
                    raise
                failed = _reason(error)  # since a save that was given up went on
            except (OSError, ValueError, TryAgain) as error:
                failed = _reason(error)
            objections = hosts.objections(failed)
        return self._done(objections)

    def judge(self, step: int, top1: float) -> None:
        """Adds its evaluation to a step, where that was saved."""
        if not self.finish() or hosts.index():
            return
        try:
            self._require()
            if step in self.steps():
                super().judge(step, top1)
                self._collect()
        except (OSError, TryAgain) as error:
            reason = told(error, self.directory) if isinstance(error, OSError) else error
            logging.warning("the evaluation of step %d is not kept beside it: %s", step, reason)

    def finish(self) -> bool:
        """Waits for the save in the background, then removes what is not to be kept; False where the save failed."""
        began = self._saving >= 0
        return self._collect_after(began, self._done(hosts.objections(self._waited())))

    def close(self) -> None:
        """Waits for the save in the background and lets go of the directory; others may have ended."""
        began = self._saving >= 0
        reason = self._waited()
        self._collect_after(began, self._done([reason] if reason else []))
        super().close()

    def _waited(self) -> str:
        """What the save in the background failed with; "" where it did not."""
        try:
            self.wait()
            return ""
        except Exception as error:  # whatever Orbax makes of it
            return _reason(error)

    def _done(self, objections: Sequence[str]) -> bool:
        """Whether nobody objects; else no process knows the save any more, since their savers meet by number."""
        if objections:
            self.give_up()
            self._failed("; ".join(objections))
        return not objections

    def _collect_after(self, began: bool, whole: bool) -> bool:
        if whole and began:  # else the newest may not be whole, and those before it be needed
            self._failures = 0
            self._collect()
        return whole

    def restore_latest(self, target: TrainState, check: Callable[[Meta], None]) -> TrainState | None:
        """The newest state that is whole, None where nothing was saved. Corrupt ones are moved aside.

        Args:
            check: of the meta, before any array is read; raises `UserError` where it is another run's.

        Raises:
            UserError: there were checkpoints, and none of them can be read.
        """
        self.finish()
        moved = False
        while (step := hosts.of_first(self.latest)) is not None:
            state, objections = self._restored(step, target, check)
            if state is not None:
                self._collect()  # which a kill may have kept from it
                return state
            logging.warning("%s; moved to %s, the one before is taken", "; ".join(objections), self._aside)
            self._set_aside(step)
            moved = True
        if moved or has_steps(self._aside):  # also at the next start, which is not to begin anew without a word
            line = (
                f"{self.directory}: no checkpoint is whole; they were moved to {self._aside}; "
                f"bring one back from a copy, or start anew with another --workdir"
            )
            raise alike(UserError(line))
        return None

    def weights(self, step: int, *, averaged: bool) -> dict[str, Variables] | None:
        """The raw weights of a step, `eval`, and their average, `eval_ema`, as host arrays.

        None, in all processes alike, where they cannot be read; the step is moved aside.
        """
        found, reason = {}, ""
        try:
            for name, ema in {"eval": False, **({"eval_ema": True} if averaged else {})}.items():
                found[name] = self.variables(step, ema=ema)[0]
        except CorruptCheckpoint as error:
            reason = str(error)
        if objections := hosts.objections(reason):
            logging.warning("%s; moved to %s", "; ".join(objections), self._aside)
            self._set_aside(step)
            return None
        return found

    def _restored(
        self, step: int, target: TrainState, check: Callable[[Meta], None]
    ) -> tuple[TrainState | None, Sequence[str]]:
        """The state of a step, or None and why it is not whole, in all processes alike; `check` as above."""
        state, reason = None, ""
        try:
            self.top1(step)
            meta = self.meta(step)
            check(meta)
            state = self.read(step, target, meta)
        except CorruptCheckpoint as error:
            reason = str(error)
        objections = hosts.objections(reason)
        if state is not None and not objections:
            try:
                self.require_whole(step, state, meta)
                return state, []
            except CorruptCheckpoint as error:
                objections = [str(error)]
        return None, objections

    def _failed(self, reason: str) -> None:
        self._failures += 1
        logging.warning("saving to %s failed: %s", self.directory, reason)
        with contextlib.suppress(OSError, TryAgain):  # the next start does it, too
            self._require()
            self._remove_unfinished()

    def _remove_unfinished(self) -> None:
        for left in self.unfinished() if hosts.index() == 0 else ():
            _remove(left)

    def _collect(self) -> None:
        try:
            self._require()
            self._keep_few()
        except (OSError, TryAgain, UserError) as error:
            logging.warning("%s: old checkpoints are not removed: %s", self.directory, error)

    def _keep_few(self) -> None:
        """Keeps the latest ones and the best; a step whose evaluation cannot be read may be that, and is kept aside."""
        steps = self.steps()
        if hosts.index() or len(steps) <= self._keep:
            return
        kept = {*steps[-self._keep :], self.best()}
        for step in set(steps) - kept:
            try:
                self.top1(step)
                _remove(self.directory / str(step))
            except CorruptCheckpoint as error:
                logging.warning("%s; moved to %s", error, self._aside)
                self._set_aside(step)

    def _set_aside(self, step: int) -> None:
        if hosts.index() == 0:
            self._require()
            self._aside.mkdir(exist_ok=True)
            _remove(self._aside / str(step))
            _disown(self.directory / str(step))
            (self.directory / str(step)).rename(self._aside / str(step))


def _disown(folder: Place) -> None:
    """Takes from a step in a bucket, of which files are moved and removed one by one, what says that all are there."""
    if is_bucket(folder):
        (folder / COMMITTED).unlink(missing_ok=True)


def _remove(folder: Any) -> None:
    """Under another name first: a kill must leave no step that looks whole."""
    _disown(folder)
    with contextlib.suppress(FileNotFoundError):
        whole = UNFINISHED not in folder.name and not is_bucket(folder)
        remove(folder.rename(folder.with_name(folder.name + UNFINISHED)) if whole else folder)


def has_steps(directory: Place) -> bool:
    """Whether a checkpoint, whole or not, is in the directory, as process 0 sees it; makes nothing."""
    return hosts.of_first(lambda: bool(CheckpointDirectory(directory).steps()))


def _reason(error: Exception) -> str:
    return str(error)[:300] or type(error).__name__
