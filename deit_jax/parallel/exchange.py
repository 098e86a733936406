"""A few numbers of every process, told to all without keeping a device waiting."""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from deit_jax.parallel import hosts
from deit_jax.parallel.mesh import replicated


class Exchange:
    """Numbers of each process for all of them, over the devices of a mesh; all processes call it alike.

    It is a program of its own and not a part of the train step, which so stays the same for any number of processes.
    """

    def __init__(self, mesh: Mesh):
        self._mesh = mesh
        processes = [device.process_index for device in mesh.devices.flat]
        # A device tells its process by a number of its platform's, which need not be that of JAX's service.
        self._rows = np.array([processes.index(int(told)) for told in hosts.gather(str(jax.process_index()))])
        self._gather = jax.jit(lambda rows: rows, out_shardings=replicated(mesh))

    def __call__(self, values: Sequence[float]) -> Float[Array, "devices numbers"] | Float[np.ndarray, "1 numbers"]:
        """What `read` makes the numbers of; computed while the caller goes on."""
        own = np.asarray(values, np.float32)
        if len(self._rows) == 1:
            return own[None]
        sharding, local = NamedSharding(self._mesh, P(self._mesh.axis_names)), len(self._mesh.local_devices)
        rows = jax.make_array_from_process_local_data(sharding, np.tile(own, (local, 1)), (self._mesh.size, len(own)))
        return self._gather(rows)

    def read(self, rows: Array | np.ndarray) -> Float[np.ndarray, "processes numbers"]:
        """The numbers of each process, in the order of `hosts.index`; waits until they are there."""
        return np.asarray(rows)[self._rows]
