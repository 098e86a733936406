"""What every source of images offers, and what all of them share."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from deit_jax.base.errors import UserError


class Record(NamedTuple):
    """One labelled image as it is stored."""

    image: bytes | np.ndarray
    """An encoded file, or uint8 `[height, width]` or `[height, width, 3]`."""
    label: int
    """Index into the source's `class_names`."""
    name: str
    """Where it came from, for messages: a path relative to the data directory, or an id."""


@runtime_checkable
class Source(Protocol):
    """Labelled images by index, in an order that never changes. Reading is safe from several threads."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; a label is an index into them."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides which examples exist, their labels and their order."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The name of the record at `index`, which need not be read for it."""
        ...

    def __getitem__(self, index: int) -> Record:
        """The example at `index` in `0..len-1`.

        Raises:
            OSError: the machine cannot read it now.
            CorruptImage: it was read, and is damaged.
        """
        ...


def digest(name: str) -> bytes:
    """Hash of a name. Sorting by it is a shuffle that no library version, platform or added example changes."""
    return hashlib.blake2b(os.fsencode(name), digest_size=16).digest()


def nfc(name: str) -> str:
    """The name in the one form by which names are compared: systems store "é" as one sign or as "e" and an accent."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """16 hexadecimal digits that change when any part, or their order, changes."""
    total = hashlib.sha256()
    for part in parts:
        data = os.fsencode(part)
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()[:16]


def relabel(found: Sequence[str], class_names: Sequence[str], *, field: str) -> np.ndarray:
    """For each class found in a split, its label: int32 `[classes found]` of indices into `class_names`.

    Raises `UserError` naming the first class that `class_names` lacks.
    """
    labels = {name: label for label, name in enumerate(class_names)}
    for name in found:
        if name not in labels:
            raise UserError(
                f"{field}: class {name!r} is not one of the {len(labels)} classes trained on"
                f" ({', '.join(class_names[:5])}{', ...' if len(labels) > 5 else ''}); remove it or rename it"
            )
    return np.array([labels[name] for name in found], np.int32)
