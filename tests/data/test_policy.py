"""What the text of a policy means, and how often each thing is drawn, against what timm drew."""

import collections
import functools
import json
import math

import numpy as np
import pytest
from golden_files import load
from scipy import stats

from deit_jax.base.errors import UserError
from deit_jax.data.autoaugment import POLICIES, AutoAugment
from deit_jax.data.operations import WARPS
from deit_jax.data.policy import parse_policy
from deit_jax.data.randaugment import NAMES, WEIGHTS, Levels, RandAugment, argument
from deit_jax.data.three_augment import ThreeAugment

GOLDEN = load("augment.npz")
SPECS = [key.removeprefix("drawn/") for key in GOLDEN if key.startswith("drawn/")]
LEAST = 1e-3  # of all p-values; the seeds are fixed


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        ("", None),
        ("rand", RandAugment(10, 2, 0.5, Levels(0.0, 10, "falling"))),
        ("rand-m9-mstd0.5-inc1", RandAugment(9, 2, 0.5, Levels(0.5, 10, "increasing"))),
        ("rand-inc1-mstd0.5-m9", RandAugment(9, 2, 0.5, Levels(0.5, 10, "increasing"))),
        ("rand-m7-n3-p0.25-mmax12-inc0", RandAugment(7, 3, 0.25, Levels(0.0, 12, "falling"))),
        ("rand-mstd100", RandAugment(10, 2, 0.5, Levels(100.0, 10, "falling"))),
        ("rand-mstd101", RandAugment(10, 2, 0.5, Levels(math.inf, 10, "falling"))),
        ("rand-w0-n13", RandAugment(10, 13, 0.5, Levels(), weighted=True)),
        ("original", AutoAugment("original", Levels(meaning="original"))),
        ("v0-mstd0.5", AutoAugment("v0", Levels(0.5, meaning="falling"))),
        ("3a", ThreeAugment()),
    ],
)
def test_specs_mean_what_they_mean_to_timm(spec, policy):
    assert parse_policy(spec) == policy


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("randm9", "'randm9': unknown augmentation 'randm9'; did you mean rand"),
        ("augmix-m3", "'augmix-m3': unknown augmentation 'augmix'; known: rand, 3a, original, v0"),
        ("rand-m9-x3", "'rand-m9-x3': unknown token 'x3'; rand takes mstd, m, n, p, mmax, inc, w"),
        ("rand-m9-", "'rand-m9-': unknown token ''; rand takes mstd"),
        ("rand-9", "'rand-9': unknown token '9'; rand takes"),
        ("rand-tweights", "'rand-tweights': unknown token 'tweights'; rand takes"),
        ("3a-mstd0.5", "'3a-mstd0.5': unknown token 'mstd0.5'; 3a takes none"),
        ("v0-m9", "'v0-m9': unknown token 'm9'; v0 takes mstd"),
        ("rand-m9.5", "'rand-m9.5': 'm9.5': should be m with a whole number from 0 to 100"),
        ("rand-m", "'rand-m': 'm': should be m with a whole number from 0 to 100"),
        ("rand-n0", "'rand-n0': 'n0': should be n with a whole number from 1 to 100"),
        ("rand-p1.5", "'rand-p1.5': 'p1.5': should be p with a number from 0 to 1"),
        ("rand-mstd0.5.1", "'rand-mstd0.5.1': 'mstd0.5.1': should be mstd with a number of at least 0"),
        ("rand-inc2", "'rand-inc2': 'inc2': should be inc with a whole number from 0 to 1"),
        ("rand-w1", "'rand-w1': 'w1': should be w0"),
        ("rand-m\uff19", "'rand-m\uff19': unknown token 'm\uff19'; rand takes"),
        ("rand-m9-m8", "'rand-m9-m8': 'm8': m comes twice; leave one out"),
        ("rand-w0-n14", "'rand-w0-n14': n14: w0 draws each of 13 operations once at most; lower n"),
    ],
)
def test_wrong_specs_point_at_the_token(spec, message):
    with pytest.raises(UserError) as error:
        parse_policy(spec)
    assert str(error.value).startswith(f"config.data.augment: {message}")
    assert "\n" not in str(error.value)


@functools.cache
def ours(spec: str, count: int):
    """The operations that are drawn for so many images, from one generator."""
    policy, generator = parse_policy(spec), np.random.default_rng(1)
    return [policy.draw(generator, "bicubic") for _ in range(count)]


def timms(spec: str) -> list[list[tuple[str, float | None]]]:
    return json.loads(GOLDEN[f"drawn/{spec}"].tobytes())


def same_counts(one: collections.Counter, other: collections.Counter) -> float:
    """p of a chi-square test that both were drawn alike; what is rare counts together."""
    keys = sorted(one | other, key=str)
    common = [key for key in keys if one[key] + other[key] >= 10]
    rare = [key for key in keys if key not in common]
    table = [[*(counts[key] for key in common), sum(counts[key] for key in rare)] for counts in (one, other)]
    table = np.array(table)[:, np.sum(table, axis=0) > 0]
    return stats.chi2_contingency(table).pvalue if table.shape[1] > 1 else 1.0


@pytest.mark.parametrize("spec", SPECS)
def test_which_operations_are_drawn_together_as_often_as_timm_draws_them(spec):
    theirs = timms(spec)
    names = collections.Counter(tuple(op.name for op in drawn) for drawn in ours(spec, len(theirs)))
    assert same_counts(names, collections.Counter(tuple(name for name, _ in drawn) for drawn in theirs)) > LEAST


