"""Chips that a step is compiled for without being there: what is published of them, and their compilers' view of them.

The compilers are wheels: libtpu (extra `plan-tpu`) for TPUs, those of the extra `plan-cuda` for NVIDIA's GPUs.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies

from deit_jax.base.errors import UserError

GIB = 2**30
GPUS_A_HOST = 8
# What JAX's allocator takes of a GPU's memory, where neither variable says otherwise.
GPU_SHARE = 0.75
GPU_SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
# libtpu would else ask Google Cloud what machine this is, tell what it does not find, and abort where another process
# has loaded it.
LIBTPU = {
    **{"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"},
    **{"TPU_WORKER_HOSTNAMES": "localhost", "TPU_STDERR_LOG_LEVEL": "3"},
}
# XLA tries several Triton kernels for a matrix product on the GPU and keeps the best; without a GPU it takes its
# default, which it cannot compile for numbers of tokens that 16 does not divide.
GPU_OPTIONS: Mapping[str, Any] = {"xla_gpu_enable_triton_gemm": False}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a kind of chip is known to be.

    Attributes:
        kind: as JAX calls its devices.
        memory: bytes of a device; of a TPU's those that a program may take.
        peak: bfloat16 operations a second of the whole chip, dense.
        axes: of the layouts that it comes in; 1 for a mere number of chips.
        clock: cycles a second; 0 where it is not known.
        devices: that JAX sees of a chip.
        target: what XLA asks of a GPU, beside the defaults of `_TARGET`; empty for TPUs.
    """

    kind: str
    memory: float
    peak: float
    axes: int
    clock: float = 0.0
    devices: int = 1
    target: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def platform(self) -> str:
        """As JAX calls it: `tpu` or `gpu`."""
        return "gpu" if self.target else "tpu"


