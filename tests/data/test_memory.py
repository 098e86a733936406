"""Images in memory and the built-in digits."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from deit_jax.base.errors import UserError
from deit_jax.data.memory import MemorySource
from deit_jax.data.sources import open_source


def open_digits(split: str, **options: object):
    return open_source(name="digits", directory="", split=split, **options)


def contents(source) -> list[tuple[bytes, int]]:
    return [(source[i].image.tobytes(), source[i].label) for i in range(len(source))]


def test_digits_are_scikit_learns() -> None:
    digits = load_digits()
    expected = [
        (np.round(image * 255 / 16).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(digits.images, digits.target, strict=True)
    ]
    train, test = open_digits("train"), open_digits("test")
    assert (len(train), len(test)) == (1437, 360)
    assert sorted(contents(train) + contents(test)) == sorted(expected)
    assert train.class_names == tuple("0123456789")
    assert train[3].image.shape == (8, 8)
    assert max(train[i].image.max() for i in range(99)) == 255


def test_the_held_out_digits_are_the_same_for_ever() -> None:
    # Changing these numbers invalidates every published accuracy on the held-out digits.
    test = open_digits("test")
    assert [test[i].label for i in range(12)] == [9, 3, 5, 3, 6, 6, 7, 6, 6, 6, 3, 8]
    assert test.fingerprint == "a595ec093420b3ec"


def test_slices_are_parts_of_their_split() -> None:
    train = contents(open_digits("train"))
    assert contents(open_digits("train[:10%]")) == train[:144]
    assert contents(open_digits("train[-100:]+test")) == train[-100:] + contents(open_digits("test"))
    assert {label for _, label in train[:144]} == set(range(10))


def test_class_names_decide_the_labels() -> None:
    plain, turned = open_digits("test"), open_digits("test", class_names=list("9876543210"))
    assert [turned[i].label for i in range(50)] == [9 - plain[i].label for i in range(50)]
    assert turned.class_names == tuple("9876543210")
    assert turned.fingerprint != plain.fingerprint
    with pytest.raises(UserError, match=r"^data\.eval_split: class '3' is not one of the 3 classes"):
        open_digits("test", class_names=["0", "1", "2"], field="data.eval_split")


def test_unknown_split_lists_the_others() -> None:
    with pytest.raises(
        UserError, match=r"^data\.eval_split: no split 'tset'; there are train, test; did you mean 'test'"
    ):
        open_digits("tset", field="data.eval_split")


def test_fingerprint_follows_content() -> None:
    images, labels = np.zeros((3, 5, 7), np.uint8), np.array([0, 1, 0])
    first = MemorySource(images, labels, ["a", "b"]).fingerprint
    assert first == MemorySource(images.copy(), labels.copy(), ["a", "b"]).fingerprint
    changed = images.copy()
    changed[2, 4, 6] = 1
    others = [
        MemorySource(changed, labels, ["a", "b"]),
        MemorySource(images, labels[::-1] * 0, ["a", "b"]),
        MemorySource(images, labels, ["a", "c"]),
        MemorySource(images[:2], labels[:2], ["a", "b"]),
    ]
    assert len({first, *(source.fingerprint for source in others)}) == 5


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (np.zeros((3, 5, 7), np.float32), [0, 1, 0]),
        (np.zeros((3, 5, 7, 4), np.uint8), [0, 1, 0]),
        (np.zeros((3, 5), np.uint8), [0, 1, 0]),
        (np.zeros((3, 5, 7), np.uint8), [0, 1]),
        (np.zeros((3, 5, 7), np.uint8), [0, 1, 2]),
        (np.zeros((3, 5, 7), np.uint8), [0, 1, -1]),
    ],
)
def test_wrong_arrays(images: np.ndarray, labels: list[int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        MemorySource(images, np.array(labels), ["a", "b"])
