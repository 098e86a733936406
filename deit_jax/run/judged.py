"""What the evaluations of a run say: the last, and the best, whose weights are handed on."""

from collections.abc import Mapping

from deit_jax.run.evaluate import Result, handed_on

Results = Mapping[str, Result]


class Judged:
    """The evaluations of a run, of which the newest of the best is remembered.

    `CheckpointDirectory.best` may be another one, where a step was evaluated and could not be saved.

    Args:
        best: step and top-1 of the best before this start; None where nothing was evaluated.

    Attributes:
        best: the same up to now.
        last: the newest of this start.
    """

    def __init__(self, best: tuple[int, float] | None):
        self.best = best
        self.last: tuple[int, float] | None = None
        self._results: dict[int, Results] = {}  # of the best and the last, if they are of this start

    def add(self, step: int, results: Results) -> None:
        """Takes what an evaluation says of the state of a step."""
        self.last = last = step, best_of(results)
        self.best = best = last if self.best is None or last[1] >= self.best[1] else self.best
        self._results = {at: told for at, told in self._results.items() if at == best[0]} | {step: results}

    def of(self, step: int | None) -> Results | None:
        """What was said of a step; None where that was before this start, or the step neither the best nor the last."""
        return None if step is None else self._results.get(step)


def best_of(results: Results) -> float:
    """The top-1 by which the best checkpoint is known: of the weights handed on, the average where there is one."""
    return handed_on(results).summary()["top1"]