_HOPPER: dict[str, Any] = {
    **{"major": 9, "cores": 132, "fpus": 128, "clock": 1.98, "shared_optin": 232_448, "shared_core": 233_472},
    **{"l2": 50 * 2**20, "bandwidth": 3_352_320_000_000, "memory": 84_978_434_048},
}
_H200 = _HOPPER | {"bandwidth": 4_800_000_000_000, "memory": int(139.8 * GIB)}
_A100: dict[str, Any] = {
    **{"major": 8, "cores": 108, "fpus": 64, "clock": 1.41, "shared_optin": 166_912, "shared_core": 167_936},
    **{"l2": 40 * 2**20, "bandwidth": 2_039_000_000_000, "memory": int(79.15 * GIB)},
}
# Peaks of TPUs: docs.cloud.google.com/tpu/docs/NAME; memory: what the compiler of libtpu 0.0.42 calls available;
# clocks: arXiv:2304.01433, table 4, for v3 and v4; of v5e and v5p none is published, so that at which their 4 and 8
# matrix units of 128 x 128 have the peak. GPUs: NVIDIA's data sheets of the SXM modules, memory as CUDA tells it.
CHIPS = {
    "v3": Chip("TPU v3", 15.48 * GIB, 123e12, 2, 0.94e9, devices=2),
    "v4": Chip("TPU v4", 30.75 * GIB, 275e12, 3, 1.05e9),
    "v5e": Chip("TPU v5 lite", 15.75 * GIB, 197e12, 2, 1.5e9),
    "v5p": Chip("TPU v5", 95.74 * GIB, 459e12, 3, 1.75e9),
    "v6e": Chip("TPU v6 lite", 31.25 * GIB, 918e12, 2),
    "tpu7x": Chip("TPU7x", 94.75 * GIB, 2307e12, 3, devices=2),
    "a100": Chip("NVIDIA A100-SXM4-80GB", _A100["memory"], 312e12, 1, target=_A100),
    "h100": Chip("NVIDIA H100 80GB HBM3", _HOPPER["memory"], 989.4e12, 1, target=_HOPPER),
    "h200": Chip("NVIDIA H200", _H200["memory"], 989.4e12, 1, target=_H200),
}
KNOWN = (
    "known: v3, v5e, v6e with a layout such as v5e:16x16; v4, v5p, tpu7x with one such as v4:2x2x4; a100, h100, h200 "
    "with a number such as h100:8"
)
# Of `stream_executor/device_description.proto` in XLA's source, what its compiler for GPUs asks for.
_TARGET = """
gpu_device_info {{
  cuda_compute_capability {{ major: {major} }}
  core_count: {cores}
  fpus_per_core: {fpus}
  clock_rate_ghz: {clock}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared_optin}
  shared_memory_per_core: {shared_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  l2_cache_size: {l2}
  memory_bandwidth: {bandwidth}
  device_memory_size: {memory}
}}
platform_name: "CUDA"
device_description_str: "{kind}"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips in a layout, of which none need be there.

    Attributes:
        name: as it was given, such as `v5e:4x4`.
        chips: of all slices.
        slices: of the layout each, joined by the data-centre network.
    """

    name: str
    chip: Chip
    chips: int
    slices: int

    @property
    def memory(self) -> int:
        """Bytes of a device that a program may take; of GPUs as much as the environment lets JAX take."""
        return int(self.chip.memory * (_gpu_share() if self.chip.target else 1))

    @property
    def options(self) -> dict[str, Any]:
        """What the compiler is told beside the program."""
        return dict(GPU_OPTIONS) if self.chip.target else {}

    def devices(self) -> list[jax.Device]:
        """The devices as their compiler knows them.

        Raises:
            UserError: the compiler is not installed, or knows no such layout.
        """
        given = self._arguments()
        try:
            return list(topologies.get_topology_desc(**given).devices)
        except (RuntimeError, NotImplementedError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"--topology: there is no {self.name}: {reason}; {KNOWN}") from error

    def _arguments(self) -> dict[str, Any]:
        if self.chip.target:
            _require("jax_plugins", "jax_plugins.xla_cuda12", "nvidia", "nvidia.cuda_nvcc", extra="plan-cuda")
            hosts, gpus = divmod(self.chips, GPUS_A_HOST)
            form = f"1x{hosts}x{GPUS_A_HOST}" if hosts else f"1x1x{gpus}"
            return {
                "platform": "cuda",
                "topology": form,
                "target_config": _TARGET.format(kind=self.chip.kind, **self.chip.target),
            }
        _require("libtpu", extra="plan-tpu")
        for name, value in LIBTPU.items():
            os.environ.setdefault(name, value)
        given: dict[str, Any] = {"platform": "tpu", "topology_name": self.name, "num_slices": self.slices}
        if self.name.startswith("v4:"):
            given["chip_config_name"] = "megacore"  # both cores are one device, as on Cloud TPU
        if self.chips == self.slices:
            given["chips_per_host_bounds"] = [1, 1, 1]  # else there are four chips a host at least
        return given


def find_topology(name: str, slices: int = 1) -> Topology:
    """The topology of a name such as `v5e:4x4`, or so many of them as slices.

    Raises:
        UserError: the name is none that is known; the line lists those that are.
    """
    kind, _, layout = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None or not re.fullmatch(r"[1-9]\d{0,3}" + r"x[1-9]\d{0,3}" * (chip.axes - 1), layout):
        raise UserError(f"--topology: {name} is none that is known; {KNOWN}")
    chips = math.prod(map(int, layout.split("x")))
    if chip.target and slices > 1:
        raise UserError(f"--slices: are of TPUs; name all GPUs together, --topology={kind}:{slices * chips}")
    if chip.target and chips > GPUS_A_HOST and chips % GPUS_A_HOST:
        raise UserError(f"--topology: {name} are no whole hosts of {GPUS_A_HOST} GPUs; {KNOWN}")
    return Topology(name, chip, chips * slices, slices)


def find_chip(kind: str) -> Chip | None:
    """The chip whose devices JAX calls so; None for what is not known here."""
    return next((chip for chip in CHIPS.values() if chip.kind == kind), None)


def _gpu_share() -> float:
    name = next(filter(os.environ.get, GPU_SHARES), "")
    given = os.environ.get(name, GPU_SHARE)
    try:
        share = float(given)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UserError(f"{name}: is {given}, should be a share of a GPU's memory, such as 0.9")
    return share


def _require(*modules: str, extra: str) -> None:
    """Raises `UserError` where one of the modules, each after the package that it is in, is not installed."""
    if not all(importlib.util.find_spec(module) for module in modules):
        raise UserError(f"--topology: its compiler is not installed; pip install 'deit_jax[{extra}]' brings it")
