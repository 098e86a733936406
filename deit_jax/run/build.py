"""A run is built once: from the resolved config, the mesh and the data to the parts that all else puts together."""

import dataclasses
import functools
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.base.rules import first_match
from deit_jax.config import schema
from deit_jax.config.schema import Config
from deit_jax.data import Source, examples_per_epoch
from deit_jax.distill import Store
from deit_jax.models import (
    Keys,
    VisionTransformer,
    bind,
    create_model,
    flatten,
    forward_flops,
    retype,
    training_flops,
)
from deit_jax.parallel import hosts
from deit_jax.run.learning import Loss, optimizer_of, rates_of, schedule_of, training_loss
from deit_jax.run.network import card_of, model_arguments, model_of
from deit_jax.run.stream import device_batches, image_sizes
from deit_jax.step import optim
from deit_jax.step.state import MAX_STEP, TrainState, Variables, init_state
from deit_jax.step.step import Batch, Normalization, train_step
from deit_jax.weights import Card, Weights, adapt, read_weights

LEAST_APART = 10  # steps between evaluations, and checkpoints, that are so many epochs apart


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The parts of a run, each made once; functions are not yet jitted where nothing else is said.

    Attributes:
        config: as it was resolved.
        mesh: of the devices.
        source: the split that is trained on; where nothing is trained, the one that is evaluated.
        model: the abstract model.
        normalize: from uint8 images to the model's input.
        card: what the run's weights say of themselves.
        loss: of (logits of each head, targets, the teacher's logits), with its weighted terms.
        optimizer: without the learning rate.
        rates: what the learning rate is multiplied by for each parameter that is trained.
        learning_rate: of the step.
        total, warmup, log_every, eval_every, save_every: lengths in steps.
        epoch_steps: steps an epoch; a fraction where fewer examples than a batch are one.
        unmixed_from: the first step whose images are not mixed; None: all are.
        sizes: (first step, side of the training images in pixels) of each stage, in order.
        fresh: `seed -> variables` of a model that has learnt nothing.
        predict: `variables, uint8 images -> logits of each head`.
        target: shapes and shardings of the state.
    """

    config: Config
    mesh: Mesh
    source: Source
    model: Any
    normalize: Normalization
    card: Card
    loss: Loss
    optimizer: optax.GradientTransformation
    rates: dict[str, float]
    learning_rate: Callable[[Array], Array]
    total: int
    warmup: int
    log_every: int
    eval_every: int
    save_every: int
    epoch_steps: float
    unmixed_from: int | None
    sizes: list[tuple[int, int]]
    fresh: Callable[[Array], Variables]
    predict: Callable[[Variables, Array], tuple[Array, ...]]
    target: TrainState

    @property
    def shardings(self) -> TrainState:
        """Of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.target)

    @property
    def copies(self) -> int:
        """Of each image in a training step."""
        return 2 if self.config.cosub.weight else 1

    def size_at(self, step: int) -> int:
        """Side in pixels of the images that a step trains on."""
        return [size for first, size in self.sizes if first <= step][-1]

    def first_state(self, given: Variables | None = None) -> TrainState:
        """The state before the first step, on the mesh; the variables that are `given` are not drawn.

        Raises:
            UserError: the devices have no room for it.
        """
        rows = parallel.local_rows(self.mesh, self.config.batch_size)
        largest = max(size for _, size in self.sizes)
        parallel.require_room(self.target, (rows.stop - rows.start) * 3 * largest**2)

        def first(seed: Array, given: Variables) -> TrainState:
            drawn = {} if given.keys() == flatten(self.model).keys() else self.fresh(seed)
            return _state_of(drawn | given, self.model, self.optimizer, self.rates, self.config.ema.decay > 0)

        return jax.jit(first, out_shardings=self.shardings)(np.uint32(self.config.seed), given or {})

    def train_step(
        self, teacher: Callable[..., Array] | None = None
    ) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
        """The jitted `state, batch, seed, the teacher's variables -> next state, metrics`, which donates the state."""
        config = self.config
        step = functools.partial(
            train_step,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            rates=self.rates,
            clip_norm=config.optim.clip_norm,
            ema_decay=functools.partial(optim.ema_decay, decay=config.ema.decay, warmup=config.ema.warmup),
            **self.objective(teacher),
        )
        return self.jit_step(step)

    def objective(self, teacher: Callable[..., Array] | None = None) -> dict[str, Any]:
        """What a step minimises: the arguments of `step.gradients` but for what is trained."""
        return {
            "model": self._exchanging(),
            "normalize": self.normalize,
            "teacher": teacher,
            "loss": self.loss,
            "frozen_backbone": self.config.optim.trainable == "head",
            "num_classes": len(self.source.class_names),
            "label_smoothing": self.config.mixing.label_smoothing,
            "accumulation": self.config.optim.accumulation,
            "copies": self.copies,
            "gather": functools.partial(parallel.gathered, mesh=self.mesh),
        }

    def _exchanging(self) -> Any:
        """The model with those parameters in `optim.gradient_dtype` whose gradients are so exchanged."""
        dtype = self.config.optim.gradient_dtype
        if dtype == "float32" or self.config.model.dtype == "float32":
            return self.model
        return retype(self.model, {p: dtype for p in self.rates if first_match(optim.EXCHANGE_RULES, p)})

    def jit_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the state and more to (next state, scalars), jitted over the mesh; it donates the state."""
        return jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, parallel.replicated(self.mesh)))

    def given_variables(self) -> tuple[Variables, list[str]]:
        """The variables of `config.init_from`, and how they differ from what is stored, in words.

        Raises:
            UserError: the weights cannot be read, or are those of another network.
        """

        def drawn(paths: Sequence[str]) -> Variables:
            def some(seed: Array) -> Variables:
                variables = self.fresh(seed)
                return {path: variables[path] for path in paths}

            return jax.jit(some)(np.uint32(self.config.seed))

        return self.fit(read_init(self.config), drawn)

    def fit(self, weights: Weights, fresh: Callable[[Sequence[str]], Variables]) -> tuple[Variables, list[str]]:
        """The weights fitted to the model, see `adapt`; also tells where they expect other images."""
        origin, data = self.config.init_from, self.config.data
        try:
            variables, notes = adapt(weights, self.model, fresh=fresh, class_names=self.source.class_names)
        except UserError as error:
            raise UserError(f"config.init_from: {origin}: {error}") from error
        expected = weights.card.preprocessing
        for name in ("mean", "std"):
            if expected and getattr(expected, name) != getattr(data, name):
                notes.append(f"they were trained with data.{name}={getattr(expected, name)}, which the config changes")
        return variables, notes

    def image_seconds(self) -> Callable[[int], float]:
        """What the model's part in training on one image of a step would take at the speed of large matrix products.

        Images per second times this is the model-FLOPs utilisation. 0 where `log.utilisation` does not ask for it. The
        products take a moment, on all processes.
        """
        wanted, on_cpu = self.config.log.utilisation, jax.default_backend() == "cpu"
        if wanted == "off" or (wanted == "auto" and on_cpu):
            return lambda step: 0.0
        peak = parallel.matmul_peak(self.mesh, self.config.model.dtype)()
        seconds = {size: self.flops_per_image(size) / peak for _, size in self.sizes}
        return lambda step: seconds[self.size_at(step)]

    def flops_per_image(self, size: int) -> int:
        """The model's part in training on one image of so many pixels a side, in floating-point operations."""
        count = forward_flops if self.config.optim.trainable == "head" else training_flops
        return self.copies * count(self.model, (size, size))

    def batches(self, start: int, stop: int, store: Store | None = None) -> Generator[tuple[Batch, int], None, None]:
        """See `device_batches`."""
        mixed = self.unmixed_from
        return device_batches(self.config, self.mesh, self.source, start, stop, store, unmixed_from=mixed)


