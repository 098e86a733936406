"""A run is built once: from the resolved config, the mesh and the data to the parts that all else puts together."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
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
from deit_jax.data import Source, TrainTransform, examples_per_epoch, open_source, train_batches
from deit_jax.distill import Store
from deit_jax.models import (
    Keys,
    Preprocessing,
    VisionTransformer,
    abstract_model,
    bind,
    create_model,
    entry,
    flatten,
    forward_flops,
    retype,
    training_flops,
)
from deit_jax.step import losses, mixing, optim
from deit_jax.step.state import TrainState, Variables, init_state
from deit_jax.step.step import Batch, Normalization, train_step
from deit_jax.weights import Card, Weights, adapt, read_weights

MAX_STEPS = 2**31 - 1  # the state's counter is int32
Loss = Callable[[tuple[Array, ...], Array, Array | None], tuple[Array, dict[str, Array]]]


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
    fresh: Callable[[Array], Variables]
    predict: Callable[[Variables, Array], tuple[Array, ...]]
    target: TrainState

    @property
    def shardings(self) -> TrainState:
        """Of the state."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.target)

    def first_state(self, given: Variables | None = None) -> TrainState:
        """The state before the first step, on the mesh; the variables that are `given` are not drawn.

        Raises:
            UserError: the devices have no room for it.
        """
        rows = parallel.local_rows(self.mesh, self.config.batch_size)
        parallel.require_room(self.target, (rows.stop - rows.start) * 3 * self.config.data.image_size**2)

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
            model=self._exchanging(),
            normalize=self.normalize,
            teacher=teacher,
            loss=self.loss,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            rates=self.rates,
            frozen_backbone=config.optim.trainable == "head",
            num_classes=len(self.source.class_names),
            label_smoothing=config.mixing.label_smoothing,
            accumulation=config.optim.accumulation,
            clip_norm=config.optim.clip_norm,
            ema_decay=functools.partial(optim.ema_decay, decay=config.ema.decay, warmup=config.ema.warmup),
        )
        return self.jit_step(step)

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

    def image_seconds(self) -> float:
        """What the model's part in training on one image would take at the speed of large matrix products.

        Images per second times this is the model-FLOPs utilisation. 0 where `log.utilisation` does not ask for it, or
        nobody counts the network's operations. The products take a moment, on all processes.

        Raises:
            UserError: it is asked for, of a network whose operations nobody counts.
        """
        wanted, on_cpu = self.config.log.utilisation, jax.default_backend() == "cpu"
        counted = isinstance(self.model, VisionTransformer)
        if wanted == "on" and not counted:
            raise UserError(
                f"config.log.utilisation: the operations of Transformers alone are counted, not those of "
                f"{self.config.model.name}; set it to off"
            )
        if wanted == "off" or not counted or (wanted == "auto" and on_cpu):
            return 0.0
        count = forward_flops if self.config.optim.trainable == "head" else training_flops
        return count(self.model) / parallel.matmul_peak(self.mesh, self.config.model.dtype)()

    def batches(self, start: int, stop: int, store: Store | None = None) -> Generator[tuple[Batch, int], None, None]:
        """The device batches of the steps from `start` to `stop`, each with how many of its images were corrupt.

        Args:
            store: what a teacher said of them, if that was recorded.

        Raises:
            UserError: more images than `data.max_corrupt` allows could not be decoded.
        """
        config, mesh, batch_size = self.config, self.mesh, self.config.batch_size
        rows = parallel.local_rows(mesh, batch_size)
        draw = functools.partial(
            mixing.draw,
            config.seed,
            groups=mixing_groups(config),
            image_size=config.data.image_size,
            mixup=config.mixing.mixup,
            cutmix=config.mixing.cutmix,
            probability=config.mixing.probability,
            switch_probability=config.mixing.switch_probability,
        )
        corrupt, allowed = 0, config.data.max_corrupt
        hosts = stream(config, self.source, rows, first_step=start, total_steps=stop)
        for step, host in enumerate(hosts, start):
            replaced = int(host.pop("replaced").sum())
            corrupt += replaced
            # Of an epoch at least, so that one bad file among many does not stop the run by coming early.
            seen = max((step + 1 - start) * (rows.stop - rows.start), len(self.source) // jax.process_count())
            if corrupt > allowed * seen:
                raise UserError(
                    f"config.data.max_corrupt: {corrupt} of {seen} images could not be decoded, {allowed:.2%} are "
                    f"allowed; mend the files that the log names, or raise it"
                )
            examples, first = host.pop("index"), step * batch_size
            taught = store.read(slice(first + rows.start, first + rows.stop), examples) if store else {}
            device: Batch = {
                **parallel.put_batch(host, mesh),
                "mix": parallel.put_replicated(draw(step), mesh),
                "teacher": parallel.put_batch(taught, mesh),
            }
            yield device, replaced


def build(config: Config, mesh: Mesh, source: Source) -> Run:
    """The run that a config describes.

    Args:
        config: resolved, for the platform that it runs on.
        source: the split to train on; where nothing is trained, the one to evaluate.

    Raises:
        UserError: fields of the config contradict each other, or the data.
    """
    classes = len(source.class_names)
    arguments = _model_arguments(config, classes)
    model = _model(config, arguments)
    rates = _rates(config, model)
    epoch = examples_per_epoch(len(source), config.batch_size, config.data.repeats)

    def in_steps(duration: schema.Duration) -> int:
        return duration.in_steps(config.batch_size, epoch / config.batch_size)

    total, warmup = in_steps(config.total), in_steps(config.optim.warmup)
    if total > MAX_STEPS:
        raise UserError(
            f"config.total_epochs: {total:,} steps are more than the {MAX_STEPS:,} that are counted; shorten"
        )
    optimizer = optim.adamw(
        rates,
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
    )
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
        card=_card(config, source.class_names),
        loss=training_loss(config.loss, config.distillation),
        optimizer=optimizer,
        rates=rates,
        learning_rate=functools.partial(
            optim.learning_rate,
            peak=peak_learning_rate(config),
            start=config.optim.warmup_learning_rate,
            floor=config.optim.min_learning_rate,
            total=total,
            warmup=warmup,
            epoch_steps=max(1, epoch // config.batch_size) if config.optim.schedule_per_epoch else None,
        ),
        total=total,
        warmup=warmup,
        log_every=in_steps(config.log.every),
        eval_every=in_steps(config.eval.every),
        save_every=in_steps(config.checkpoint.every),
        fresh=lambda seed: flatten(create_model(config.model.name, rngs=Keys(jax.random.key(seed)), **arguments)),
        predict=lambda variables, images: bind(model, variables).head_logits(normalize(images)),
        target=parallel.targets(state, mesh),
    )


def open_mesh(config: Config) -> Mesh:
    """The device mesh; `UserError` where the devices do not make it."""
    return parallel.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)


