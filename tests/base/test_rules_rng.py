import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax.base import rng
from deit_jax.base.rules import first_match, match_all

RULES = [(r"qkv\.kernel$", "cut"), (r"kernel$", "whole"), (r"^blocks\.1\.", "first")]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("blocks.1.attn.qkv.kernel", "cut"),  # all three rules match: the first one counts
        ("blocks.1.mlp.fc1.kernel", "whole"),
        ("blocks.1.norm1.bias", "first"),
    ],
)
def test_the_first_rule_that_matches_decides(path, value):
    assert first_match(RULES, path) == value


@pytest.mark.parametrize("path", ["blocks.10.norm1.bias", "blocks.1", "head.kernel.old", ""])
def test_a_path_without_a_rule_is_an_error(path):
    with pytest.raises(ValueError, match="no rule matches") as error:
        first_match(RULES, path)
    assert repr(path) in str(error.value)


def test_a_value_may_be_false():
    assert first_match([("a", False), ("", True)], "a") is False
    assert first_match([("a", None)], "a") is None


def test_rules_must_cover_every_path():
    assert match_all(RULES, iter(["a.kernel", "blocks.1.b"])) == {"a.kernel": "whole", "blocks.1.b": "first"}
    with pytest.raises(ValueError, match=r"'pos_embed'"):
        match_all(RULES, ["a.kernel", "pos_embed"])


def test_generators_give_the_numbers_they_always_gave():
    """Were these to change, by a salted hash of the name for one, no run could be resumed in another process."""
    raw = rng.generator(3, "mixing", 5).bit_generator.random_raw(3)
    assert raw.tolist() == [12061377776971015561, 640924198710149812, 11391888933863196430]
    key = rng.key_for(jax.random.key(3), "drop_path", 5)
    assert jax.random.key_data(key).tolist() == [2046107698, 1149156363]


def test_a_generator_is_philox_with_the_position_as_its_highest_counter():
    seed, name, position = 7, "crop", 2**40 + 1
    state = np.random.Philox(key=[seed, zlib.crc32(name.encode())], counter=[0, 0, 0, position])
    np.testing.assert_array_equal(
        rng.generator(seed, name, position).bit_generator.random_raw(11), state.random_raw(11)
    )


def test_a_generator_depends_on_nothing_but_its_arguments():
    before = rng.generator(1, "flip", 13).random(5)
    rng.generator(1, "flip", 12).random(1000)
    np.random.default_rng().random(7)
    np.testing.assert_array_equal(rng.generator(1, "flip", 13).random(5), before)


def test_seed_name_and_position_each_give_other_numbers():
    draws = {
        (seed, name, position): tuple(rng.generator(seed, name, position).bit_generator.random_raw(2))
        for seed, name, position in itertools.product((0, 1, 2**32 - 1), ("crop", "flip", ""), (0, 1, 2, 2**33))
    }
    assert len(set(draws.values())) == len(draws) == 36


def test_neighbouring_positions_are_not_correlated():
    draws = np.stack([rng.generator(0, "mixing", position).random(2) for position in range(2000)])
    below, above = draws[:-1].ravel(), draws[1:].ravel()
    assert abs(np.corrcoef(below, above)[0, 1]) < 5 / np.sqrt(len(below))
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(1 / 12 / draws.size)


@pytest.mark.parametrize(("seed", "position"), [(-1, 0), (0, -1)])
def test_negative_seeds_and_positions_are_refused(seed, position):
    with pytest.raises((ValueError, OverflowError)):
        rng.generator(seed, "crop", position)


def test_keys_differ_by_key_name_and_step():
    data = {
        tuple(jax.random.key_data(rng.key_for(jax.random.key(seed), name, step)).tolist())
        for seed, name, step in itertools.product((0, 1), ("drop_path", "erase"), (0, 1, 2))
    }
    assert len(data) == 12


def test_a_key_is_the_same_for_a_traced_step():
    key = jax.random.key(1)
    traced = jax.jit(lambda step: rng.key_for(key, "erase", step))(jnp.int32(17))
    assert jax.random.key_data(traced).tolist() == jax.random.key_data(rng.key_for(key, "erase", 17)).tolist()
