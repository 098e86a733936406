"""What the TPU compiler makes of a training step with each attention, remat and patch embedding: without a TPU.

    make compilers
    .venv-compilers/bin/python benchmarks/tpu_compiler.py --output=benchmarks/results/tpu_compiler_base.json

The step is that of DeiT's recipe, of so many blocks only, in bfloat16, compiled for the chips of a topology. `mcycles`
is the sum of the compiler's `estimated_cycles`, in millions, for one chip: a static model that leaves out what chips
send to each other. It follows the work and tells two variants apart; it is no measured time. `collectives` are the
megabytes of what each operation between chips gives, a chip. A variant takes minutes of a core; those that the output
has already are kept, so that the command goes on where it was stopped.
"""

import argparse
import json
import math
import os
import re
import shlex
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

# What is not asked of Google Cloud, and that another process may have loaded libtpu.
os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

import jax
import numpy as np
from jax.experimental import topologies

from deit_jax.config import recipes
from deit_jax.config.resolve import resolve
from deit_jax.data.memory import MemorySource
from deit_jax.models.attention import IMPLEMENTATIONS
from deit_jax.run.build import build, open_mesh
from deit_jax.run.stream import batch_shapes

# What differs from the recipe for TPUs: attention xla, no remat, patch embedding conv, data parallel. Fields are
# `section.name`; `attend` is what attention is put through.
VARIANTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "einsum": {"model.attention": "einsum"},
    "remat": {"model.remat": True},
    "attention remat": {"attend": jax.checkpoint},
    "linear": {"model.patch_embedding": "linear"},
    "fsdp=4": {"mesh.fsdp": 4},
    "tensor=2": {"mesh.tensor": 2},
}
BYTES = {"pred": 1, "u8": 1, "s8": 1, "bf16": 2, "f32": 4, "s32": 4, "u32": 4}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", default="deit_base_patch16_224")
    arguments.add_argument("--depth", type=int, default=2)
    arguments.add_argument("--batch_size", type=int, default=64, help="images a chip")
    arguments.add_argument("--topology", default="v5e:4x4")
    arguments.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    arguments.add_argument("--output", type=Path, required=True)
    given = arguments.parse_args()
    result: dict[str, Any] = {
        "command": shlex.join(["python", *sys.argv]),
        **{name: getattr(given, name) for name in ("model", "depth", "batch_size", "topology")},
        **{name: metadata.version(name) for name in ("jax", "libtpu")},
        "variants": {},
    }
    if given.output.exists():
        before = json.loads(given.output.read_text())
        if any(before.get(name) != result[name] for name in result if name not in ("command", "variants")):
            sys.exit(f"{given.output}: is of another step; name another file")
        result["variants"] = before["variants"]
    for name in given.variants:
        if name in result["variants"]:
            continue
        result["variants"][name] = ask(given, **VARIANTS[name])
        print(name, json.dumps(result["variants"][name]), flush=True)
        given.output.write_text(json.dumps(result, indent=2) + "\n")


def ask(given: argparse.Namespace, attend: Any = None, **fields: Any) -> dict[str, Any]:
    """What the compiler says of the training step of the recipe with these `fields` changed."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=given.topology).devices
    tree = recipes.deit(given.model, hardware="tpu")
    tree.update_from_flattened_dict({"batch_size": given.batch_size * len(devices), "model.depth": given.depth})
    tree.mixing.group = math.gcd(tree.mixing.group, given.batch_size)
    tree.update_from_flattened_dict(fields)
    config = resolve(tree)
    size, names = config.data.image_size, [str(i) for i in range(1000)]
    source = MemorySource(np.zeros((8, size, size, 3), np.uint8), np.arange(8), names, name="black")
    run = build(config, open_mesh(config, devices), source)
    batch = batch_shapes(config, run.mesh, size, {})
    kinds = {"xla": attend(IMPLEMENTATIONS["xla"])} if attend else {}
    jax.clear_caches()  # of blocks that were traced with another attention
    with mock.patch.dict(IMPLEMENTATIONS, kinds):
        step = run.train_step().lower(run.target, batch, np.uint32(0))
    compiled = step.compile()
    text, memory = compiled.as_text(), compiled.memory_analysis()
    return {
        "mcycles": round(sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text))) / 1e6, 2),
        "arguments_mb": round(memory.argument_size_in_bytes / 1e6, 1),
        "temporaries_mb": round(memory.temp_size_in_bytes / 1e6, 1),
        "peak_mb": round(memory.peak_memory_in_bytes / 1e6, 1),
        "collectives": collectives(text),
    }


def collectives(program: str) -> dict[str, float]:
    """Megabytes that the operations of each kind give; of one in two parts, the first names what goes in, too."""
    found: Counter = Counter()
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    for shapes, kind, start in re.findall(rf" = (.*?) ({kinds})(-start)?\(", program):
        each = [
            BYTES[dtype] * math.prod(map(int, filter(None, dims.split(","))))
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        ]
        found[kind] += max(each) if start and kind != "all-reduce" else sum(each)
    return {kind: round(number / 1e6, 1) for kind, number in found.items()}


if __name__ == "__main__":
    main()
