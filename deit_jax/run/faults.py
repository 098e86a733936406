"""What is the first in a training step not to be finite, from its images to its gradients."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from deit_jax.base import rng
from deit_jax.distill.teaching import Teaching
from deit_jax.models import bind
from deit_jax.run.build import Run
from deit_jax.run.layers import Fault, Watch, bad_rows
from deit_jax.step.state import TrainState
from deit_jax.step.step import Batch, Rows, forward, shown, split, typed


def first_fault(
    run: Run, teaching: Teaching, state: TrainState, batch: Batch, magnitudes: Mapping[str, np.ndarray]
) -> Fault | None:
    """The first in the order of a step; None where layer by layer, uncompiled, all is finite.

    The layers are called by `step.forward`, as in training, with the same keys: only that they, the teacher and the
    loss are watched.

    Args:
        state: before the step.
        magnitudes: the largest in the gradient of each parameter; empty where the loss is not finite.
    """
    watch, objective = Watch(), run.objective()
    names = ("normalize", "num_classes", "label_smoothing")
    key = rng.key_for(jax.random.key(run.config.seed), "drop_path", state.step)
    rows = jax.jit(functools.partial(shown, **{name: objective[name] for name in names}))(batch, key)
    watch.stage("images", (), rows[0])
    watch.stage("targets", (), rows[1])
    ask: Callable[..., tuple[Array, dict[str, Array]]] = functools.partial(
        forward, normalize=run.normalize, frozen_backbone=objective["frozen_backbone"], copies=run.copies
    )
    fresh = functools.partial(bind, objective["model"], typed(state.params, objective["model"]) | state.stats)
    if watch.fault:
        return watch.fault
    for part, micro in _micro_batches(run, rows):
        model = fresh()
        model.remat = False  # which is for the backward pass
        with jax.disable_jit():  # in which no layer could be looked at
            watched = watch.over(model, micro[0])
            ask(watched, micro, teacher=_teacher(watch, teaching), loss=_loss(watch, run))
        if watch.fault:
            return watch.fault.among(part, len(rows[0]))
    if not magnitudes:
        return None
    bad = np.zeros(len(rows[0]), bool)
    for part, micro in _micro_batches(run, rows):
        bad[part] = _ends_badly(functools.partial(ask, teacher=_plain(teaching), loss=run.loss), fresh, micro)
    return _gradient_fault(watch.order, state, magnitudes, bad)


def _micro_batches(run: Run, rows: Rows) -> Iterator[tuple[slice, Rows]]:
    """Which rows of the batch each micro-batch has, and these."""
    count = run.config.optim.accumulation
    cut = split(rows, count)
    for i in range(count):
        yield slice(i, None, count), jax.tree.map(lambda x, i=i: x[i], cut)


def _plain(teaching: Teaching) -> Callable[..., Array] | None:
    return functools.partial(teaching.logits, teaching.variables) if teaching.logits else None


def _teacher(watch: Watch, teaching: Teaching) -> Callable[..., Array] | None:
    """The teacher, compiled, and watched."""
    plain = _plain(teaching)
    if plain is None:
        return None

    def teacher(images: Array, recorded: Mapping[str, Array]) -> Array:
        with jax.disable_jit(False):
            said = jax.jit(plain)(images, recorded)
        watch.stage("teacher", images, jnp.where(said == -jnp.inf, 0, said))  # it may exclude a class
        return said

    return teacher


def _loss(watch: Watch, run: Run) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The training loss, watched."""

    def loss(logits: tuple[Array, ...], targets: Array, taught: Array | None) -> tuple[Array, dict[str, Array]]:
        value, terms = run.loss(logits, targets, taught)
        # Of each image by itself, its copies together.
        images = jax.tree.map(lambda x: x.reshape(-1, run.copies, *x.shape[1:]), (logits, targets, taught))
        each = jax.vmap(lambda *given: run.loss(*given)[0])(*images)
        for name, term in {**{f"loss_{name}": term for name, term in terms.items()}, "loss": value}.items():
            watch.stage(name, logits, term, rows=np.asarray(~jnp.isfinite(each)))
        return value, terms

    return loss


def _ends_badly(ask: Callable[..., Any], fresh: Callable[[], Any], micro: Rows) -> np.ndarray | bool:
    """bool [rows], whose gradient, when it has come down to the image, is not finite; False: of all it is."""

    def loss(images: Array) -> Array:
        return ask(fresh(), (images, *micro[1:]))[0]

    bad = bad_rows(jax.jit(jax.grad(loss))(micro[0]))
    return False if bad is None else bad


def _gradient_fault(
    order: Iterable[str], state: TrainState, magnitudes: Mapping[str, np.ndarray], rows: np.ndarray
) -> Fault:
    """The first gradient that is not finite, from the layer that was called last to the first.

    Args:
        order: paths of the layers called.
        magnitudes: the largest in the gradient of each parameter.
        rows: see `Fault`.
    """
    called = {path: place for place, path in enumerate(order)}

    def place(path: str) -> int:
        above = [".".join(path.split(".")[:length]) for length in range(path.count("."), 0, -1)]
        return next((called[layer] for layer in above if layer in called), -1)

    into = 0.0
    for path in sorted(magnitudes, key=place, reverse=True):
        if not np.isfinite(magnitudes[path]):
            return Fault(f"gradient of {path}", into, float(jnp.abs(state.params[path]).max()), rows)
        into = max(into, float(magnitudes[path]))
    return Fault("grad_norm", into)  # whose squares add up to more than float32 holds
