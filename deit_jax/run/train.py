"""The whole story of a run, read top to bottom."""

import logging
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from typing import Any

import jax
import numpy as np

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.base.forms import read_json
from deit_jax.base.storage import Place
from deit_jax.config.curves import published_curve
from deit_jax.config.resolve import TRAINING, check_same, to_dict
from deit_jax.config.schema import Config
from deit_jax.distill.teaching import open_teaching
from deit_jax.parallel import hosts
from deit_jax.run import plots
from deit_jax.run.build import Run, build, open_mesh
from deit_jax.run.checkpoint import Checkpoints, has_steps
from deit_jax.run.describe import describe_end, describe_run
from deit_jax.run.evaluate import Evaluator, json_of, report, require_readable, rows_of, teacher_note, weights_of
from deit_jax.run.failures import Failures
from deit_jax.run.interrupt import Interrupt, Interrupted, Stopped
from deit_jax.run.judged import Judged, Results, best_of
from deit_jax.run.metrics import Progress, Writer, read_rows, require_wandb
from deit_jax.run.monitor import Monitor
from deit_jax.run.rollback import Rollbacks
from deit_jax.run.stream import eval_source, train_source
from deit_jax.run.together import require_same_data, require_shared
from deit_jax.run.workdir import Workdir, own
from deit_jax.step.state import MAX_STEP, TrainState, Variables
from deit_jax.weights.meta import CorruptCheckpoint, Meta


class Unsaved(UserError):
    """The run came to its end, and its last state could not be saved; `result` is what it would have returned."""

    alike = True

    def __init__(self, error: UserError, result: dict[str, Any]):
        super().__init__(str(error))
        self.result = result


def train(config: Config, workdir: Place) -> dict[str, Any]:
    """As `train_in`, in a folder that need not exist, and that no other run has."""
    with own(workdir, first=hosts.index() == 0) as owned:
        return train_in(config, owned)


def train_in(config: Config, workdir: Workdir) -> dict[str, Any]:
    """Trains to the end of `config.total`, from the newest checkpoint in `workdir` if there is one.

    Returns:
        Of the weights that are handed on, those of the best `step`: `top1`, `top5` (percent), `loss` (nats),
        `examples`, and the same under `ema`; the step and top-1 of the `last` evaluation; and of the whole run the
        updates that were `skipped`, the `rollbacks`, and the `corrupt_images` that others stood in for.

    Raises:
        UserError: the config, the data and the workdir do not go together.
        Unsaved: the disk did not take the last checkpoint.
        TryAgain: the state is saved, where there is one: as `Interrupted`, SIGTERM or SIGINT came; else the data
            cannot be read.
    """
    with Interrupt(alone=jax.process_count() == 1) as interrupt:
        return _train(config, workdir, interrupt)


