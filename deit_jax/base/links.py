"""Links, of which a folder that is written into has none: they may lead anywhere."""

from collections.abc import Iterable
from pathlib import Path

from deit_jax.base.errors import UserError


def refuse_links(places: Iterable[Path], *, flag: str, folder: str, writer: str) -> None:
    """`UserError` where one of the places is a link: writing there would change what lies elsewhere.

    Args:
        places: that are written to, or into.
        flag: that names the folder which they lie in, and which itself may be a link.
        folder: what the flag calls it.
        writer: of the files, in words.
    """
    for place in places:
        if place.is_symlink():
            raise UserError(
                f"{flag}: {place} is a link, and {writer} writes into its own folder alone; put what it leads to "
                f"in its place ({folder} itself may be a link)"
            )
