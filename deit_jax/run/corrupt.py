"""Which images cannot be decoded, and whether they are more than a config allows."""

import json
from collections.abc import Iterable

from deit_jax.base.errors import UserError, alike
from deit_jax.parallel import hosts

EVERY = 50  # steps, after which all processes hear what the others have found


def too_many(corrupt: int, images: int, allowed: float) -> bool:
    """Whether so many of some images are more than the share that is allowed: 29 of 100 are 0.29 of them."""
    return corrupt > round(allowed * images, 6)  # the product may be less than the whole number that it stands for


class Corrupt:
    """The images of a training split that cannot be decoded, as all processes have found them.

    Each counts once, however often the stream comes to it and whichever process reads it: so a share of the split is
    the same for any order, repeated augmentation included, and any mesh.

    Args:
        images: of the split.
        allowed: share of them.
    """

    def __init__(self, images: int, allowed: float):
        self._images, self._allowed = images, allowed
        self._known, self._new = set[int](), set[int]()

    def add(self, examples: Iterable[int]) -> None:
        """Takes images that this process could not decode, by their index in the split."""
        self._new |= {*examples} - self._known

    def check(self) -> None:
        """Raises `UserError`, in all processes, where they are more than allowed; all have to ask."""
        for told in hosts.gather(json.dumps(sorted(self._new))):
            self._known.update(json.loads(told))
        self._new.clear()
        if too_many(len(self._known), self._images, self._allowed):
            line = (
                f"config.data.max_corrupt: {len(self._known)} of {self._images} images could not be decoded, "
                f"{self._allowed:.2%} are allowed; mend the files that the log names, or raise it"
            )
            raise alike(UserError(line))
