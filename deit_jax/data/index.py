"""The stream: which example stands at which position.

Position `step * batch_size + row` is the row of a global batch. An epoch is one permutation of the examples, cut to
whole batches, so that no batch mixes two epochs (as facebook's DeiT: a distributed sampler with `drop_last`).

Under repeated augmentation (arXiv:1901.09335, arXiv:1902.05509) each example of the permutation comes several times in
a row, and an epoch is as long as without: of three copies, two thirds of the examples are not seen in it.
"""

from functools import lru_cache

import numpy as np

from deit_jax.base import rng

ROUNDED = 256  # facebook's sampler cuts an epoch of repeats to a multiple of this, whatever the batch


def examples_per_epoch(examples: int, batch_size: int, repeats: int = 1) -> int:
    """Positions in an epoch: the incomplete last batch is dropped; a split smaller than a batch wraps around.

    Under repeats, the examples are first cut to a multiple of 256, unless there are fewer (of which facebook's sampler
    would make nothing).
    """
    if repeats > 1:
        examples = examples // ROUNDED * ROUNDED or examples
    return examples // batch_size * batch_size or examples


def example_index(
    position: int,
    *,
    seed: int,
    examples: int,
    batch_size: int,
    repeats: int = 1,
    groups: int = 1,
    neighbour: int = 0,
) -> int:
    """The index in `0..examples-1` of the example at a position of the stream.

    Args:
        repeats: how often each example comes in a row.
        groups: parts of a batch, each of consecutive rows, that repeats are dealt to in turn, so that copies of an
            example do not mix with each other: in facebook's sampler they are on different GPUs.
        neighbour: of so many examples further on; 0 is the position's own.
    """
    if repeats > 1:
        step, row = divmod(position, batch_size)
        group, member = divmod(row, batch_size // groups)
        position = step * batch_size + member * groups + group
    epoch, offset = divmod(position + neighbour * repeats, examples_per_epoch(examples, batch_size, repeats))
    return int(_permutation(seed, epoch, examples)[offset // repeats])


# Two: prefetching threads stand on both sides of an epoch's end.
@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    return rng.generator(seed, "shuffle", epoch).permutation(examples)
