"""The text that names the image sizes of a run: `128@0,160@90,224@180`, sides in pixels, each from an epoch on."""

import re

from deit_jax.base.errors import UserError

FIELD = "config.data.image_size_schedule"
LARGEST = 8192  # pixels
LATEST = 1e6  # epochs


def parse_sizes(spec: str) -> tuple[tuple[int, float], ...]:
    """(side in pixels, the epoch that it begins with) of each stage; none for "".

    The first begins with epoch 0, each other later than the one before it; epochs may be fractions.

    Raises:
        UserError: the text is of no such form; the message points at the stage.
    """
    stages: list[tuple[int, float]] = []
    for token in spec.split(",") if spec else ():
        match = re.fullmatch(r"([1-9]\d{0,5})@(\d{1,9}(?:\.\d{1,9})?)", token, re.ASCII)
        if not match or int(match[1]) > LARGEST or float(match[2]) > LATEST:
            raise UserError(
                f"{FIELD}: {spec!r}: {token!r}: should be SIZE@EPOCH, such as 160@90: pixels from 1 to {LARGEST}, "
                f"epochs from 0 to {LATEST:,.0f}"
            )
        size, epoch = int(match[1]), float(match[2])
        if not stages and epoch:
            raise UserError(f"{FIELD}: {spec!r}: {token!r}: the first size should begin with the run, as {size}@0")
        if stages and epoch <= stages[-1][1]:
            raise UserError(
                f"{FIELD}: {spec!r}: {token!r}: should begin later than the size before it; put them in order"
            )
        stages.append((size, epoch))
    return tuple(stages)