def train_source(config: Config) -> Source:
    """The training split; `UserError` where it has one class alone, or not as many as the model was told to have."""
    data = config.data
    source = open_source(name=data.name, directory=data.dir, split=data.train_split, field="config.data.train_split")
    classes = len(source.class_names)
    if classes < 2:
        raise UserError(
            f"config.data.train_split: all {len(source)} photos, such as {source.name(0)}, are of one class, "
            f"{source.class_names[0]!r}, and there is nothing to tell apart; add another class"
        )
    if config.model.num_classes not in (-1, classes):
        raise UserError(
            f"config.model.num_classes: is {config.model.num_classes}, the data has {classes} classes; "
            f"set --config.model.num_classes=-1 to take the data's"
        )
    return source


def eval_source(config: Config, class_names: tuple[str, ...] | None) -> Source:
    """The evaluation split, its labels counted by `class_names` (None: by its own)."""
    data = config.data
    return open_source(
        name=data.name,
        directory=data.dir,
        split=data.eval_split,
        class_names=class_names,
        field="config.data.eval_split",
    )


def read_init(config: Config) -> Weights:
    """The weights of `config.init_from`."""
    try:
        return read_weights(config.init_from, model=config.model.name)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error


def stream(
    config: Config, source: Source, rows: slice, *, first_step: int, total_steps: int
) -> Iterator[dict[str, np.ndarray]]:
    """The training batches of a config on the host, see `train_batches`."""
    return train_batches(
        source,
        seed=config.seed,
        batch_size=config.batch_size,
        rows=rows,
        first_step=first_step,
        total_steps=total_steps,
        transform=train_transform(config.data),
        repeats=config.data.repeats,
        groups=mixing_groups(config),
        exif=config.data.exif,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )


def train_transform(data: schema.Data) -> TrainTransform:
    """What the training images of a config go through."""
    return TrainTransform(
        image_size=data.image_size,
        crop=data.crop,
        crop_scale=data.crop_scale,
        crop_aspect=data.crop_aspect,
        interpolation=data.interpolation,
        flip=data.flip,
        augment=data.augment,
        color_jitter=data.color_jitter,
    )


def mixing_groups(config: Config) -> int:
    """In how many groups a batch mixes: a group is never wider than it."""
    return config.batch_size // min(config.mixing.group, config.batch_size)