def _train(config: Config, workdir: Workdir, interrupt: Interrupt) -> dict[str, Any]:
    # 1. The devices, the data, and all that follows from them.
    if config.log.wandb:
        require_wandb()
    mesh = open_mesh(config)
    parallel.check_batch(mesh, config.batch_size, config.optim.accumulation)
    source = train_source(config)
    held_out = eval_source(config, source.class_names)
    require_shared(workdir.root, "--workdir")
    require_same_data(train_split=source, eval_split=held_out)
    run = build(config, mesh, source)
    total = run.total
    image_seconds = run.image_seconds()  # before the state takes its room

    # 2. The teacher: beside the student, recorded, or none.
    hosts.at("the teacher", compiling=True)
    teaching = open_teaching(config, source, mesh, rows=total * config.batch_size)

    # 3. The state: from where the run stopped, else from the weights to begin with, else from the seed.
    checkpoints = Checkpoints(
        workdir.checkpoints,
        aside=workdir.corrupt,
        keep=config.checkpoint.keep,
        require=workdir.require,
        before=workdir.keep,
    )
    # A run that is shortened may have jumped beyond its end.
    rollbacks = Rollbacks(workdir, total=MAX_STEP, limit=config.guard.max_rollbacks, batch_size=config.batch_size)
    meta = {"config": to_dict(config), "card": run.card.to_json(), "data": source.fingerprint, "jax": jax.__version__}
    hosts.at("the state to begin with", compiling=True)
    state, progress, notes, changes = _begin(run, workdir, checkpoints, rollbacks, meta)
    start, seed = int(state.step), np.uint32(config.seed)
    best_before = hosts.of_first(checkpoints.best_top1)
    judged = Judged(tuple(best_before) if best_before else None)
    unjudged = progress.row is not None  # the run ended before the evaluation did

    # 4. The steps, compiled over the mesh, and the batches from where the state is.
    train_step = run.train_step(teaching.logits)
    batches = run.batches(start, total, teaching.store)
    evaluator = Evaluator(config, run.predict, held_out, mesh)
    if start < total:
        require_readable(held_out, config)
    if teaching.predict and config.distillation.teacher.evaluate and start == 0:
        notes.append(teacher_note(config, teaching.predict, teaching.variables, held_out, mesh))
    describe_run(run, held_out, workdir, state, [*teaching.notes, *notes], changes)
    monitor = _monitor(run, workdir, interrupt, start, image_seconds, progress, judged, again=unjudged)
    failures = Failures(workdir, run, meta)
    unsaved: UserError | None = None

    def evaluate(step: int) -> None:
        with interrupt.at_once():  # if it is left, the run begins with it next time
            results = evaluator(weights_of(state), monitor.evaluating)
        judged.add(step, results)
        monitor.add_evaluation(rows_of(results))
        if hosts.of_first(workdir.keep):  # the row before the word that it was written
            checkpoints.judge(step, best_of(results))
        _draw_curves(run, workdir)

    def save(*, last: bool) -> None:
        hosts.at(f"saving step {state.step}")
        checkpoints.save(state, meta | monitor.progress.to_json(), last=last)

    # 5. The loop. The host is a step ahead of the device: the next batch moves there while this one is used.
    with interrupt.deferred(), closing(checkpoints), closing(monitor), closing(batches), suppress(Interrupted):
        if unjudged:
            evaluate(start)
        for step in range(start + 1, total + 1):
            try:
                hosts.at(f"the data of step {step}", compiling=step == start + 1)  # whose files nobody has opened yet
                with interrupt.at_once():
                    batch = monitor.wait_for(batches)
            except (Exception, Interrupted):  # whatever it is, the state is that of the step before
                if interrupt.alone:  # others wait in this step already, for which they have given the state away
                    monitor.settle()
                    checkpoints.finish()
                    if monitor.healthy and step - 1 > start and step - 1 not in checkpoints.steps():
                        save(last=True)
                raise
            # The second one reads the first one's metrics; and images of another size are another step.
            compiling = step <= start + 2 or run.size_at(step - 1) != run.size_at(max(step - 3, 0))
            hosts.at(f"step {step}", compiling=compiling)
            state, metrics = train_step(state, batch, seed, teaching.variables)
            monitor.add(step, metrics)
            due, stop = step % run.eval_every == 0 or step == total, interrupt.stops and step < total
            pause = due or stop or step % run.save_every == 0
            if pause:
                monitor.settle(due=due)
            failures.look(step, batch, state, monitor)
            if monitor.burst >= config.guard.max_skipped and not stop:
                monitor.settle()
                state, monitor.burst = rollbacks.roll_back(state, checkpoints, run.target), 0
            if (pause and monitor.healthy) or step == total:  # within a burst the state is none to go back to
                try:
                    save(last=stop or step == total)
                except UserError as error:
                    if not stop and step < total:
                        raise
                    unsaved = error
            if stop:
                break
            if due:
                evaluate(step)

    # 6. The end.
    hosts.at("the end of the run")
    if interrupt.stops:
        line = f"interrupted; the same command goes on from step {checkpoints.latest() or 0} of {total}"
        raise unsaved or Stopped(line)
    best, results = _best(run, checkpoints, judged, lambda of: evaluator(of, monitor.evaluating), state)
    last = judged.last or (total, hosts.of_first(lambda: checkpoints.top1(total)))
    if not judged.last:  # there was nothing left to do, but maybe this
        _draw_curves(run, workdir)
    if hosts.index() == 0:
        workdir.require()
        describe_end(workdir, best, results, last, report(results, held_out, workdir.root))
    counts = {"skipped": int(state.skipped), "rollbacks": len(rollbacks), "corrupt_images": monitor.progress.corrupt}
    told = json_of(results) | {"step": best, "last": {"step": last[0], "top1": last[1]}} | counts
    if unsaved:
        raise Unsaved(unsaved, told)
    return told


