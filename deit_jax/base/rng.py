"""Random keys and generators by name and position, never by state.

Device randomness is a JAX key folded with a name and a step; host randomness is a counter-based Philox generator
keyed by (seed, name) with the position in the stream as its counter. Both give the same numbers wherever and however
often they are asked, which is what makes resuming and replaying exact.

Where a whole image of random numbers is asked for, JAX's own generator would take longer than a tenth of a training
step on CPU, and two seconds of compilation: `noise` is for that.
"""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32


def key_for(key: jax.Array, name: str, step: jax.Array | int) -> jax.Array:
    """The key for one purpose (`name`) at one step."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


def generator(seed: int, name: str, position: int) -> np.random.Generator:
    """A NumPy generator for one purpose (`name`) at one position; `seed` and `position` are at least 0."""
    key = np.array([seed, zlib.crc32(name.encode())], np.uint64)
    # The position is the counter's highest word: each generator has 2^192 draws before it meets its neighbour's.
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, position], np.uint64)))


def noise(keys: UInt32[Array, "rows 2"], shape: tuple[int, ...]) -> Float[Array, "rows ..."]:
    """Independent normal numbers, `shape` of them for each key, on the device: value i is a hash of (key, i).

    The hash is Wellons' lowbias32 (https://github.com/skeeto/hash-prospector), once for each word of the key and once
    for i. Its upper 24 bits are a uniform number, of which comes the normal one, at most 5.5 in absolute value.
    """
    index = jnp.arange(math.prod(shape), dtype=jnp.uint32)
    bits = _hash(_hash(index ^ _hash(keys[:, :1])) + keys[:, 1:])
    uniform = ((bits >> 8).astype(jnp.float32) + 0.5) * 2**-24  # within (0, 1)
    return (math.sqrt(2) * jax.lax.erf_inv(2 * uniform - 1)).reshape(len(keys), *shape)


def _hash(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
