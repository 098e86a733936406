"""The 1,000 classes of ImageNet-1k (ILSVRC 2012): WordNet identifiers, in the order of the labels, and their names.

`imagenet_classes.txt` has one class a line: identifier, tab, name. The name is the first lemma of the WordNet 3.0
synset; ten that this leaves alike or unclear say more ("crane (bird)"). Copyright 2006 by Princeton University;
WordNet's licence, which lies beside the file, lets anybody use and pass on the names.
"""

import functools
import unicodedata
from importlib import resources

WNIDS: tuple[str, ...]  # position = label; read when first asked for


def words(name: str) -> str:
    """The English name of a WordNet identifier of ImageNet-1k ("n01440764": "tench"); any other `name` in NFC."""
    return _classes().get(name) or unicodedata.normalize("NFC", name)


def __getattr__(name: str) -> tuple[str, ...]:
    if name == "WNIDS":
        return tuple(_classes())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _classes() -> dict[str, str]:
    text = resources.files("deit_jax.weights").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split("\t", 1) for line in text.splitlines())
