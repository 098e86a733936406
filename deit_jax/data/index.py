"""The stream: which example stands at which position.

Position `step * batch_size + row` is the row of a global batch. An epoch is one permutation of the examples, cut to
whole batches, so that no batch mixes two epochs (as facebook's DeiT: a distributed sampler with `drop_last`).
"""

from functools import lru_cache

import numpy as np

from deit_jax.base import rng


def examples_per_epoch(examples: int, batch_size: int) -> int:
    """Positions in an epoch: the incomplete last batch is dropped; a split smaller than a batch wraps around."""
    return examples // batch_size * batch_size or examples


def example_index(position: int, *, seed: int, examples: int, batch_size: int) -> int:
    """The index in `0..examples-1` of the example at a position of the stream."""
    epoch, offset = divmod(position, examples_per_epoch(examples, batch_size))
    return int(_permutation(seed, epoch, examples)[offset])


# Two: prefetching threads stand on both sides of an epoch's end.
@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    return rng.generator(seed, "shuffle", epoch).permutation(examples)
