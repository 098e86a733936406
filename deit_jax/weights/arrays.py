"""What a checkpoint's meta tells of its arrays: shapes, types, and checksums, which are the same on any mesh."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deit_jax.base.errors import UserError
from deit_jax.base.storage import Place
from deit_jax.step.state import TrainState


def describe(state: TrainState) -> dict[str, dict[str, Any]]:
    """Shape, dtype and checksum of every array, by its path in the state."""
    sums = jax.device_get(_checksums(state))
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": int(sums[path])}
        for path, leaf in _leaves(state).items()
    }


def _leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def of_field(arrays: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """The described arrays of one field of the state, by their path in it."""
    head, tail = f".{name}['", "']"
    return {
        path.removeprefix(head).removesuffix(tail): jax.ShapeDtypeStruct(entry["shape"], entry["dtype"])
        for path, entry in arrays.items()
        if path.startswith(head)
    }


def checksum(value: np.ndarray) -> int:
    """Of an array on the host: what `_checksums` makes of it on the devices."""
    words = np.ascontiguousarray(value).view(f"uint{8 * value.dtype.itemsize}")
    return int(words.sum(dtype=np.uint32))


@jax.jit
def _checksums(state: TrainState) -> dict[str, Array]:
    """The sum of each array's words modulo 2^32: the same on any mesh, and changed by any single flipped bit.

    Restoring does not notice a flipped byte in array data by itself.
    """

    def words(leaf: Array) -> Array:
        unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)

    return {path: jnp.sum(words(leaf), dtype=jnp.uint32) for path, leaf in _leaves(state).items()}


def check_fit(saved: Mapping[str, Any], target: TrainState, where: Place) -> None:
    """Raises `UserError` unless the described arrays have the paths, shapes and types of a state."""
    wanted = {path: (list(leaf.shape), str(leaf.dtype)) for path, leaf in _leaves(target).items()}
    found = {path: (entry["shape"], entry["dtype"]) for path, entry in saved.items()}
    for path in sorted(wanted.keys() | found.keys()):
        if wanted.get(path) != found.get(path):
            raise UserError(
                f"{where}: is of another model: {path} is {found.get(path, 'missing')} there and "
                f"{wanted.get(path, 'missing')} here; take another --workdir or the run's own config"
            )
