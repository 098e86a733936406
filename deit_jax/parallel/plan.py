"""A step compiled ahead of time: the memory that a device needs for it, and what travels between devices."""

import collections
import dataclasses
import functools
import math
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deit_jax.base.threads import begun
from deit_jax.parallel.mesh import BATCH, replicated
from deit_jax.parallel.programs import Array, Collective, collectives, estimated_cycles

# Tiles that the compiler for TPUs packs sums into which it sends between slices; those of 4 for kernels of 3 channels.
PACKED, SHORT = (8, 128), (4, 128)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class TooLarge(Exception):
    """The compiler finds no room for a program; `needed` are the bytes of a device that it asks for, 0 if unknown."""

    def __init__(self, message: str):
        super().__init__(message)
        asked = re.search(r"(?:Used |required for HLO temporaries \()([\d.]+)([KMGT]?)", message)
        self.needed = int(float(asked[1]) * _UNITS[asked[2]]) if asked else 0


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiler says of a program, of one device.

    Attributes:
        memory: bytes of its `arguments`, `temporaries`, `outputs`, of the outputs that are `aliased` with arguments, of
            the `generated_code`, and at the `peak` (without code), by these names.
        collectives: see `programs.collectives`.
        cycles: see `programs.estimated_cycles`.
        seconds: that lowering and compiling took.
    """

    memory: dict[str, int]
    collectives: list[Collective]
    cycles: int
    seconds: float

    @property
    def needed(self) -> int:
        """Bytes of a device: the peak with the code."""
        return self.memory["peak"] + self.memory["generated_code"]


def compile_ahead(step: Any, *arguments: Any, options: Mapping[str, Any] | None = None) -> Compiled:
    """Compiles a jitted function for the devices that the shardings of its arguments name.

    Args:
        arguments: shapes with shardings; nothing is allocated.
        options: the compiler's.

    Raises:
        TooLarge: the compiler finds no room for it.
    """
    start = time.perf_counter()
    lowered = step.lower(*arguments)
    try:
        # Beside the main thread, which would not hear of a signal before the end.
        compiled = begun(functools.partial(lowered.compile, dict(options or {}))).result()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise TooLarge(" ".join(str(error).split())) from error
        raise
    said, program = compiled.memory_analysis(), compiled.as_text()
    names = {"arguments": "argument", "temporaries": "temp", "outputs": "output", "aliased": "alias"}
    memory = {name: getattr(said, f"{part}_size_in_bytes") for name, part in names.items()}
    memory["generated_code"] = said.generated_code_size_in_bytes
    memory["peak"] = said.peak_memory_in_bytes
    return Compiled(memory, collectives(program), estimated_cycles(program), time.perf_counter() - start)


def row_shapes(tree: Any, mesh: Mesh) -> Any:
    """Shapes and shardings of what `put_batch` makes of the rows of a global batch, given as arrays or shapes."""
    return _placed(tree, NamedSharding(mesh, P(BATCH)))


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """Shapes and shardings of what `put_replicated` makes of arrays."""
    return _placed(tree, replicated(mesh))


def _placed(tree: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def shard_bytes(tree: Any) -> int:
    """Bytes that arrays, given as shapes with shardings, take on a device."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def residual_bytes(function: Any, parameters: Any, *arguments: Any) -> int:
    """Bytes that reverse-mode differentiation by `parameters` keeps of a forward pass, XLA's own choices aside.

    Args:
        function: of (parameters, *arguments).
        parameters, arguments: shapes, of which nothing is computed.
    """
    kept = jax.eval_shape(lambda p, *rest: jax.vjp(lambda p: function(p, *rest), p)[1], parameters, *arguments)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


