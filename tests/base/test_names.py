"""Many names in a line."""

import itertools
import re

import numpy as np
import pytest

from deit_jax.base.names import listing, ranges
from deit_jax.models import abstract_model, flatten


def expand(short: str) -> list[str]:
    """All the names that one of `ranges` stands for."""
    choices = []
    for part in re.split(r"(\{.*?\})", short):
        if part.startswith("{"):
            ends = [item.split("-") for item in part.strip("{}").split(",")]
            choices.append([n for e in ends for n in (map(str, range(int(e[0]), int(e[1]) + 1)) if e[1:] else e)])
        else:
            choices.append([part])
    return ["".join(choice) for choice in itertools.product(*choices)]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        ([f"blocks.{i}.bias" for i in range(12)], ["blocks.{0-11}.bias"]),
        (["b.9.x", "b.10.x", "b.2.x", "b.11.x"], ["b.{2,9-11}.x"]),
        (["b.3.x", "b.4.x"], ["b.{3,4}.x"]),
        (["head", "b.3.x", "b.3.y"], ["head", "b.3.x", "b.3.y"]),
        (["s1.b1", "s1.b2", "s2.b1", "s2.b2"], ["s{1,2}.b{1,2}"]),
        (["s1.b1", "s1.b2", "s2.b2"], ["s1.b1", "s{1,2}.b2"]),
        (["b.0", "b.01", "b.1", "b.2", "b.003"], ["b.{0,01,1,2,003}"]),
        ([], []),
    ],
)
def test_names_that_differ_in_numbers_are_one(names, short):
    assert ranges(names) == short


@pytest.mark.parametrize("seed", range(30))
def test_no_name_is_lost_and_none_is_added(seed):
    """Any part of the names of a network, in any order, some with zeros before the number."""
    random = np.random.default_rng(seed)
    every = [f"{word}{i}.{part}{j}{tail}" for word in ("s", "b.") for i in range(12) for part in ("conv", "01.fc")
             for j in ("0", "1", "2", "10", "00", "007") for tail in ("", ".bias")]  # fmt: skip
    names = random.permutation(every)[: random.integers(len(every) + 1)].tolist()
    expanded = [name for short in ranges(names) for name in expand(short)]
    assert sorted(expanded) == sorted(names)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "regnety_004", "resnet50"])
def test_whole_networks_are_told_in_few_words(name):
    names = list(flatten(abstract_model(name)))
    short = ranges(names)
    assert sorted(name for item in short for name in expand(item)) == sorted(names)
    assert len(short) < len(names) / 5


def test_a_listing_has_every_problem_and_tells_only_like_names_as_one():
    said = {"a.0": "[1] instead of [2]", "a.1": "[1] instead of [2]", "a.2": "[3] instead of [2]"}
    assert listing({"missing": {"b.1": "", "b.2": "", "c": ""}, "extra": {}, "of another shape": said}) == (
        "3 missing: b.{1,2}, c; 3 of another shape: a.{0,1} [1] instead of [2], a.2 [3] instead of [2]"
    )
    assert listing({"missing": {}, "extra": {}}) == ""