def _begin(
    run: Run, workdir: Workdir, checkpoints: Checkpoints, rollbacks: Rollbacks, meta: Meta
) -> tuple[TrainState, Progress, list[str], list[str]]:
    """The state that the run goes on from, what was counted and not yet written until it, notes on its origin, and how
    the config differs from that of before."""
    given: Variables = {}
    notes: list[str] = []
    if run.config.init_from and not has_steps(workdir.checkpoints):
        given, notes = run.given_variables()
    progress, changes, before = Progress(), [], Meta()

    def check(stored: Meta) -> None:
        nonlocal progress, changes, before
        progress, before = _progress_of(stored), stored
        changes = _check_same_run(run.config, meta, workdir, stored)

    saved = checkpoints.restore_latest(run.target, check)
    state = rollbacks.resume(saved or run.first_state(given))
    start = int(state.step)
    if saved and start >= run.total:
        _require_finished(run, before, start)
    if progress.row and (progress.row["step"] != start or hosts.of_first(lambda: checkpoints.top1(start)) is not None):
        progress.row = None  # it was written
    return state, progress, notes, changes


def _require_finished(run: Run, stored: Meta, step: int) -> None:
    """Refuses to call a run done that is shorter than the one in the workdir, or trained otherwise."""
    unit = run.config.total.unit
    mend = f"for another run take another --workdir, to train on raise config.total_{unit}"
    if step > run.total:
        raise UserError(f"config.total_{unit}: is {run.total} steps, and the run in this workdir has {step}; {mend}")
    try:
        check_same(stored["config"], run.config, [TRAINING])
    except UserError as error:
        line = str(error).partition("; ")[0]
        raise UserError(f"{line}; it is finished, at step {step}: {mend}") from error


def _best(
    run: Run,
    checkpoints: Checkpoints,
    judged: Judged,
    evaluate: Callable[[Mapping[str, Variables]], Results],
    state: TrainState,
) -> tuple[int, Results]:
    """The step whose weights are handed on, and what is said of it: evaluated again if that was before this start."""
    here = int(state.step)
    while (step := hosts.of_first(checkpoints.best)) is not None:
        if results := judged.of(step):
            return step, results
        if step == here:
            break
        hosts.at(f"step {step}, the best", compiling=True)
        if weights := checkpoints.weights(step, averaged=bool(state.ema)):
            return step, evaluate({name: parallel.place(variables, run.mesh) for name, variables in weights.items()})
    return here, judged.of(here) or evaluate(weights_of(state))


def _progress_of(stored: Meta) -> Progress:
    try:
        return Progress.from_json(stored)
    except (ValueError, TypeError, KeyError) as error:
        raise CorruptCheckpoint(f"the meta of a checkpoint is not of the form: {error}") from error


def _draw_curves(run: Run, workdir: Workdir) -> None:
    if hosts.index():
        return
    curve, path = published_curve(run.config.eval.published_curve), workdir.root / "curves.png"
    published = [(epochs * run.epoch_steps, top1) for epochs, top1 in curve.points]
    try:
        plots.save_curves(read_rows(workdir.metrics), path, published=published, label=f"published, {curve.run}")
    except Exception as error:  # a picture is not worth a run
        logging.warning("curves.png is not drawn: %s", error)


def _check_same_run(config: Config, meta: Meta, workdir: Workdir, stored: Meta) -> list[str]:
    """Refuses a checkpoint of another run; what has changed otherwise."""
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
    return changes


def _last_jax(workdir: Workdir) -> str:
    """The version that last ran here: checkpoints of old do not tell."""
    with suppress(UserError, KeyError, TypeError):
        return str(read_json(workdir.root / "run.json", dict)["versions"]["jax"])
    return "unknown"


def _monitor(
    run: Run,
    workdir: Workdir,
    interrupt: Interrupt,
    start: int,
    image_seconds: Callable[[int], float],
    progress: Progress,
    judged: Judged,
    *,
    again: bool,
) -> Monitor:
    """On the first process with a writer, elsewhere silent; `again`: the row of `start` itself is still to come."""
    writer, log = None, run.config.log
    if hosts.index() == 0:
        given = to_dict(run.config)
        writer = Writer(workdir, step=start - again, tensorboard=log.tensorboard, wandb=log.wandb, config=given)
    return Monitor(
        writer,
        parallel.Exchange(run.mesh),
        interrupt,
        start=start,
        total=run.total,
        log_every=run.log_every,
        batch_size=run.config.batch_size,
        progress=progress,
        show=log.progress,
        image_seconds=image_seconds,
        judged=judged,
    )
