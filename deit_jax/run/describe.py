"""What a run says of itself before it begins, and in the end."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import jax

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.base.forms import read_json
from deit_jax.config.resolve import to_dict
from deit_jax.config.schema import Config
from deit_jax.data import Source, describe_data, examples_per_epoch
from deit_jax.parallel import hosts
from deit_jax.run.build import Run
from deit_jax.run.evaluate import Result, handed_on
from deit_jax.run.learning import peak_learning_rate
from deit_jax.run.versions import versions
from deit_jax.run.workdir import Workdir
from deit_jax.step.state import TrainState


def describe_run(
    run: Run, held_out: Source, workdir: Workdir, state: TrainState, notes: Sequence[str], changes: Sequence[str]
) -> None:
    """Prints what is about to run, and writes `config.json` and `run.json`.

    Args:
        notes: what else there is to say.
        changes: how the config differs from that of the checkpoint.
    """
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
        "learning rate": f"{_rate_of(config)} after {run.warmup:,} steps of warm-up{short}",
        "workdir": str(workdir.root),
    }
    if jax.default_backend() == "cpu" and config.model.dtype == "bfloat16":  # as with :hardware=tpu
        notes = [
            *notes,
            "JAX has found no accelerator, and bfloat16 is slow on CPUs; float32, or auto, is made for them",
        ]
    group, asked = config.mixing_group, config.mixing.group
    if group < min(asked, config.batch_size):
        notes = [*notes, f"images mix in groups of {group}, not {asked}, of which {config.batch_size} is no multiple"]
    if start == total:
        notes = [*notes, "this run is finished; to train on, raise config.total, for another take another --workdir"]
    lines = [f"changed since the checkpoint: {change}" for change in changes]
    lines += [f"{name:14}{value}" for name, value in header.items()] + [f"{'note':14}{note}" for note in notes]
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
    if start < total:  # else nothing is trained by it
        workdir.write_json("config.json", to_dict(config))
    workdir.write_json("run.json", facts | {"changes": _changes_until(workdir, start, changes)})


def describe_end(
    workdir: Workdir, best: int, results: Mapping[str, Result], last: tuple[int, float | None], written: Sequence[str]
) -> None:
    """Prints how well the run did, where everything is, and what may come next.

    Args:
        best: the step that is handed on.
        results: its evaluation.
        last: step and top-1 of the last evaluation.
        written: files about the best step.
    """
    average = ", moving average" if "eval_ema" in results else ""
    others = "" if last[0] == best or last[1] is None else f"; the last, step {last[0]:,}, has {last[1]:.2f} %"
    lines = {
        "best": f"{handed_on(results).summary()['top1']:.2f} % top-1 at step {best:,}{average}{others}",
        "of the best": ", ".join([*written, "and what predict, attention, export and convert take"]),
        "of the run": f"curves.png, metrics.jsonl, checkpoints, in {workdir.root}",
        "next": f"python -m deit_jax.predict --weights={workdir.root} PHOTO",
    }
    print("\n".join(f"{name:14}{value}" for name, value in lines.items()), flush=True)


def _rate_of(config: Config) -> str:
    """The highest learning rate, and how it comes from what the config says."""
    peak, given = peak_learning_rate(config), config.optim.learning_rate
    scaled = f" ({given:g} for 512 images, scaled to {config.batch_size})" if config.optim.scale_by_batch else ""
    return f"{peak:.3g}{scaled}"


def _changes_until(workdir: Workdir, start: int, changes: Sequence[str]) -> list[dict[str, Any]]:
    """At which steps the config was changed, and how: config.json has the last one alone."""
    before: list[dict[str, Any]] = []
    with suppress(UserError, KeyError, TypeError):
        before = [change for change in read_json(workdir.root / "run.json", dict)["changes"] if change["step"] < start]
    return [*before, {"step": start, "changes": list(changes)}] if changes else before


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
