"""The device mesh, what lives where on it, how host arrays get there; processes that share it, steps compiled ahead."""

from deit_jax.parallel.exchange import Exchange
from deit_jax.parallel.mesh import (
    all_rows,
    batch_devices,
    bytes_per_device,
    check_batch,
    check_heads,
    gathered,
    local_rows,
    make_mesh,
    own_rows,
    place,
    put_batch,
    put_replicated,
    replicated,
    require_room,
    shardings,
    targets,
)
from deit_jax.parallel.peak import matmul_peak
from deit_jax.parallel.plan import replicated_shapes, row_shapes
from deit_jax.parallel.rows import by_rows

__all__ = [
    "Exchange",
    "all_rows",
    "batch_devices",
    "by_rows",
    "bytes_per_device",
    "check_batch",
    "check_heads",
    "gathered",
    "local_rows",
    "make_mesh",
    "matmul_peak",
    "own_rows",
    "place",
    "put_batch",
    "put_replicated",
    "replicated",
    "replicated_shapes",
    "require_room",
    "row_shapes",
    "shardings",
    "targets",
]
