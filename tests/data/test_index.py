"""The order of the stream."""

import sys
import threading
from collections import Counter

import numpy as np
import pytest

from deit_jax.base import rng
from deit_jax.data import index
from deit_jax.data.index import example_index, examples_per_epoch


def stream(positions: range, *, seed: int = 3, examples: int = 23, batch_size: int = 5) -> list[int]:
    return [example_index(position, seed=seed, examples=examples, batch_size=batch_size) for position in positions]


def test_the_incomplete_last_batch_is_dropped() -> None:
    assert examples_per_epoch(23, 5) == 20
    assert examples_per_epoch(20, 5) == 20
    assert examples_per_epoch(3, 5) == 3


def test_an_epoch_visits_no_example_twice() -> None:
    epochs = [stream(range(20 * epoch, 20 * epoch + 20)) for epoch in range(4)]
    assert all(len(set(epoch)) == 20 and set(epoch) <= set(range(23)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    # Each epoch leaves out other examples, so that over time none is.
    assert len({frozenset(epoch) for epoch in epochs}) > 1


def test_a_split_smaller_than_a_batch_wraps() -> None:
    indices = stream(range(9), examples=3)
    assert [sorted(indices[i : i + 3]) for i in (0, 3, 6)] == [[0, 1, 2]] * 3


def test_seeds_differ_and_repeat() -> None:
    assert stream(range(40)) == stream(range(40)) != stream(range(40), seed=4)
    assert stream(range(40, 60)) == stream(range(60))[40:]


def sampler(order: np.ndarray, *, repeats: int, ranks: int, batch_size: int) -> list[list[int]]:
    """The examples of each global batch of an epoch, rank by rank, as facebook's sampler of repeats deals them out.

    Each example of the permutation comes several times in a row; a rank takes every so manieth of them, and of these as
    many as its part of the permutation's length, cut to a multiple of 256; its loader drops an incomplete batch.
    """
    repeated, local = [example for example in order for _ in range(repeats)], batch_size // ranks
    taken = [repeated[rank::ranks][: len(order) // 256 * 256 // ranks] for rank in range(ranks)]
    steps = len(taken[0]) // local
    return [[e for part in taken for e in part[step * local : (step + 1) * local]] for step in range(steps)]


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize(("examples", "batch_size", "repeats"), [(1283, 64, 3), (1283, 64, 2), (770, 112, 3)])
def test_repeats_are_those_of_facebooks_sampler(ranks: int, examples: int, batch_size: int, repeats: int) -> None:
    steps = examples_per_epoch(examples, batch_size, repeats) // batch_size
    for epoch in range(2):
        order = rng.generator(3, "shuffle", epoch).permutation(examples)
        wanted = sampler(order, repeats=repeats, ranks=ranks, batch_size=batch_size)
        assert len(wanted) == steps
        for step, batch in enumerate(wanted, epoch * steps):
            dealt, otherwise = (
                [
                    example_index(p, seed=3, examples=examples, batch_size=batch_size, repeats=repeats, groups=groups)
                    for p in range(step * batch_size, (step + 1) * batch_size)
                ]
                for groups in (ranks, 4)
            )
            assert dealt == batch  # a group is the local batch of its rank, in order
            assert Counter(otherwise) == Counter(batch)


def test_an_epoch_of_repeats_at_imagenets_size() -> None:
    """1,281,024 samples, of 427,008 images three times each."""
    assert examples_per_epoch(1_281_167, 1024, 3) == 1_281_024 == 3 * 427_008
    assert examples_per_epoch(1_281_167, 1000, 3) == 1_281_000
    assert examples_per_epoch(255, 32, 3) == 224  # facebook's has no epoch at all
    assert examples_per_epoch(300, 1024, 3) == 256
    assert examples_per_epoch(1_281_167, 1000) == 1_281_000


@pytest.mark.parametrize(("batch_size", "groups", "repeats"), [(64, 4, 3), (60, 5, 5), (64, 64, 3)])
def test_no_group_has_two_copies_of_an_example(batch_size: int, groups: int, repeats: int) -> None:
    settings = {"batch_size": batch_size, "groups": groups, "repeats": repeats}
    epoch = examples_per_epoch(1283, batch_size, repeats)
    found = np.array([example_index(p, seed=3, examples=1283, **settings) for p in range(epoch)])
    for group in found.reshape(-1, batch_size // groups):
        assert len(set(group.tolist())) == len(group)
    seen = Counter(found.tolist())
    assert len(seen) == -(-epoch // repeats)
    assert set(seen.values()) <= {repeats, epoch % repeats}


def test_a_neighbour_is_another_example() -> None:
    """The one after all copies, so that a damaged file does not stand in for itself."""
    for repeats in (1, 3):
        settings = {"seed": 3, "examples": 1283, "batch_size": 64, "repeats": repeats, "groups": 4}
        own, after = ([example_index(p, neighbour=n, **settings) for p in range(600)] for n in (0, 1))
        assert all(one != other for one, other in zip(own, after, strict=True))
        assert set(after) - set(own)  # the last one's is new
        assert len(set(after[:192])) == len(set(own[:192])) == 192 // repeats


def test_one_permutation_per_epoch_in_any_order_of_asking() -> None:
    index._permutation.cache_clear()
    expected = stream(range(40))
    positions = [p for pair in zip(range(20), range(20, 40), strict=True) for p in pair]
    assert [stream(range(p, p + 1))[0] for p in positions] == [expected[p] for p in positions]
    assert index._permutation.cache_info().misses == 2


def test_threads_agree() -> None:
    expected, found = stream(range(200)), [None] * 8
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, stream(range(200)))) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert found == [expected] * 8
