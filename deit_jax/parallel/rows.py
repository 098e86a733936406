"""Functions of rows that each device computes for its own, whatever XLA would make of them."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from deit_jax.parallel.mesh import BATCH, batch_devices


def by_rows(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """`function(variables, rows)`, where each device has all variables and computes its part of the rows alone.

    For a function that treats each row by itself. XLA finds most of these to be so; but on CPU and GPU, for a grouped
    convolution, it gathers the whole batch on every device, which then computes all of it.
    """
    if batch_devices(mesh) == 1:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=(P(), P(BATCH)), out_specs=P(BATCH), check_vma=False)
