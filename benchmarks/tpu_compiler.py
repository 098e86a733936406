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
import shlex
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["JAX_PLATFORMS"] = "cpu"  # what compiles for other machines needs none of this one's chips

import jax
import numpy as np

from deit_jax.config import recipes
from deit_jax.config.resolve import resolve
from deit_jax.data.memory import MemorySource
from deit_jax.models.attention import IMPLEMENTATIONS
from deit_jax.parallel.plan import compile_ahead
from deit_jax.parallel.topologies import find_topology
from deit_jax.run.ahead import step_of

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
    topology = find_topology(given.topology)
    tree = recipes.deit(given.model, hardware="tpu")
    tree.update_from_flattened_dict({"batch_size": given.batch_size * topology.chips, "model.depth": given.depth})
    tree.mixing.group = math.gcd(tree.mixing.group, given.batch_size)
    tree.update_from_flattened_dict(fields)
    config = resolve(tree)
    size, names = config.data.image_size, [str(i) for i in range(1000)]
    source = MemorySource(np.zeros((8, size, size, 3), np.uint8), np.arange(8), names, name="black")
    step = step_of(config, source, topology)
    kinds = {"xla": attend(IMPLEMENTATIONS["xla"])} if attend else {}
    jax.clear_caches()  # of blocks that were traced with another attention
    with mock.patch.dict(IMPLEMENTATIONS, kinds):
        found = compile_ahead(step.run.train_step(), step.run.target, step.batch, np.uint32(0))
    moved: Counter = Counter()
    for each in found.collectives:
        moved[each.kind] += each.times * sum(array.nbytes for array in each.arrays)
    return {
        "mcycles": round(found.cycles / 1e6, 2),
        **{f"{name}_mb": round(found.memory[name] / 1e6, 1) for name in ("arguments", "temporaries", "peak")},
        "collectives": {kind: round(nbytes / 1e6, 1) for kind, nbytes in moved.items()},
    }


if __name__ == "__main__":
    main()
