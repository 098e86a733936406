"""The train step and the evaluation step: pure functions of arrays, jitted by their callers over any mesh."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8, UInt32

from deit_jax.base import rng
from deit_jax.models import bind, flatten
from deit_jax.step import erasing, mixing
from deit_jax.step.state import TrainState, Variables

Batch = dict[str, Any]
Metrics = dict[str, Array]
Rows = tuple[Array, Array, Mapping[str, Array], Array]  # see `shown`


@dataclasses.dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation of images in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(
        self, images: UInt8[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        mean, std = jnp.array(self.mean, jnp.float32), jnp.array(self.std, jnp.float32)
        return (images.astype(jnp.float32) / 255 - mean) / std

    def undo(self, images: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Images in [0, 1] again."""
        return images * jnp.array(self.std, jnp.float32) + jnp.array(self.mean, jnp.float32)


def train_step(
    state: TrainState,
    batch: Batch,
    seed: UInt32[Array, ""],
    teacher_variables: Any = None,
    *,
    optimizer: optax.GradientTransformation,
    learning_rate: Callable[[Array], Array],
    rates: Mapping[str, float],
    clip_norm: float,
    ema_decay: Callable[[Array], Any],
    **objective: Any,
) -> tuple[TrainState, Metrics]:
    """One update from one global batch.

    Args:
        batch, seed, teacher_variables, objective: as for `gradients`.
        learning_rate: of the step.
        rates: what it is multiplied by for each parameter that is trained; the others stay as they are.
        clip_norm: bound of the gradient's global norm; 0 for none.
        ema_decay: of the step: what the moving average keeps of itself.

    Returns:
        The next state, and scalar metrics. With a non-finite loss or gradient only the step and the counters advance.
    """
    value, terms, grads, stats = gradients(state, batch, seed, teacher_variables, trained=rates, **objective)
    norm = optax.tree.norm(grads)
    if clip_norm:
        grads = jax.tree.map(lambda g: g * jnp.minimum(1, clip_norm / (norm + 1e-6)), grads)
    rate = learning_rate(state.step)

    def update() -> TrainState:
        before = {path: state.params[path] for path in rates}
        updates, opt_state = optimizer.update(grads, state.opt_state, before)
        params = state.params | {path: before[path] - rate * factor * updates[path] for path, factor in rates.items()}
        latest = params | stats
        decay = ema_decay(state.step)
        ema = {path: decay * old + (1 - decay) * latest[path] for path, old in state.ema.items()}
        return dataclasses.replace(
            state, params=params, stats=stats, opt_state=opt_state, ema=ema, skipped_in_a_row=jnp.int32(0)
        )

    def skip() -> TrainState:
        return dataclasses.replace(state, skipped=state.skipped + 1, skipped_in_a_row=state.skipped_in_a_row + 1)

    state = jax.lax.cond(jnp.isfinite(value) & jnp.isfinite(norm), update, skip)
    state = dataclasses.replace(state, step=state.step + 1)
    metrics = {
        "loss": value,
        **{f"loss_{name}": term for name, term in terms.items()},
        "grad_norm": norm,
        "learning_rate": rate,
        "skipped": state.skipped,
        "skipped_in_a_row": state.skipped_in_a_row,
    }
    return state, metrics


