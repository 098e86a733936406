"""The device mesh, who lives where on it, and how host arrays get there.

The mesh has three axes: `data` (batch), `fsdp` (batch, and parameters with their optimizer state cut over it) and
`tensor` (the wide axis of matrices cut over it). One rule list names the axes; XLA derives the communication.
"""

import itertools
import math
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deit_jax.base.errors import UserError
from deit_jax.base.rules import first_match

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# Mesh axes of a parameter's LAST dimensions. Matrices into the wide space of attention and MLP are cut by columns,
# those back by rows, so that `tensor` needs one reduction for each pair (arXiv:1909.08053, section 3). Where it lies
# cut, the matrix of queries, keys and values in one is no device's heads; `Attention` has it moved, not what it makes.
PARAMETER_RULES: list[tuple[str, tuple[str | None, ...]]] = [
    (r"(attn\.qkv|mlp\.fc1)\.kernel$", ("fsdp", "tensor")),
    (r"(attn\.proj|mlp\.fc2)\.kernel$", ("tensor", "fsdp")),
    (r"(^|\.)head(_dist)?\.kernel$", ("fsdp", None)),
    (r"\.kernel$", ("fsdp",)),
    (r"", ()),
]


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    slices: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over `devices` (default: all there are); `data = -1` takes what the other axes leave.

    The devices are in the order of slices, processes, and devices of a process. So `data` alone goes over slices,
    between which the network is slow, `fsdp` and `tensor` stay inside one, and inside a process while they fit; and a
    process has rows of the batch that follow one another (`local_rows`). `jax.make_mesh` and `mesh_utils`, which order
    the devices by the axes of a TPU's torus, scatter them: even for data alone on v5e:4x4.

    Args:
        slices: of TPUs, as the devices themselves tell. Elsewhere, where nobody knows of slices, the processes, each
            then with all devices of its host; 1 there leaves `fsdp` and `tensor` free to go over processes.

    Raises:
        UserError: the axes do not multiply to the number of devices, or the slices are not those that there are, or do
            not divide `data`.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1:
        data = count // (fsdp * tensor)
    if data * fsdp * tensor != count:
        raise UserError(
            f"config.mesh: data x fsdp x tensor = {data} x {fsdp} x {tensor} does not make the {count} device(s) "
            f"there are; set config.mesh.data=-1 and let the others divide {count}"
        )
    there = len(set(map(_slice, devices)))
    if slices != there and (slices > 1 or devices[0].platform == "tpu"):
        raise UserError(
            f"config.mesh.slices: is {slices}, and the {count} device(s) are of {there} slice(s); set it to {there}"
        )
    if data % slices:
        raise UserError(
            f"config.mesh.slices: {slices} does not divide mesh.data = {data}, which alone goes over slices; "
            f"make mesh.fsdp or mesh.tensor smaller"
        )
    ordered = sorted(devices, key=lambda device: (_slice(device), device.process_index))
    return Mesh(np.array(ordered).reshape(data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def _slice(device: jax.Device) -> int:
    """Which slice a device is of, see `make_mesh`."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else device.process_index


def batch_devices(mesh: Mesh) -> int:
    """Parts that a batch is cut into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(mesh: Mesh, batch_size: int, accumulation: int) -> None:
    """Raises `UserError` unless every micro-batch divides over the mesh."""
    unit = batch_devices(mesh) * accumulation
    if batch_size % unit:
        below = batch_size // unit * unit
        near = f"{below} or {below + unit}" if below else f"{unit}"
        raise UserError(
            f"config.batch_size: {batch_size} is not divisible by {unit} (mesh.data x mesh.fsdp x optim.accumulation); "
            f"try {near}"
        )


def check_heads(mesh: Mesh, heads: int) -> None:
    """Raises `UserError` unless attention of so many heads divides over the mesh."""
    tensor = mesh.shape["tensor"]
    if heads % tensor:
        divisors = [str(number) for number in range(1, heads + 1) if heads % number == 0]
        raise UserError(
            f"config.mesh.tensor: {tensor} does not divide the {heads} heads of the model's attention, which it cuts; "
            f"take {' or '.join(divisors)}"
        )


def shardings(tree: Any, mesh: Mesh, cut: Collection[str] = AXES) -> Any:
    """A `NamedSharding` for each leaf of a state (arrays or shapes), over the axes `cut` of the mesh.

    A leaf under a parameter's path takes that parameter's rule, be it in `params`, `ema` or the optimizer's moments;
    all else is replicated. A dimension that its mesh axis does not divide stays whole.
    """

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        names = [str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        axes = first_match(PARAMETER_RULES, names[-1]) if names else ()
        if len(axes) > leaf.ndim:  # a name that a teacher of the user's has for something else
            axes = ()
        spec = (None,) * (leaf.ndim - len(axes)) + axes
        sized = zip(spec, leaf.shape, strict=True)
        fits = (axis if axis in cut and size % mesh.shape[axis] == 0 else None for axis, size in sized)
        return NamedSharding(mesh, P(*fits))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def targets(shapes: Any, mesh: Mesh) -> Any:
    """The `ShapeDtypeStruct`s of a state with their shardings: what restoring puts arrays into."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(shapes, mesh),
    )


def place(tree: Any, mesh: Mesh) -> Any:
    """The arrays of `tree`, equal on all processes, on the mesh by their `shardings`."""
    return jax.jit(lambda given: given, out_shardings=shardings(tree, mesh))(tree)


def gathered(params: Mapping[str, jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """The parameters of a jitted step with none cut over `fsdp`: what its layers multiply with.

    Left to itself, XLA gathers the weights of most layers only, and moves what others multiply them with. They are
    gathered once a step: `fsdp` cuts what there is between steps, and the gradients, but not what a step works with.
    """
    return jax.lax.with_sharding_constraint(dict(params), shardings(dict(params), mesh, cut=("tensor",)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, P())


def local_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> range:
    """The rows of a global batch that a process (None: this one) feeds to its devices."""
    process = jax.process_index() if process is None else process
    parts: Mapping[Any, Any] = NamedSharding(mesh, P(BATCH)).devices_indices_map((batch_size,))
    fed = {rows.indices(batch_size)[:2] for device, (rows,) in parts.items() if device.process_index == process}
    bounds = sorted(fed)
    if any(stop != start for (_, stop), (start, _) in itertools.pairwise(bounds)):
        raise ValueError(f"the mesh gives process {process} scattered rows of the batch: {bounds}")
    return range(bounds[0][0], bounds[-1][1])


def put_batch(rows: Mapping[str, np.ndarray], mesh: Mesh, batch_size: int) -> dict[str, jax.Array]:
    """Global arrays of `batch_size` rows, cut along their first axis, from this process's rows.

    The size is told, since JAX would take any number of rows for this process's share of some batch.
    """
    sharding = NamedSharding(mesh, P(BATCH))
    return {
        name: jax.make_array_from_process_local_data(sharding, value, (batch_size, *value.shape[1:]))
        for name, value in rows.items()
    }


def put_replicated(tree: Any, mesh: Mesh) -> Any:
    """Global arrays, whole on every device, from values equal on all processes."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(replicated(mesh), x, x.shape), tree)


def own_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array on a mesh, in their order; all of one that is whole on every device."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def all_rows(array: jax.Array, mesh: Mesh) -> np.ndarray:
    """All rows of an array on the mesh; to be asked for by all processes together."""
    return np.asarray(jax.jit(lambda given: given, out_shardings=replicated(mesh))(array))


def bytes_per_device(tree: Any) -> int:
    """Bytes that the arrays of `tree` take on the fullest device of this process."""
    held: dict[Any, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    return max(held.values())


def require_room(target: Any, batch: int) -> None:
    """Raises `UserError` where there is no room for the arrays that `targets` describes, or on the host for a batch.

    Args:
        batch: bytes of this process's rows.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if batch > memory:
        raise UserError(
            f"config.batch_size: its images take {batch / 2**30:,.1f} GiB, there are {memory / 2**30:,.1f} GiB; "
            f"set it, or config.data.image_size, lower"
        )
    leaves = jax.tree.leaves(target)
    needed = sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
    device = jax.local_devices()[0]
    if device.platform == "cpu":  # which share the machine's
        needed *= len(jax.local_devices())
        room = memory
    else:
        room = (device.memory_stats() or {}).get("bytes_limit", math.inf)
    if needed > room:
        raise UserError(
            f"config.model: parameters, optimizer and average take {needed / 2**30:,.1f} GiB, there are "
            f"{room / 2**30:,.1f} GiB; take a smaller model, or cut it over more devices by config.mesh.fsdp"
        )
