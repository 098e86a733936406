"""A training step that was not finite, run again by itself: what is the first in it not to be."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.base.storage import Place
from deit_jax.config.resolve import SHAPE, STREAM, check_same, for_platform
from deit_jax.config.schema import Config
from deit_jax.data.memory import MemorySource
from deit_jax.distill.teaching import Teaching, from_recorded, open_teaching
from deit_jax.parallel import hosts
from deit_jax.run.build import Run, build, open_mesh
from deit_jax.run.failures import Failure, kept_steps, listed, read_failure
from deit_jax.run.faults import first_fault
from deit_jax.run.layers import OWN, Fault
from deit_jax.run.workdir import Workdir
from deit_jax.step.state import TrainState
from deit_jax.step.step import Batch, gradients
from deit_jax.weights.meta import CorruptCheckpoint

MOST_NAMED = 16  # examples


def replay(config: Config, root: Place, step: int | None, platform: str) -> dict[str, Any]:
    """Runs a kept step of the workdir `root` again, and prints what in it is not finite first.

    The step is computed as in training, then once more layer by layer. Neither the data nor a recording of a teacher
    is opened: what the step was given is kept. A teacher that ran beside the student has to be at hand.

    Args:
        config: resolved, not yet for a platform: a type that it leaves open is the run's.
        step: as in `metrics.jsonl`; None: not said.
        platform: where JAX runs.

    Returns:
        `step`, `loss` and `grad_norm`, whether they are `finite`, `updates_since` (see `run.failures`), and what is the
        `first` not to be: `images`, `targets`, `teacher`, a layer by its path, `loss` or one of its terms, `gradient of
        PATH` or `grad_norm`, None where there is none; of that the `largest_input` and `largest_parameter` (by
        magnitude), the `rows` of the batch in which it is not finite, and the first `examples` of these.

    Raises:
        UserError: the step is not kept, or the config is not the run's.
    """
    workdir = Workdir(root)
    if jax.process_count() > 1:
        raise UserError("--mode=replay: runs on one process; start one alone")
    if step is None:
        raise UserError(
            f"--step: missing, which of those in {workdir.failures}; {listed(kept_steps(workdir.failures))}"
        )
    hosts.at(f"what is kept of step {step}", compiling=True)
    try:
        failure = read_failure(workdir.failures, step)
        run, teaching = _open(config, failure, platform)
        state = failure.weights.restore(step - 1, dataclasses.replace(run.target, opt_state=(), ema={}))
    except CorruptCheckpoint as error:
        raise UserError(f"{error}; bring it back from a copy") from error
    size = config.batch_size
    batch: Batch = {
        name: parallel.put_replicated(part, run.mesh)
        if name == "mix"
        else jax.tree.map(lambda rows: parallel.put_batch({"": rows}, run.mesh, size)[""], part)
        for name, part in failure.batch.items()
    }
    hosts.at(f"step {step} again", compiling=True)
    loss, norm, magnitudes = _computed(run, teaching, state, batch)
    fault = None
    if not (np.isfinite(loss) and np.isfinite(norm)):
        hosts.at(f"step {step} layer by layer", compiling=True)
        fault = first_fault(run, teaching, state, batch, magnitudes if np.isfinite(loss) else {})
    result = {
        "step": step,
        "loss": float(loss),
        "grad_norm": float(norm),
        "finite": bool(np.isfinite(loss) and np.isfinite(norm)),
        "updates_since": failure.updates_since,
        **_described(fault, failure),
    }
    _report(result)
    return result


def _open(config: Config, failure: Failure, platform: str) -> tuple[Run, Teaching]:
    """The run that the step was of, and its teacher; the data stay closed."""
    stored = failure.meta["config"]
    if config.model.dtype == "auto":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=stored["model"]["dtype"]))
    config = for_platform(config, platform)
    for change in check_same(stored, config, [STREAM, SHAPE]):
        print(f"differs from the run: {change}")
    mesh = open_mesh(config)
    parallel.check_batch(mesh, config.batch_size, config.optim.accumulation)
    # As many examples, and the same classes: that is what a run asks of its data before the first batch.
    blank = np.zeros((failure.split, 1, 1), np.uint8)
    source = MemorySource(blank, np.zeros(failure.split, np.int32), failure.meta["card"]["class_names"])
    run = build(config, mesh, source)
    if config.distillation.store:
        return run, Teaching(from_recorded(len(source.class_names)))
    return run, open_teaching(config, source, mesh, rows=0)


def _computed(
    run: Run, teaching: Teaching, state: TrainState, batch: Batch
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """The loss, the gradient's norm, and the largest magnitude in the gradient of each parameter, as in training."""

    def step(state: TrainState, batch: Batch, seed: Array, variables: Any) -> tuple[Array, Array, dict[str, Array]]:
        objective = run.objective(teaching.logits)
        loss, _, grads, _ = gradients(state, batch, seed, variables, trained=run.rates, **objective)
        return loss, optax.tree.norm(grads), {path: jnp.abs(g).max() for path, g in grads.items()}

    jitted = jax.jit(step, out_shardings=parallel.replicated(run.mesh))
    return jax.device_get(jitted(state, batch, np.uint32(run.config.seed), teaching.variables))


def _described(fault: Fault | None, failure: Failure) -> dict[str, Any]:
    """The part of the result that is about the fault."""
    if fault is None:
        return {"first": None}
    rows = [] if fault.rows is None else np.flatnonzero(fault.rows).tolist()
    return {
        "first": fault.first,
        "largest_input": fault.largest_input,
        "largest_parameter": fault.largest_parameter,
        "rows": rows,
        "examples": [_example(failure, row) for row in rows[:MOST_NAMED]],
    }


def _example(failure: Failure, row: int) -> dict[str, Any]:
    """What is in a row of the batch, and the row that it is mixed with, if it is."""
    mix, batch = failure.batch["mix"], len(failure.names)
    groups = len(mix["box"])
    weight = np.broadcast_to(mix["label_weight"].reshape(groups, -1), (groups, batch // groups)).ravel()[row]
    partner = np.arange(batch).reshape(groups, -1)[:, ::-1].ravel()[row]
    mixed = {} if weight == 1 else {"mixed_with": int(partner)}
    return {"row": row, "example": failure.examples[row], "name": failure.names[row], **mixed}


def _report(result: Mapping[str, Any]) -> None:
    since = "; the parameters are those of one update later" if result["updates_since"] else ""
    lines = {
        "step": f"{result['step']}{since}",
        "loss": f"{result['loss']:.6g}",
        "gradient norm": f"{result['grad_norm']:.6g}",
    }
    if result["first"]:
        parameter = result["largest_parameter"]
        own = "" if parameter is None else f", its parameters are at most {parameter:.3g}"
        what = f"the {OWN} itself, between its layers" if result["first"] == OWN else result["first"]
        lines["not finite"] = f"{what}, before all else; its input is at most {result['largest_input']:.3g}{own}"
        lines["examples"] = f"in {len(result['rows'])} rows of the batch"
        for example in result["examples"]:
            mixed = f", mixed with row {example['mixed_with']}" if "mixed_with" in example else ""
            lines[f"  row {example['row']}"] = f"{example['name']}{mixed}"
    elif not result["finite"]:
        lines["not finite"] = "nothing, layer by layer; only the compiled step as a whole"
    print("\n".join(f"{name:15}{value}" for name, value in lines.items()), flush=True)