def gradients(
    state: TrainState,
    batch: Batch,
    seed: UInt32[Array, ""],
    teacher_variables: Any = None,
    *,
    model: Any,
    normalize: Normalization,
    teacher: Callable[[Any, Array, Mapping[str, Array]], Array] | None = None,
    loss: Callable[[tuple[Array, ...], Array, Array | None], tuple[Array, Metrics]],
    trained: Iterable[str],
    frozen_backbone: bool,
    num_classes: int,
    label_smoothing: float,
    accumulation: int,
    copies: int = 1,
    gather: Callable[[Variables], Variables] = lambda params: params,
) -> tuple[Array, Metrics, Variables, Variables]:
    """What one global batch says of the parameters: the loss, its terms, the gradients, and the next statistics.

    Args:
        state: of which the step, the parameters and the statistics are read.
        batch: `image` uint8 [batch, height, width, 3], `label` int32 [batch], `place` int32 [batch], where in the batch
            each row stands that the devices hold, `mix`, what `mixing.draw` drew, as `mixing.placed` has it, `erasing`,
            what `erasing.draw` drew, if it did, and `teacher`, what was recorded of a teacher, a row an example; empty
            without one. What else is in it is not looked at.
        seed: the run's; an argument, not a constant, so that another seed needs no compilation.
        model: the abstract model that parameters are bound to; those that it has in another type are cast to it. Images
            may have another size than it takes.
        teacher: logits [batch, classes] of (`teacher_variables`, the student's images in [0, 1], what was recorded).
        loss: of (logits of each head, targets [batch, classes], the teacher's logits), with its terms by name.
        trained: paths of the parameters that the gradients are of.
        frozen_backbone: nothing below the heads is trained: it computes as in evaluation, with the stored statistics
            and without stochastic depth.
        accumulation: micro-batches that the batch is cut into; it is mixed before.
        copies: rows that each image becomes, neighbours in what `loss` gets, with a draw of stochastic depth each; more
            than 1 are for training without a teacher.
        gather: the parameters as layers use them, of those that devices hold a part of.
    """
    key = rng.key_for(jax.random.key(seed), "drop_path", state.step)
    rows = shown(batch, key, normalize, num_classes=num_classes, label_smoothing=label_smoothing)
    params = gather(typed(state.params, model))

    def loss_fn(trained: Variables, stats: Variables, rows: Any) -> tuple[Array, tuple[Variables, Metrics]]:
        bound = bind(model, params | trained | stats)
        taught = None if teacher is None else functools.partial(teacher, teacher_variables)
        value, terms = forward(
            bound,
            rows,
            normalize=normalize,
            teacher=taught,
            loss=loss,
            frozen_backbone=frozen_backbone,
            copies=copies,
        )
        return value, (flatten(bound, nnx.BatchStat), terms)

    return _accumulate(loss_fn, {path: params[path] for path in trained}, state.stats, rows, accumulation)


def shown(batch: Batch, key: Array, normalize: Normalization, *, num_classes: int, label_smoothing: float) -> Rows:
    """The student's images, its targets [batch, classes], what was recorded of a teacher, and keys of stochastic depth.

    A row an example. Its key follows from `key`, the step's, and its place in the batch, whichever device holds it.
    """
    images = student_images(batch, normalize)
    targets = mixing.mix_targets(batch["label"], batch["mix"], num_classes=num_classes, smoothing=label_smoothing)
    return images, targets, batch["teacher"], jax.vmap(jax.random.fold_in, (None, 0))(key, batch["place"])


def typed(params: Variables, model: Any) -> Variables:
    """In the model's types: of a parameter that the model has in bfloat16, so is the gradient that devices exchange."""
    types = {path: leaf.dtype for path, leaf in flatten(model, nnx.Param).items()}
    return {path: value.astype(types[path]) for path, value in params.items()}


def forward(
    bound: Any,
    rows: Rows,
    *,
    normalize: Normalization,
    teacher: Callable[[Array, Mapping[str, Array]], Array] | None,
    loss: Callable[[tuple[Array, ...], Array, Array | None], tuple[Array, Metrics]],
    frozen_backbone: bool,
    copies: int,
) -> tuple[Array, Metrics]:
    """The loss of a micro-batch and its terms, by a model that has its variables; for the arguments see `gradients`."""
    images, targets, recorded, keys = rows
    bound.set_input_size(images.shape[1:3])
    taught = None if teacher is None else teacher(normalize.undo(images), recorded)
    if copies > 1:  # neighbours, so that the copies of an image are on its device
        images, targets = (jnp.repeat(x, copies, axis=0) for x in (images, targets))
        keys = jax.vmap(lambda key: jax.random.split(key, copies))(keys).ravel()
    return loss(bound.head_logits(images, key=None if frozen_backbone else keys), targets, taught)


