"""What the devices do in large matrix products: the yardstick of utilisation."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from deit_jax.parallel import hosts

# Side of the square matrices and how many products are timed as one, so that starting them does not count.
MATMULS_CPU, MATMULS_ACCELERATOR = (2048, 4), (8192, 16)


def matmul_peak(mesh: Mesh, dtype: str) -> Callable[[], float]:
    """A function that measures the FLOP/s of large square matrix products, one on every device: the best of a few.

    The matrices are random: on zeros some devices draw less power and clock higher.
    """
    size, products = MATMULS_CPU if jax.default_backend() == "cpu" else MATMULS_ACCELERATOR
    chain = jax.jit(lambda x: functools.reduce(lambda y, _: x @ y, range(products), x))
    draw = jax.jit(
        lambda key: jax.random.normal(key, (mesh.size, size, size), dtype) / math.sqrt(size),
        out_shardings=NamedSharding(mesh, PartitionSpec(mesh.axis_names)),
    )

    def measure() -> float:
        hosts.at("large matrix products", compiling=True)
        x = draw(jax.random.key(0))
        best = min(seconds(functools.partial(chain, x)) for _ in range(6))  # the first one compiles
        return products * 2 * size**3 * mesh.size / best

    return measure


def seconds(step: Callable[[], Any]) -> float:
    """From the start of a computation on the devices to its end."""
    start = time.perf_counter()
    jax.block_until_ready(step())
    return time.perf_counter() - start
