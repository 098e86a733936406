"""Images held in memory, and scikit-learn's handwritten digits: the data set that needs no download."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deit_jax.base.errors import UserError
from deit_jax.data.records import Record, digest, fingerprint, relabel
from deit_jax.data.splits import parse_split, unknown_split

HELD_OUT_DIGITS = 360


class MemorySource:
    """Images and labels given as arrays.

    Args:
        images: uint8 `[examples, height, width]` or `[examples, height, width, 3]`.
        labels: integers `[examples]` in `0..classes-1`.
        class_names: the name of each class.
        name: what messages call the data.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], *, name: str = "memory"):
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
            raise ValueError(f"images must be uint8 [n, h, w] or [n, h, w, 3], not {images.dtype} {list(images.shape)}")
        if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(f"labels must be {len(images)} integers in 0..{len(class_names) - 1}")
        self.class_names = tuple(class_names)
        self._images, self._labels, self._name = images, labels.astype(np.int32), name
        content: list[str | bytes] = [name, str(images.shape), *class_names, self._labels.tobytes(), images.tobytes()]
        self.fingerprint = fingerprint(content)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def __getitem__(self, index: int) -> Record:
        return Record(self._images[index], int(self._labels[index]), self.name(index))


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images [1797, 8, 8] of integers from 0 to 16, and labels [1797].

    From the file that `sklearn.datasets.load_digits` reads: importing that takes two seconds, this 40 ms.
    """
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("config.data.name: digits come with the package scikit-learn, which is not there; install it")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, np.uint8, delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1]


def open_digits(split: str, *, class_names: Sequence[str] | None = None, field: str = "split") -> MemorySource:
    """scikit-learn's 1,797 grey 8x8 digits: splits `train` (1,437) and `test` (360, the same ones for ever)."""
    values, labels = _digits()
    order = sorted(range(len(labels)), key=lambda index: digest(f"digit {index}"))
    splits = {"train": order[HELD_OUT_DIGITS:], "test": order[:HELD_OUT_DIGITS]}
    chosen: list[int] = []
    for part in parse_split(split, field=field):
        if part.name not in splits:
            raise unknown_split(part.name, splits, field=field)
        chosen.extend(part.take(splits[part.name], field=field))
    found = [str(digit) for digit in range(10)]
    class_names = class_names or found
    images = np.round(values * (255 / 16)).astype(np.uint8)
    labels = relabel(found, class_names, field=field)[labels]
    return MemorySource(images[chosen], labels[chosen], class_names, name=f"digits {split}")