def build(config: Config, mesh: Mesh, source: Source) -> Run:
    """The run that a config describes.

    Args:
        config: resolved, for the platform that it runs on.
        source: the split to train on; where nothing is trained, the one to evaluate.

    Raises:
        UserError: fields of the config contradict each other, or the data.
    """
    arguments = model_arguments(config, len(source.class_names))
    model = model_of(config, arguments)
    if isinstance(model, VisionTransformer):
        parallel.check_heads(mesh, model.blocks[0].attn.heads)
    rates = rates_of(config, model)
    epoch_steps = examples_per_epoch(len(source), config.batch_size, config.data.repeats) / config.batch_size

    def in_steps(duration: schema.Duration) -> int:
        return duration.in_steps(config.batch_size, epoch_steps)

    def apart(duration: schema.Duration) -> int:
        # An epoch of a small data set takes less time than to evaluate or to save.
        return max(in_steps(duration), LEAST_APART if duration.unit == "epochs" else 1)

    total, warmup = in_steps(config.total), in_steps(config.optim.warmup)
    if total > MAX_STEP:
        raise UserError(
            f"config.total_{config.total.unit}: {total:,} steps are more than the {MAX_STEP:,} that are counted; "
            f"shorten it"
        )
    smoothed = config.mixing.label_smoothing / len(source.class_names)
    if config.loss.kind == "binary_cross_entropy" and config.loss.binarize and 0 < config.loss.threshold <= smoothed:
        raise UserError(
            f"config.loss.threshold: is {config.loss.threshold}, and mixing.label_smoothing gives each class "
            f"{smoothed:g}, so that all would count as present; set it higher"
        )
    optimizer = optimizer_of(config, rates)
    normalize = Normalization(config.data.mean, config.data.std)
    state = jax.eval_shape(
        lambda variables: _state_of(variables, model, optimizer, rates, config.ema.decay > 0), flatten(model)
    )
    return Run(
        config=config,
        mesh=mesh,
        source=source,
        model=model,
        normalize=normalize,
        card=card_of(config, source.class_names),
        loss=training_loss(config.loss, config.distillation, config.cosub),
        optimizer=optimizer,
        rates=rates,
        learning_rate=schedule_of(config, in_steps, epoch_steps=max(1, int(epoch_steps))),
        total=total,
        warmup=warmup,
        log_every=in_steps(config.log.every),
        eval_every=apart(config.eval.every),
        save_every=apart(config.checkpoint.every),
        epoch_steps=epoch_steps,
        unmixed_from=in_steps(config.mixing.off) or None,
        sizes=image_sizes(config, source),
        fresh=lambda seed: flatten(create_model(config.model.name, rngs=Keys(jax.random.key(seed)), **arguments)),
        predict=lambda variables, images: bind(model, variables).head_logits(normalize(images)),
        target=parallel.targets(state, mesh),
    )


def open_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `devices` (default: all there are); `UserError` where they do not make it."""
    if devices is None:
        # Else a step computes what it should, and what JAX and Orbax gather from the hosts, as in saving, fails.
        mend = "see what ails the one, or leave it out"
        hosts.require_same({"the number of devices": jax.local_device_count()}, mend=mend)
    mesh = config.mesh
    return parallel.make_mesh(mesh.data, mesh.fsdp, mesh.tensor, mesh.slices, devices=devices)


def read_init(config: Config) -> Weights:
    """The weights of `config.init_from`, the same in all processes."""
    try:
        weights = read_weights(config.init_from, model=config.model.name)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error
    hosts.require_equal("the weights of config.init_from", weights.variables)
    return weights


def _state_of(
    variables: Variables, model: Any, optimizer: optax.GradientTransformation, trained: Iterable[str], keep_ema: bool
) -> TrainState:
    """The state before the first step of a model with these variables, of whose parameters some are `trained`."""
    params = {path: variables[path] for path in flatten(model, nnx.Param)}
    stats = {path: variables[path] for path in flatten(model, nnx.BatchStat)}
    return init_state(params, stats, optimizer.init({path: params[path] for path in trained}), keep_ema=keep_ema)
