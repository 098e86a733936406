"""The device mesh, what lives where on it, how host arrays get there, and how fast the devices are."""

from deit_jax.parallel.mesh import (
    batch_devices,
    bytes_per_device,
    check_batch,
    check_heads,
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

__all__ = [
    "batch_devices",
    "bytes_per_device",
    "check_batch",
    "check_heads",
    "local_rows",
    "make_mesh",
    "matmul_peak",
    "place",
    "put_batch",
    "put_replicated",
    "replicated",
    "require_room",
    "shardings",
    "targets",
]
