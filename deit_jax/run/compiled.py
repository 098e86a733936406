"""The step of a run compiled ahead for a topology; and where it finds no room, what would."""

import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numpy as np

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.config.resolve import resolve, to_dict
from deit_jax.config.schema import Config
from deit_jax.data import Source
from deit_jax.parallel.plan import Arrays, Compiled, TooLarge, compile_ahead, what_moves
from deit_jax.parallel.topologies import Topology
from deit_jax.run.ahead import Step, step_of

MOST_FSDP = 16  # parts that parameters are cut into to see whether they fit
Report = dict[str, Any]
Changes = dict[str, Any]


def compiled_report(step: Step, topology: Topology) -> Report:
    """What the compiler says of the step: memory of a device, collectives, cycles, and whether there is room.

    Where there is none, `tried` has changes of the config, each with the bytes of a device and whether that has room.
    """
    print(f"compiling for {topology.name}, which takes minutes", file=sys.stderr, flush=True)
    found = _compile(step, topology)
    report: Report = {**_fit(found, topology), "compiled": _said(found, step, topology)}
    if not report["fits"]:
        report["tried"] = list(_tried(step.run.config, step.run.source, topology))
    return report


def _compile(step: Step, topology: Topology) -> Compiled | TooLarge:
    train_step = step.run.train_step(step.teaching.teaching.logits)
    given = (step.run.target, step.batch, np.uint32(step.run.config.seed), step.teaching.teaching.variables)
    try:
        return compile_ahead(train_step, *given, options=topology.options)
    except TooLarge as error:
        return error


def _fit(found: Compiled | TooLarge, topology: Topology) -> Report:
    fits = isinstance(found, Compiled) and found.needed <= topology.memory
    return {"bytes_per_device": found.needed or None, "fits": fits}


def _said(found: Compiled | TooLarge, step: Step, topology: Topology) -> Report:
    package = "libtpu" if topology.chip.platform == "tpu" else "jax-cuda12-pjrt"
    compiler = f"{package} {metadata.version(package)}"
    if isinstance(found, TooLarge):
        return {"compiler": compiler, "refused": str(found)[:500]}
    run, mesh = step.run, step.run.mesh
    size, _, channels = step.batch["image"].shape[1:]
    rows = run.config.batch_size // parallel.batch_devices(mesh)
    arrays = Arrays(
        parameters={leaf.shape for leaf in (run.target.params | run.target.stats).values()},
        devices=mesh.size,
        targets=(rows, len(run.source.class_names)),
        pixels=(size, size, channels),
        data_parallel=mesh.shape["fsdp"] == mesh.shape["tensor"] == 1,
    )
    seconds = found.cycles / topology.chip.clock if topology.chip.clock else 0.0
    return {
        "compiler": compiler,
        "memory": found.memory,
        "collectives": what_moves(found.collectives, arrays),
        "estimated_cycles": found.cycles or None,
        "estimated_step_seconds": seconds or None,
        "seconds_to_compile": round(found.seconds, 1),
    }


def _tried(config: Config, source: Source, topology: Topology) -> Iterator[Report]:
    """Changes that save memory, compiled: each alone, and where none of them does, together until one does."""
    fits = False
    for alone in (True, False):
        for changes in _changes(config, topology, alone=alone):
            try:
                step = step_of(resolve(_changed(config, changes)), source, topology)
            except UserError:  # what does not go together is no way out
                continue
            named = " ".join(f"--config.{path}={value}" for path, value in changes.items())
            print(f"no room; compiling with {named}", file=sys.stderr, flush=True)
            fit = _fit(_compile(step, topology), topology)
            yield {"change": named, **fit}
            fits = fits or fit["fits"]
            if fits and not alone:
                return
        if fits:
            return


def _changes(config: Config, topology: Topology, *, alone: bool) -> Iterator[Changes]:
    """By path, fields with other values: first what leaves the run's result as it is."""
    devices = topology.chips * topology.chip.devices
    inside = devices // topology.slices // config.mesh.tensor
    parts = max(n for n in (1, 2, 4, 8, MOST_FSDP) if inside % n == 0)
    remat: Changes = {} if config.model.remat else {"model.remat": True}
    fsdp: Changes = {"mesh.data": -1, "mesh.fsdp": parts} if parts > config.mesh.fsdp else {}
    rows = config.batch_size // devices // config.optim.accumulation
    most = max(n for n in (1, 2, 4, 8) if rows % n == 0)
    twice, often = ({"optim.accumulation": n * config.optim.accumulation} for n in (2, most))
    least: Changes = {"batch_size": devices * config.optim.accumulation}
    singles: list[Changes] = [twice, remat, fsdp, {"batch_size": config.batch_size // 2}]
    together = [remat | twice, remat | fsdp, remat | fsdp | often, remat | fsdp | least]
    yield from filter(None, singles if alone else [changes for changes in together if changes not in singles])


def _changed(config: Config, changes: Changes) -> dict[str, Any]:
    tree = to_dict(config)
    for path, value in changes.items():
        *groups, name = path.split(".")
        group = tree
        for part in groups:
            group = group[part]
        group[name] = value
    return tree