@dataclasses.dataclass(frozen=True)
class Arrays:
    """The arrays of a data-parallel or sharded step, by which what travels is told apart.

    Attributes:
        parameters: shapes of the parameters and the statistics.
        devices: of the mesh.
        targets: rows of the batch on a device, and classes.
        pixels: height, width and channels of the images.
        data_parallel: parameters are whole on every device, so that what is summed over devices is a sum over the
            batch: gradients, loss and statistics.
    """

    parameters: Collection[tuple[int, ...]]
    devices: int
    targets: tuple[int, int]
    pixels: tuple[int, int, int]
    data_parallel: bool

    def name(self, moved: Collective, array: Array, *, in_parts: bool) -> str:
        """What an array of a collective is.

        `images` are integers; `indices` are boxes, keys and flags; `activations` is what is nothing else.

        Args:
            in_parts: the program sums so that each device first has a part, and gathers these.
        """
        shape = _sides(array.shape)
        pictured = shape[-3:] == self.pixels
        if array.dtype == "pred" or array.dtype[0] in "su":
            reshaped = array.size > 0 and array.size % math.prod(self.pixels) == 0
            return "images" if pictured or reshaped else "indices"
        if array.size == 1 or (in_parts and shape[-1:] == PACKED[1:] and array.size < math.prod(PACKED)):
            return "scalars"  # a row of a tile for each, where they are packed
        if pictured:
            return "float images"
        a_part = self._is_part(array.size)
        summed_part = moved.kind == "reduce-scatter" and a_part  # that of the head may have the targets' shape
        if shape == _sides(self.targets) and not summed_part and "jvp(" not in moved.operation:
            return "targets"  # which are mixed before what is differentiated
        summed, gathered = moved.kind.endswith(("all-reduce", "reduce-scatter")), moved.kind.endswith("all-gather")
        if not self.data_parallel and a_part:
            return "gradients" if summed else "parameters" if gathered else "activations"
        if not self.data_parallel:
            return "activations"
        whole = summed and (len(shape) == 1 or tuple(sorted(shape)) in self._wholes)  # one side: several in one, too
        part = in_parts and (summed or gathered) and (shape[-2:] in (PACKED, SHORT) or a_part)
        return "gradients" if whole or part else "activations"

    @functools.cached_property
    def _wholes(self) -> set[tuple[int, ...]]:
        """Sorted sides of the parameters, since a compiler transposes a product and merges what are neighbours."""
        return {tuple(sorted(sides)) for shape in self.parameters for sides in _merged(_sides(shape))}

    def _is_part(self, size: int) -> bool:
        wholes = map(math.prod, self.parameters)
        return any(whole % size == 0 and self.devices % (whole // size) == 0 for whole in wholes)


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without those of one."""
    return tuple(side for side in shape if side > 1)


def _merged(sides: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The sides with any neighbours merged."""
    if len(sides) < 2:
        yield sides
        return
    for first, *rest in _merged(sides[1:]):
        yield sides[0], first, *rest
        yield sides[0] * first, *rest


def what_moves(found: Sequence[Collective], arrays: Arrays) -> list[dict[str, Any]]:
    """Collectives by kind, type and what they move, the largest first.

    Returns:
        For each `kind`, `dtype` and what it `moves` (see `Arrays.name`) the `count` in a step, the `bytes` that they
        give on a device, and the JAX `operation` of the largest.
    """
    in_parts = any(each.kind in ("reduce-scatter", "dcn all-reduce") for each in found)
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    largest: collections.Counter = collections.Counter()
    for each in found:
        parts: collections.Counter = collections.Counter()
        for array in each.arrays:
            parts[each.kind, array.dtype, arrays.name(each, array, in_parts=in_parts)] += array.nbytes
        for key, nbytes in parts.items():
            empty = dict(zip(("kind", "dtype", "moves"), key, strict=True)) | {"count": 0, "bytes": 0, "operation": ""}
            group = groups.setdefault(key, empty)
            group["count"] += each.times
            group["bytes"] += each.times * nbytes
            if nbytes > largest[key]:
                largest[key], group["operation"] = nbytes, each.operation
    return sorted(groups.values(), key=lambda group: -group["bytes"])