@pytest.mark.parametrize("spec", SPECS)
def test_arguments_are_distributed_as_timms(spec):
    """By Kolmogorov and Smirnov where they are fractions, by chi-square where they are whole or few."""
    theirs, found = collections.defaultdict(list), collections.defaultdict(list)
    for drawn in timms(spec):
        for name, value in drawn:
            theirs[name].append(value)
    for drawn in ours(spec, len(timms(spec))):
        for op in drawn:
            found[op.name].append(None if op.argument is None else round(float(op.argument), 6))
    assert found.keys() == theirs.keys()
    for name, values in theirs.items():
        few = len(set(values)) < 60
        if few:
            p = same_counts(collections.Counter(found[name]), collections.Counter(values))
        else:
            p = stats.ks_2samp(found[name], values).pvalue
        assert p > LEAST, name


def test_randaugment_draws_evenly_and_carries_out_half():
    """Closed form: each of two draws is carried out with probability 1/2, and is one of 15 with 1/15."""
    drawn = ours("rand-m9-mstd0.5-inc1", 10_000)
    lengths = [sum(len(ops) == length for ops in drawn) for length in range(3)]
    assert stats.chisquare(lengths, [2500, 5000, 2500]).pvalue > LEAST
    names = collections.Counter(op.name for ops in drawn for op in ops)
    assert stats.chisquare([names[name] for name in NAMES]).pvalue > LEAST


def test_levels_are_normal_and_cut_off_and_signs_even():
    drawn = [op for ops in ours("rand-m9-mstd0.5-inc1", 10_000) for op in ops]
    degrees = np.array([op.argument for op in drawn if op.name == "Rotate"])
    levels = np.abs(degrees) / 3
    assert (levels <= 10).all()
    capped = (levels == 10).sum()
    assert stats.binomtest(int(capped), len(levels), stats.norm.sf(2)).pvalue > LEAST  # 2.3 %
    assert stats.kstest(levels[levels < 10], stats.truncnorm(-18, 2, 9, 0.5).cdf).pvalue > LEAST
    assert stats.binomtest(int((degrees < 0).sum()), len(degrees), 0.5).pvalue > LEAST


def test_weights_draw_no_operation_twice():
    drawn = ours("rand-w0-p1-n2", 5000)
    assert all(one.name != other.name for one, other in drawn)
    first = collections.Counter(ops[0].name for ops in drawn)
    used = [name for name in NAMES if WEIGHTS[name]]
    assert first.keys() <= set(used)
    expected = np.array([WEIGHTS[name] for name in used])
    assert stats.chisquare([first[name] for name in used], 5000 * expected / expected.sum()).pvalue > LEAST


@pytest.mark.parametrize(
    ("name", "level", "meaning", "low", "high"),
    [  # the table at level 9, and its ends
        ("Rotate", 9, "increasing", -27, 27),
        ("ShearX", 9, "falling", -0.27, 0.27),
        ("TranslateYRel", 9, "increasing", -0.405, 0.405),
        ("Color", 9, "increasing", 0.19, 1.81),
        ("Sharpness", 10, "increasing", 0.1, 1.9),
        ("Contrast", 9, "falling", 1.72, 1.72),
        ("Posterize", 9, "increasing", 1, 1),
        ("Posterize", 7.4, "increasing", 2, 2),
        ("Posterize", 10, "increasing", 0, 0),
        ("Posterize", 9, "falling", 3, 3),
        ("Posterize", 9, "original", 7, 7),
        ("Solarize", 9, "increasing", 26, 26),
        ("Solarize", 10, "increasing", 0, 0),
        ("Solarize", 9, "original", 230, 230),
        ("SolarizeAdd", 9, "increasing", 99, 99),
        ("SolarizeAdd", 20, "falling", 128, 128),
        ("Invert", 9, "increasing", None, None),
    ],
)
def test_arguments_at_a_level(name, level, meaning, low, high):
    found = [argument(name, level, negative=negative, meaning=meaning) for negative in (True, False)]
    assert found == pytest.approx([low, high]) if low is not None else found == [None, None]


def test_warps_alone_interpolate_and_at_random_both_ways():
    policy, generator = parse_policy("rand-n2-p1"), np.random.default_rng(0)
    drawn = [op for _ in range(2000) for op in policy.draw(generator, "random")]
    assert {op.interpolation for op in drawn if op.name not in WARPS} == {""}
    warps = [op.interpolation for op in drawn if op.name in WARPS]
    assert set(warps) == {"bilinear", "bicubic"}
    assert stats.binomtest(warps.count("bilinear"), len(warps), 0.5).pvalue > LEAST
    assert {op.interpolation for ops in ours("rand-m9-mstd0.5-inc1", 10_000) for op in ops} == {"", "bicubic"}


@pytest.mark.parametrize("name", POLICIES)
def test_policies_have_the_pairs_that_timms_have(name):
    theirs = json.loads(str(GOLDEN[f"policy/{name}"]))
    assert [[list(entry) for entry in pair] for pair in POLICIES[name]] == theirs


def test_three_augment_draws_evenly_and_blurs_evenly():
    """Closed form: one of three, the blur's radius uniform from 0.1 to 2."""
    drawn = [op for ops in ours("3a", 10_000) for op in ops]
    assert len(drawn) == 10_000
    names = [op.name for op in drawn]
    assert stats.chisquare([names.count(name) for name in ("Desaturate", "Solarize", "GaussianBlur")]).pvalue > LEAST
    radii = [op.argument for op in drawn if op.name == "GaussianBlur"]
    assert stats.kstest(radii, stats.uniform(0.1, 1.9).cdf).pvalue > LEAST
