"""Data sets of which only the numbers are known."""

import pytest

from deit_jax.base.errors import UserError
from deit_jax.data import Source, known_source


@pytest.mark.parametrize(
    ("name", "split", "examples", "classes"),
    [
        ("imagenet2012", "train", 1_281_167, 1000),
        ("imagenet2012:5.1.0", "validation", 50_000, 1000),
        ("imagenet2012", "train[:99%]", 1_268_355, 1000),
        ("cifar10", "train[:100]+test", 10_100, 10),
        ("cifar100", "train", 50_000, 100),
    ],
)
def test_splits_have_the_published_sizes(name, split, examples, classes):
    source = known_source(name, split, field="config.data.train_split")
    assert isinstance(source, Source)
    assert (len(source), len(source.class_names)) == (examples, classes)
    with pytest.raises(LookupError, match=r"not at hand"):
        source[0]


def test_images_of_imagenet_are_a_tenth_of_a_megabyte():
    """The archive of the training images has 147,897,477,120 bytes."""
    source = known_source("imagenet2012", "train", field="")
    assert source.image_bytes * len(source) == pytest.approx(147_897_477_120, rel=1e-5)


def test_others_are_not_known():
    assert known_source("folder", "train", field="") is None
    with pytest.raises(UserError, match=r"config\.data\.train_split: no split 'trian'.*'train'"):
        known_source("cifar10", "trian", field="config.data.train_split")
