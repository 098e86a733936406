"""The order of the stream."""

import sys
import threading

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