def student_images(batch: Batch, normalize: Normalization) -> Float[Array, "batch height width channels"]:
    """What the student sees of a training batch, normalised: what a teacher is asked about, beside it or recorded."""
    mix = batch["mix"]

    def seen(image: Array, erased: Mapping[str, Array]) -> Array:
        return erasing.erase(normalize(image), erased) if erased else normalize(image)

    own = batch["image"], batch.get("erasing", {})
    others = jax.tree.map(lambda rows: mixing.partners(rows, mix), own)
    return mixing.mix_images(seen(*own), seen(*others), mix)


def _accumulate(
    loss_fn: Callable[..., tuple[Array, tuple[Variables, Metrics]]],
    params: Variables,
    stats: Variables,
    rows: Any,
    accumulation: int,
) -> tuple[Array, Metrics, Variables, Variables]:
    """(loss, its terms, gradients, statistics): means over micro-batches, the statistics carried from one to the next.

    Args:
        rows: arrays with a row an example.
    """

    def value_and_grad(*given: Any) -> tuple[tuple[Array, tuple[Variables, Metrics]], Variables]:
        told, grads = jax.value_and_grad(loss_fn, has_aux=True)(*given)
        return told, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    if accumulation == 1:
        (value, (stats, terms)), grads = value_and_grad(params, stats, rows)
        return value, terms, grads, stats

    def add(carry: Any, micro: Any) -> tuple[Any, tuple[Array, Metrics]]:
        total_grads, stats = carry
        (value, (stats, terms)), grads = value_and_grad(params, stats, micro)
        return (jax.tree.map(jnp.add, total_grads, grads), stats), (value, terms)

    start = (jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params), stats)
    (grads, stats), values = jax.lax.scan(add, start, split(rows, accumulation))
    value, terms = jax.tree.map(lambda x: x.sum(axis=0) / accumulation, values)
    return value, terms, jax.tree.map(lambda g: g / accumulation, grads), stats


def split(rows: Any, accumulation: int) -> Any:
    """Arrays with a row an example, cut into micro-batches along a new first axis.

    Every accumulation-th row goes to the same one: no example leaves its device.
    """
    return jax.tree.map(lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), rows)


def teacher_step(
    variables: Any, batch: Batch, *, teacher: Callable[[Any, Array], Array], normalize: Normalization
) -> Float[Array, "batch classes"]:
    """The logits that a teacher gives for the images of a training batch, as `train_step` shows them to it."""
    return teacher(variables, normalize.undo(student_images(batch, normalize)))


def eval_step(variables: Any, batch: Batch, *, predict: Callable[[Any, Array], tuple[Array, ...]]) -> Metrics:
    """What evaluation needs to know of a batch, an entry an example.

    Args:
        predict: logits of every head of (`variables`, uint8 images).
        batch: `image` uint8 [batch, height, width, 3], `label` int32 [batch], and what else is known of each example.

    Returns:
        The batch without its images, and of the mean of the heads' logits `loss` float32 [batch], the cross-entropy in
        nats, `top` int32 [batch, min(5, classes)], the best classes, best first, and `probability` float32 [batch] of
        the best; `heads` int32 [heads, batch], the class that each head alone says.
    """
    heads = jnp.stack(predict(variables, batch["image"]))
    log_probs = jax.nn.log_softmax(jnp.mean(heads, axis=0))
    return {
        **{name: value for name, value in batch.items() if name != "image"},
        "loss": -jnp.take_along_axis(log_probs, batch["label"][:, None], axis=-1)[:, 0],
        "top": jax.lax.top_k(log_probs, min(5, log_probs.shape[-1]))[1],
        "probability": jnp.exp(jnp.max(log_probs, axis=-1)),
        "heads": jnp.argmax(heads, axis=-1),
    }
