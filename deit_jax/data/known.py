"""Data sets by their published numbers, for plans of runs whose data is not at hand."""

import dataclasses
from collections.abc import Mapping

from deit_jax.data.records import Record
from deit_jax.data.splits import parse_split, unknown_split


@dataclasses.dataclass(frozen=True)
class Known:
    """What is published of a data set.

    Attributes:
        splits: examples of each.
        image_bytes: mean of an image as it is stored.
    """

    classes: int
    splits: Mapping[str, int]
    image_bytes: float


# Bytes: ImageNet-1k, ILSVRC2012_img_train.tar (147,897,477,120) over its images; CIFAR, the sizes of TFDS's data sets
# (132.40 and 132.03 MiB) over 60,000; ImageNet-21k, fall11_whole.tar (1.31 TB) over its images.
KNOWN = {
    "imagenet2012": Known(1000, {"train": 1_281_167, "validation": 50_000}, 115_440),
    "imagenet21k": Known(21_841, {"train": 14_197_122}, 92_270),
    "cifar10": Known(10, {"train": 50_000, "test": 10_000}, 2_314),
    "cifar100": Known(100, {"train": 50_000, "test": 10_000}, 2_307),
}


class KnownSource:
    """A split without its images: a `Source` for what asks how many examples and classes there are.

    Args:
        image_bytes: mean of an image as it is stored.
    """

    fingerprint = ""

    def __init__(self, name: str, examples: int, classes: int, image_bytes: float):
        self.class_names = tuple(map(str, range(classes)))
        self.image_bytes = image_bytes
        self._name, self._examples = name, examples

    def __len__(self) -> int:
        return self._examples

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def __getitem__(self, index: int) -> Record:
        raise LookupError(f"{self.name(index)} is not at hand")


def known_source(name: str, split: str, *, field: str) -> KnownSource | None:
    """The split of a data set whose numbers are known; None for others.

    Raises:
        UserError: the data set has no such split.
    """
    data = KNOWN.get(name.partition(":")[0])
    if data is None:
        return None
    examples = 0
    for part in parse_split(split, field=field):
        if part.name not in data.splits:
            raise unknown_split(part.name, data.splits, field=field)
        examples += len(part.take(range(data.splits[part.name]), field=field))
    return KnownSource(f"{name} {split}", examples, data.classes, data.image_bytes)
