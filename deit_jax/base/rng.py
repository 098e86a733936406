"""Random keys and generators by name and position, never by state.

Device randomness is a JAX key folded with a name and a step; host randomness is a counter-based Philox generator
keyed by (seed, name) with the position in the stream as its counter. Both give the same numbers wherever and however
often they are asked, which is what makes resuming and replaying exact.
"""

import zlib

import jax
import numpy as np


def key_for(key: jax.Array, name: str, step: jax.Array | int) -> jax.Array:
    """The key for one purpose (`name`) at one step."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


def generator(seed: int, name: str, position: int) -> np.random.Generator:
    """A NumPy generator for one purpose (`name`) at one position; `seed` and `position` are at least 0."""
    key = np.array([seed, zlib.crc32(name.encode())], np.uint64)
    # The position is the counter's highest word: each generator has 2^192 draws before it meets its neighbour's.
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, position], np.uint64)))
