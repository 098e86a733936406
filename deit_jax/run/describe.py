"""What a run says of itself before it begins."""

from collections.abc import Sequence

import jax

from deit_jax import parallel
from deit_jax.config.resolve import to_dict
from deit_jax.data import Source, describe_data, examples_per_epoch
from deit_jax.parallel import hosts
from deit_jax.run.build import Run
from deit_jax.run.learning import peak_learning_rate
from deit_jax.run.versions import versions
from deit_jax.run.workdir import Workdir
from deit_jax.step.state import TrainState


def describe_run(run: Run, held_out: Source, workdir: Workdir, state: TrainState, notes: Sequence[str]) -> None:
    """Prints what is about to run, and writes `config.json` and `run.json`."""
    if hosts.index():
        return
    config, mesh, total = run.config, run.mesh, run.total
    parameters = sum(leaf.size for leaf in state.params.values())
    per_device = parallel.bytes_per_device(state.params)
    start, kind, short = int(state.step), jax.devices()[0].device_kind, _reach(run, run.warmup)
    header = {
        "data": describe_data(run.source, held_out),
        "devices": f"{jax.device_count()} x {kind}, {jax.process_count()} process(es), mesh {dict(mesh.shape)}",
        "model": f"{config.model.name}, {parameters:,} parameters, {per_device / 1e6:.1f} MB of them a device",
        "compute": f"{config.model.dtype}, {config.model.attention} attention",
        "weights": "of the checkpoint" if start else config.init_from or "new",
        "steps": f"{start:,} to {total:,}, {config.batch_size} images each",
        **({"epoch": _epoch_of(run)} if config.data.repeats > 1 else {}),
        **({"image size": _sizes_of(run)} if config.data.image_size_schedule else {}),
        "learning rate": f"{peak_learning_rate(config):.3g} after {run.warmup:,} steps of warm-up{short}",
        "workdir": str(workdir.root),
    }
    if jax.default_backend() == "cpu" and config.model.dtype == "bfloat16":  # as with :hardware=tpu
        notes = [
            *notes,
            "JAX has found no accelerator, and bfloat16 is slow on CPUs; float32, or auto, is made for them",
        ]
    lines = [f"{name:14}{value}" for name, value in header.items()] + [f"{'note':14}{note}" for note in notes]
    print("\n".join(lines), flush=True)
    facts = {
        "versions": versions(),
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "device_kind": kind,
        "mesh": dict(mesh.shape),
        "parameters": parameters,
        "parameter_bytes_per_device": per_device,
        "total_steps": total,
        "start_step": start,
    }
    workdir.write_json("config.json", to_dict(config))
    workdir.write_json("run.json", facts)


def _epoch_of(run: Run) -> str:
    """What an epoch is under repeated augmentation, in words."""
    repeats, examples = run.config.data.repeats, len(run.source)
    images = examples_per_epoch(examples, run.config.batch_size, repeats)
    return f"{images:,} images, of {-(-images // repeats):,} of the {examples:,} examples, {repeats} times each"


def _sizes_of(run: Run) -> str:
    """The sizes of the training images, in words."""
    return ", ".join(f"{size} from step {first:,}{_reach(run, first)}" for first, size in run.sizes)


def _reach(run: Run, step: int) -> str:
    """What is to be said of a step that would be beyond the end of the run."""
    return ", which this run does not reach" if step >= run.total else ""
