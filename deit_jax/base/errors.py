"""The exceptions that mean: the user can mend this, or waiting does. And help in doing so."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave: one line that names the field or file, and the mend.

    Commands print it on stderr without a traceback and exit with status 2.
    """


class TryAgain(Exception):
    """Nothing that the user gave is wrong: the same command goes on, now or when the machine is well again.

    Commands print it on stderr without a traceback and exit with status 75, by which schedulers start them again.
    """


class OutOfReach(TryAgain):
    """A bucket does not answer, or not now."""

    def __init__(self, where: object, reason: str):
        super().__init__(f"{where}: {reason}; the same command goes on when the bucket answers")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?` for the known names most like `name`, or else all that are known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"
