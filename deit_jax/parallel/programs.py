"""What a compiled program says of itself, read from its text: what travels between devices, and estimated cycles.

The text is XLA's, as `Compiled.as_text()` of `jax.jit(...).lower(...).compile()` gives it for one device.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all", "collective-broadcast")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


class Array(NamedTuple):
    """A buffer's type, as XLA calls it (`bf16`, `u8`), and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)
        return self.size * (int(bits[0]) if bits else 8) // 8


@dataclasses.dataclass(frozen=True)
class Collective:
    """An operation that moves arrays between devices.

    Attributes:
        kind: one of `KINDS`, or such a one with `dcn ` before it, which goes between slices.
        arrays: that it gives on a device.
        times: it is done in a step; more than once in a loop.
        operation: of the model that it is part of, as JAX calls it; "" where the compiler does not tell.
    """

    kind: str
    arrays: tuple[Array, ...]
    times: int
    operation: str


class _Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    rest: str


def collectives(program: str) -> list[Collective]:
    """All of a program's, each once, be it one instruction, a pair of start and end, or spread over others."""
    found, spread = [], set()
    for instruction, times in _weighted(program):
        kind, arrays = _moved(instruction)
        # Of one that XLA lets go on during other work each of these has a copy, with the number of the whole.
        chain = re.search(r'chain_id="(\d+)"', instruction.rest)
        if not kind or (chain and (kind, chain[1]) in spread):
            continue
        spread |= {(kind, chain[1])} if chain else set()
        name = re.search(r'op_name="([^"]*)"', instruction.rest)
        found.append(Collective(kind, arrays, times, name[1] if name else ""))
    return found


def estimated_cycles(program: str) -> int:
    """The sum of what XLA estimates for the instructions of a TPU's program; 0 where it estimates nothing.

    A static model of what the chip computes: collectives and the host's input are not in it. Of branches all count.
    """
    given = ((re.search(r'"estimated_cycles":"(\d+)"', each.rest), times) for each, times in _weighted(program))
    return sum(int(match[1]) * times for match, times in given if match)


def _moved(instruction: _Instruction) -> tuple[str, tuple[Array, ...]]:
    """The kind of collective that an instruction is, and what it gives; "" and nothing for all others."""
    arrays = tuple(
        Array(dtype, tuple(map(int, filter(None, dims.split(",")))))
        for dtype, dims in _ARRAY.findall(instruction.shape)
    )
    kind = instruction.operation.removesuffix("-done")  # a start also has what it was given
    if kind in KINDS:
        return kind, arrays
    if instruction.operation == "fusion" and _sums_part(instruction):
        return "reduce-scatter", arrays
    between = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    if instruction.operation == "send" and between:
        return f"dcn {between[1].lower().replace('_', '-')}", arrays[:1]  # behind it a token and a context
    return "", ()


def _sums_part(instruction: _Instruction) -> bool:
    """Whether it is what TPUs have for a sum of which each device keeps a part."""
    return bool(re.search(r"calls=%?all-reduce-scatter", instruction.rest))


@functools.lru_cache(maxsize=1)  # collectives and cycles are asked of the same one
def _parsed(program: str) -> tuple[str, dict[str, list[_Instruction]]]:
    """The name of the entry, and the instructions of each computation."""
    entry, computations = "", dict[str, list[_Instruction]]()
    current: list[_Instruction] = []
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            current.append(_Instruction(*match.groups()))
    return entry, computations


def _weighted(program: str) -> Iterator[tuple[_Instruction, int]]:
    """Each instruction that is reached from the entry, with how often a step carries it out."""
    entry, computations = _parsed(program)
    todo = [(entry, 1)]
    while todo:
        name, times = todo.pop()
        for instruction in computations.get(name, []):
            yield instruction, times
            if _sums_part(instruction) or instruction.operation.removesuffix("-start") in KINDS:
                continue  # what it calls adds two numbers, or is the sum itself
            branches = [part for found in _BRANCHES.findall(instruction.rest) for part in re.findall(r"[\w.-]+", found)]
            turns = _turns(instruction, computations) if instruction.operation == "while" else 1
            todo += [(called, times * turns) for called in [*_CALLED.findall(instruction.rest), *branches]]


def _turns(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """Of a loop: as XLA notes it, else the one number that its condition compares with, else 1."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(noted[1])
    condition = re.search(r"condition=%?([\w.-]+)", loop.rest)
    compared = computations.get(condition[1] if condition else "", [])
    numbers = [int(each.rest.partition(")")[0]) for each in compared if each.operation == "constant"]
    return numbers[0] if len(numbers) == 1 else 1
