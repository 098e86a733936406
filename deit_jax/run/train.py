"""The whole story of a run, read top to bottom."""

import contextlib
import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deit_jax import __version__, parallel
from deit_jax.base.errors import UserError
from deit_jax.config.resolve import check_same, to_dict
from deit_jax.config.schema import Config
from deit_jax.distill.teaching import open_teaching
from deit_jax.run import plots
from deit_jax.run.build import Run, build, eval_source, open_mesh, peak_learning_rate, train_source
from deit_jax.run.checkpoint import Checkpoints, has_steps
from deit_jax.run.evaluate import Evaluator, Result, json_of, report, rows_of, teacher_note, weights_of
from deit_jax.run.interrupt import Interrupt, Interrupted
from deit_jax.run.metrics import Monitor, Writer, read_rows, require_wandb
from deit_jax.run.rollback import Rollbacks
from deit_jax.step.state import TrainState, Variables
from deit_jax.weights.orbax import Meta


def train(config: Config, workdir: Path) -> dict[str, Any]:
    """Trains to the end of `config.total`, from the newest checkpoint in `workdir` if there is one.

    Returns:
        The last evaluation: `top1`, `top5` (percent), `loss` (nats), `examples`, and the same under `ema`.

    Raises:
        UserError: the config, the data and the workdir do not go together.
        Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    # 1. The devices, the data, and all that follows from them.
    if config.log.wandb:
        require_wandb()
    mesh = open_mesh(config)
    parallel.check_batch(mesh, config.batch_size, config.optim.accumulation)
    source = train_source(config)
    held_out = eval_source(config, source.class_names)
    run = build(config, mesh, source)
    total = run.total
    image_seconds = run.image_seconds()  # before the state takes its room

    # 2. The teacher: beside the student, recorded, or none.
    teaching = open_teaching(config, source, mesh, rows=total * config.batch_size)
    notes = list(teaching.notes)

    # 3. The state: from where the run stopped, else from the weights to begin with, else from the seed.
    given: Variables = {}
    if config.init_from and not has_steps(workdir / "checkpoints"):
        given, differences = run.given_variables()
        notes += differences
    meta = {"config": to_dict(config), "card": run.card.to_json(), "data": source.fingerprint, "jax": jax.__version__}
    checkpoints = Checkpoints(_make(workdir) / "checkpoints", keep=config.checkpoint.keep)
    rollbacks = Rollbacks(workdir / "rollbacks.json", limit=config.guard.max_rollbacks, batch_size=config.batch_size)
    saved = checkpoints.restore_latest(run.target, functools.partial(_check_same_run, config, meta, workdir))
    state = rollbacks.resume(saved or run.first_state(given))
    start, seed = int(state.step), np.uint32(config.seed)

    # 4. The steps, compiled over the mesh, and the batches from where the state is.
    train_step = run.train_step(teaching.logits)
    batches = run.batches(start, total, teaching.store)
    evaluator = Evaluator(config, run.predict, held_out, mesh)
    results: dict[str, Result] = {}
    stop = False

    def evaluate() -> dict[str, float]:
        results.update(evaluator(weights_of(state)))
        return rows_of(results)

    if teaching.predict and config.distillation.teacher.evaluate and start == 0:
        notes.append(teacher_note(config, teaching.predict, teaching.variables, held_out, mesh))
    describe_run(run, workdir, state, notes)

    # 5. The loop. The host is a step ahead of the device: the next batch moves there while this one is used.
    monitor = _monitor(run, workdir, start, image_seconds)
    with Interrupt() as interrupt, closing(checkpoints), closing(monitor), closing(batches):
        for step in range(start + 1, total + 1):
            batch = monitor.wait_for(batches)
            state, metrics = train_step(state, batch, seed, teaching.variables)
            monitor.add(step, metrics)
            due = step % run.eval_every == 0 or step == total
            stop = interrupt.requested and step < total
            pause = due or stop or step % run.save_every == 0
            if pause:
                monitor.settle(evaluate if due else None)
            if monitor.burst >= config.guard.max_skipped and not stop:
                monitor.settle()
                state, monitor.burst = rollbacks.roll_back(state, checkpoints, run.target), 0
                if step < total:
                    continue
                evaluate()
            if (pause and monitor.healthy) or step == total:  # within a burst the state is none to go back to
                checkpoints.save(state, meta, top1=best_of(results) if due else None, last=stop or step == total)
            if stop:
                break

    # 6. The end.
    if stop:
        raise Interrupted(f"interrupted; the same command goes on from step {checkpoints.latest()} of {total}")
    if not results:
        evaluate()
    if jax.process_index() == 0:
        plots.save_curves(read_rows(workdir / "metrics.jsonl"), workdir / "curves.png")
        report(results, held_out, workdir)
    return json_of(results)


def best_of(results: Mapping[str, Result]) -> float:
    """The top-1 by which the best checkpoint is known: of the weights handed on, the average where there is one."""
    return results.get("eval_ema", results["eval"]).summary()["top1"]


def describe_run(run: Run, workdir: Path, state: TrainState, notes: Sequence[str]) -> None:
    """Prints what is about to run, and writes `config.json` and `run.json`."""
    if jax.process_index():
        return
    config, mesh, total = run.config, run.mesh, run.total
    parameters = sum(leaf.size for leaf in state.params.values())
    per_device = parallel.bytes_per_device(state.params)
    start, kind = int(state.step), jax.devices()[0].device_kind
    header = {
        "devices": f"{jax.device_count()} x {kind}, {jax.process_count()} process(es), mesh {dict(mesh.shape)}",
        "model": f"{config.model.name}, {parameters:,} parameters, {per_device / 1e6:.1f} MB of them a device",
        "compute": f"{config.model.dtype}, {config.model.attention} attention",
        "weights": "of the checkpoint" if start else config.init_from or "new",
        "steps": f"{start:,} to {total:,}, {config.batch_size} images each",
        "learning rate": f"{peak_learning_rate(config):.3g} after warm-up",
        "workdir": str(workdir),
    }
    lines = [f"{name:14}{value}" for name, value in header.items()] + [f"{'note':14}{note}" for note in notes]
    print("\n".join(lines), flush=True)
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
    facts = {
        "versions": {"deit_jax": __version__} | {name: metadata.version(name) for name in packages},
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "device_kind": kind,
        "mesh": dict(mesh.shape),
        "parameters": parameters,
        "parameter_bytes_per_device": per_device,
        "total_steps": total,
        "start_step": start,
    }
    (workdir / "config.json").write_text(json.dumps(to_dict(config), indent=2) + "\n")
    (workdir / "run.json").write_text(json.dumps(facts, indent=2) + "\n")


def _make(workdir: Path) -> Path:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            return workdir
    except OSError as error:
        raise UserError(
            f"--workdir: cannot write to {workdir}: {error.strerror}; name a folder that is yours"
        ) from error


def _check_same_run(config: Config, meta: Meta, workdir: Path, stored: Meta) -> None:
    """Refuses a checkpoint of another run; says what has changed otherwise."""
    if "config" not in stored:
        raise UserError(
            "--workdir: its checkpoint has weights alone, as deit_jax.convert writes them; take another --workdir, and "
            "begin from this one by config.init_from"
        )
    changes = check_same(stored["config"], config)
    if stored["data"] != meta["data"] or stored["card"]["class_names"] != meta["card"]["class_names"]:
        raise UserError(
            "config.data.dir: the training split is not the one that this workdir was trained on (its files or classes "
            "differ); bring the data back, or take another --workdir"
        )
    before = stored.get("jax") or _last_jax(workdir)
    if before != meta["jax"]:
        changes.append(f"jax: {before} -> {meta['jax']}, which may draw other drop-path masks and sum otherwise")
    for change in changes if jax.process_index() == 0 else ():
        print(f"changed since the checkpoint: {change}")


def _last_jax(workdir: Path) -> str:
    """The version that last ran here: checkpoints of old do not tell."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((workdir / "run.json").read_text())["versions"]["jax"])
    return "unknown"


def _monitor(run: Run, workdir: Path, start: int, image_seconds: float) -> Monitor:
    """On the first process with a writer, elsewhere silent."""
    writer, log = None, run.config.log
    if jax.process_index() == 0:
        given = to_dict(run.config)
        writer = Writer(workdir, step=start, tensorboard=log.tensorboard, wandb=log.wandb, config=given)
    return Monitor(
        writer,
        start=start,
        total=run.total,
        log_every=run.log_every,
        batch_size=run.config.batch_size,
        progress=log.progress,
        image_seconds=image_seconds,
    )
