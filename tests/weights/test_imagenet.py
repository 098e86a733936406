"""The names of ImageNet's classes."""

import fnmatch
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from deit_jax.weights import imagenet


def test_there_are_a_thousand_classes_in_the_order_of_the_labels():
    assert isinstance(imagenet.WNIDS, tuple)
    assert len(imagenet.WNIDS) == 1000
    assert list(imagenet.WNIDS) == sorted(set(imagenet.WNIDS))
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in imagenet.WNIDS)


@pytest.mark.parametrize(
    ("label", "wnid", "name"),
    [
        (0, "n01440764", "tench"),
        (1, "n01443537", "goldfish"),
        (134, "n02012849", "crane (bird)"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (517, "n03126707", "crane (machine)"),
        (817, "n04285008", "sports car"),
        (963, "n07873807", "pizza"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_known_classes(label, wnid, name):
    assert imagenet.WNIDS[label] == wnid
    assert imagenet.words(wnid) == name


def test_names_are_short_plain_and_different():
    names = [imagenet.words(wnid) for wnid in imagenet.WNIDS]
    assert len(set(names)) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9'().,\- ]{2,32}", name) and name == name.strip() for name in names)


def test_what_is_no_class_of_imagenet_keeps_its_name():
    assert imagenet.words("coat") == "coat"
    assert imagenet.words("n00000000") == "n00000000"
    assert imagenet.words("") == ""
    assert imagenet.words("cafe\u0301") == "caf\u00e9"


def test_the_file_is_read_once_and_not_before_it_is_needed():
    module = importlib.util.module_from_spec(imagenet.__spec__)
    imagenet.__spec__.loader.exec_module(module)
    assert module._classes.cache_info().currsize == 0
    assert (len(module.WNIDS), module.words("n01440764"), len(module.WNIDS)) == (1000, "tench", 1000)
    assert module._classes.cache_info().misses == 1
    with pytest.raises(AttributeError, match="no attribute 'WNID'"):
        module.WNID  # noqa: B018


def test_the_file_and_its_licence_are_packaged():
    root = Path(__file__).parents[2]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    data = [path.name for path in (root / "deit_jax" / "weights").iterdir() if path.is_file() and path.suffix != ".py"]
    assert {"imagenet_classes.txt", "imagenet_classes.LICENSE"} <= set(data)
    assert [name for name in data if not any(fnmatch.fnmatch(name, p) for p in patterns["deit_jax.weights"])] == []
