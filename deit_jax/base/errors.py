"""The exceptions that mean: the user can mend this, or waiting does. And help in doing so."""

import difflib
from collections.abc import Iterable
from typing import TypeVar


class UserError(Exception):
    """A mistake in what the user gave: one line that names the field or file, and the mend.

    Commands print it on stderr without a traceback and exit with status 2.

    Attributes:
        alike: see `alike`.
    """

    alike = False


class TryAgain(Exception):
    """Nothing that the user gave is wrong: the same command goes on, now or when the machine is well again.

    Commands print it on stderr without a traceback and exit with status 75, by which schedulers start them again.

    Attributes:
        alike: see `alike`.
    """

    alike = False


class OutOfReach(TryAgain):
    """A bucket does not answer, or not now."""

    def __init__(self, where: object, reason: str):
        super().__init__(f"{where}: {reason}; the same command goes on when the bucket answers")


E = TypeVar("E", bound=UserError | TryAgain)


def alike(error: E) -> E:
    """Marks what all processes of a run raise at the same point: the first to end is not to cut the others off."""
    error.alike = True
    return error


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean a or b?` for the known names most like `name`, or else all that are known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; known: {', '.join(known)}"
