"""What is said of the data before a run."""

import numpy as np

from deit_jax.data.memory import MemorySource
from deit_jax.data.sources import describe_data, open_source


def photos(count: int, classes: list[str], name: str) -> MemorySource:
    return MemorySource(np.zeros((count, 1, 1), np.uint8), np.zeros(count, int), classes, name=name)


def test_the_data_in_a_line() -> None:
    classes = ["dress", "hat", "shoes"]
    train, held_out = photos(81, classes, "train"), photos(9, classes, "validation")
    assert describe_data(train, held_out) == "81 photos of 3 classes (dress, hat, shoes), 9 held out"


def test_many_classes_and_names_that_are_no_text() -> None:
    classes = ["a\x1b[31m", "b\udcff", *(f"c{i}" for i in range(1998))]
    told = describe_data(photos(12345, classes, "train"), photos(1, classes, "test"))
    assert told == r"12,345 photos of 2,000 classes (a\x1b[31m, b\udcff, c0, c1, c2, ...), 1 held out"


def test_photos_in_both_splits_are_told() -> None:
    whole = open_source(name="digits", directory="", split="test")
    assert describe_data(whole, whole).endswith(", 360 to evaluate, 360 of them trained on")
