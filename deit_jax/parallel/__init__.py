"""The device mesh, what lives where on it, how host arrays get there, how fast they are; and steps compiled ahead."""

from deit_jax.parallel.mesh import (
    batch_devices,
    bytes_per_device,
    check_batch,
    local_rows,
    make_mesh,
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
    "batch_devices",
    "by_rows",
    "bytes_per_device",
    "check_batch",
    "local_rows",
    "make_mesh",
    "matmul_peak",
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