def peak_learning_rate(config: Config) -> float:
    """The learning rate after warm-up: linear in the batch size (arXiv:2012.12877, section 6)."""
    return config.optim.learning_rate * config.batch_size / 512


def training_loss(loss: schema.Loss, distillation: schema.Distillation) -> Loss:
    """The training loss of (logits of each head, targets, the teacher's logits), and its weighted terms.

    Without distillation it is that of the mean of the heads, which is what predicts.
    """
    criteria: dict[str, Callable[[Array, Array], Array]] = {
        "cross_entropy": losses.cross_entropy,
        "binary_cross_entropy": functools.partial(losses.binary_cross_entropy, binarize=loss.binarize),
    }
    criterion = criteria[loss.kind]
    if distillation.kind == "none":
        return lambda logits, targets, taught: (criterion(jnp.mean(jnp.stack(logits), axis=0), targets), {})
    settings = {name: getattr(distillation, name) for name in ("kind", "alpha", "tau", "kl_reduction")}
    return lambda logits, targets, taught: losses.distillation_loss(
        cls_logits=logits[0],
        dist_logits=logits[1] if distillation.token else None,
        targets=targets,
        teacher_logits=taught,
        base=criterion,
        **settings,
    )


def _state_of(
    variables: Variables, model: Any, optimizer: optax.GradientTransformation, trained: Iterable[str], keep_ema: bool
) -> TrainState:
    """The state before the first step of a model with these variables, of whose parameters some are `trained`."""
    params = {path: variables[path] for path in flatten(model, nnx.Param)}
    stats = {path: variables[path] for path in flatten(model, nnx.BatchStat)}
    return init_state(params, stats, optimizer.init({path: params[path] for path in trained}), keep_ema=keep_ema)


def _model_arguments(config: Config, num_classes: int) -> dict[str, Any]:
    """Keyword arguments of `create_model`; what the config leaves open stays as the named model has it.

    Raises:
        UserError: the network has nothing of the kind that a field of `config.model` asks for.
    """
    takes = inspect.signature(entry(config.model.name).build.__init__).parameters
    wanted = _network_arguments(config, num_classes) | {"dtype": config.model.dtype}
    for name, nothing in (("drop_path", 0.0), ("remat", False)):
        if name in takes or getattr(config.model, name) != nothing:
            wanted[name] = getattr(config.model, name)
    if "attention" in takes:
        wanted["attention"] = config.model.attention
    for name in wanted:
        if name not in takes:
            off = "nothing" if isinstance(wanted[name], str) else "False" if name == "remat" else "0"
            raise UserError(f"config.model.{name}: {config.model.name} has none; set it to {off}")
    return wanted


def _network_arguments(config: Config, num_classes: int) -> dict[str, Any]:
    """Those of `_model_arguments` that decide which function the weights compute."""
    own = ("patch_size", "width", "depth", "heads", "global_pool", "stem")
    chosen = {name: getattr(config.model, name) for name in own if getattr(config.model, name)}
    return {"image_size": config.data.image_size, "num_classes": num_classes, **chosen}


def _model(config: Config, arguments: dict[str, Any]) -> Any:
    """The abstract model; a contradiction among its settings is a `UserError`."""
    name, token = config.model.name, config.distillation.token
    try:
        network: Any = abstract_model(name, **arguments)
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error
    heads = getattr(network, "num_heads", 1)  # of a Vision Transformer; other networks have one
    if config.distillation.kind != "none" and token != (heads == 2):
        raise UserError(
            f"config.distillation.token: is {token}, and {name} has {heads} head(s); set it to "
            f"{not token}, or config.model.name to a model {'with' if token else 'without'} a distillation token"
        )
    return network


def _card(config: Config, class_names: Sequence[str]) -> Card:
    """What a run's weights say of themselves."""
    arguments = _network_arguments(config, len(class_names))
    preprocessing = Preprocessing(config.data.mean, config.data.std, config.data.crop_ratio)
    return Card(config.model.name, arguments, tuple(class_names), preprocessing)


def _rates(config: Config, model: nnx.Module) -> dict[str, float]:
    """The factor of the learning rate for each parameter that is trained."""
    paths = flatten(model, nnx.Param)
    if not any(".attn." in path for path in paths):
        if config.optim.layer_decay != 1:
            raise UserError(
                f"config.optim.layer_decay: counts a Transformer's blocks, and {config.model.name} is none; set it to 1"
            )
        if config.optim.trainable == "attention":
            raise UserError(f"config.optim.trainable: {config.model.name} has no attention; set it to all or head")
    return optim.learning_rates(paths, trainable=config.optim.trainable, layer_decay=config.optim.layer_decay)
