"""From a resolved config to the parts that training, evaluation and the commands put together."""

import functools
import inspect
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from deit_jax import losses, mixing, optim, sharding, steps
from deit_jax.data import Source, examples_per_epoch, open_source, train_batches
from deit_jax.distill import Store
from deit_jax.errors import UserError
from deit_jax.models import Preprocessing, abstract_model, bind, create_model, entry, flatten
from deit_jax.schema import Config, Duration
from deit_jax.state import TrainState, Variables, init_state
from deit_jax.weights import Card, Weights, adapt, read_weights


def mesh(config: Config) -> Mesh:
    """The device mesh; `UserError` where the devices do not make it."""
    return sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)


def train_source(config: Config) -> Source:
    """The training split; `UserError` where its classes are not as many as the model was told to have."""
    data = config.data
    source = open_source(name=data.name, directory=data.dir, split=data.train_split, field="config.data.train_split")
    classes = len(source.class_names)
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


def model_arguments(config: Config, num_classes: int) -> dict[str, Any]:
    """Keyword arguments of `create_model`; what the config leaves open stays as the named model has it.

    Raises:
        UserError: the network has nothing of the kind that a field of `config.model` asks for.
    """
    takes = inspect.signature(entry(config.model.name).build.__init__).parameters
    wanted = network_arguments(config, num_classes) | {"dtype": config.model.dtype}
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


def network_arguments(config: Config, num_classes: int) -> dict[str, Any]:
    """Those of `model_arguments` that decide which function the weights compute."""
    own = ("patch_size", "width", "depth", "heads", "global_pool", "stem")
    chosen = {name: getattr(config.model, name) for name in own if getattr(config.model, name)}
    return {"image_size": config.data.image_size, "num_classes": num_classes, **chosen}


def model(config: Config, num_classes: int) -> nnx.Module:
    """The abstract model; a contradiction among its settings is a `UserError`."""
    name, token = config.model.name, config.distillation.token
    try:
        network: Any = abstract_model(name, **model_arguments(config, num_classes))
    except ValueError as error:
        raise UserError(f"config.model: {error}") from error
    heads = getattr(network, "num_heads", 1)  # of a Vision Transformer; other networks have one
    if config.distillation.kind != "none" and token != (heads == 2):
        raise UserError(
            f"config.distillation.token: is {token}, and {name} has {heads} head(s); set it to "
            f"{not token}, or config.model.name to a model {'with' if token else 'without'} a distillation token"
        )
    return network


def in_steps(config: Config, examples: int, duration: Duration) -> int:
    """A duration in steps, for a training split of so many examples."""
    epoch = examples_per_epoch(examples, config.batch_size) / config.batch_size
    return duration.in_steps(config.batch_size, epoch)


def schedule(config: Config, examples: int) -> Callable[[Array], Array]:
    """The learning rate as a function of the step, for a training split of so many examples."""
    return functools.partial(
        optim.learning_rate,
        peak=peak_learning_rate(config),
        start=config.optim.warmup_learning_rate,
        floor=config.optim.min_learning_rate,
        total=in_steps(config, examples, config.total),
        warmup=in_steps(config, examples, config.optim.warmup),
        epoch_steps=max(1, examples // config.batch_size) if config.optim.schedule_per_epoch else None,
    )


def peak_learning_rate(config: Config) -> float:
    """The learning rate after warm-up: linear in the batch size (arXiv:2012.12877, section 6)."""
    return config.optim.learning_rate * config.batch_size / 512


def normalization(config: Config) -> steps.Normalization:
    return steps.Normalization(config.data.mean, config.data.std)


def loss(config: Config) -> Callable[[tuple[Array, ...], Array, Array | None], tuple[Array, dict[str, Array]]]:
    """The training loss of (logits of each head, targets, the teacher's logits), and its weighted terms.

    Without distillation it is that of the mean of the heads, which is what predicts.
    """
    criterion = losses.cross_entropy
    if config.loss.kind == "binary_cross_entropy":
        criterion = functools.partial(losses.binary_cross_entropy, binarize=config.loss.binarize)
    if config.distillation.kind == "none":
        return lambda logits, targets, taught: (criterion(jnp.mean(jnp.stack(logits), axis=0), targets), {})
    settings = {name: getattr(config.distillation, name) for name in ("kind", "alpha", "tau", "kl_reduction")}
    return lambda logits, targets, taught: losses.distillation_loss(
        cls_logits=logits[0],
        dist_logits=logits[1] if config.distillation.token else None,
        targets=targets,
        teacher_logits=taught,
        base=criterion,
        **settings,
    )


def predict(config: Config, num_classes: int) -> Callable[[Variables, Array], tuple[Array, ...]]:
    """The function, not yet jitted, `variables, uint8 images -> logits of each head`."""
    abstract: Any = model(config, num_classes)
    return lambda variables, images: bind(abstract, variables).head_logits(normalization(config)(images))


def learning_rates(config: Config, num_classes: int) -> dict[str, float]:
    """The factor of the learning rate for each parameter that is trained."""
    paths = flatten(model(config, num_classes), nnx.Param)
    if not any(".attn." in path for path in paths):
        if config.optim.layer_decay != 1:
            raise UserError(
                f"config.optim.layer_decay: counts a Transformer's blocks, and {config.model.name} is none; set it to 1"
            )
        if config.optim.trainable == "attention":
            raise UserError(f"config.optim.trainable: {config.model.name} has no attention; set it to all or head")
    return optim.learning_rates(paths, trainable=config.optim.trainable, layer_decay=config.optim.layer_decay)


def optimizer(config: Config, num_classes: int) -> optax.GradientTransformation:
    return optim.adamw(
        learning_rates(config, num_classes),
        b1=config.optim.b1,
        b2=config.optim.b2,
        eps=config.optim.eps,
        weight_decay=config.optim.weight_decay,
    )


def init(config: Config, num_classes: int) -> Callable[..., TrainState]:
    """The function, not yet jitted, `seed, given -> first state`; the variables that are given are not drawn."""
    abstract, draw = model(config, num_classes), fresh_variables(config, num_classes)
    optimize, trained = optimizer(config, num_classes), learning_rates(config, num_classes)

    def first_state(seed: Array, given: Variables | None = None) -> TrainState:
        variables = draw(seed) | (given or {})
        params = {path: variables[path] for path in flatten(abstract, nnx.Param)}
        stats = {path: variables[path] for path in flatten(abstract, nnx.BatchStat)}
        opt_state = optimize.init({path: params[path] for path in trained})
        return init_state(params, stats, opt_state, keep_ema=config.ema.decay > 0)

    return first_state


def fresh_variables(config: Config, num_classes: int) -> Callable[[Array], Variables]:
    """The function, not yet jitted, `seed -> variables` of a model that has learnt nothing."""
    arguments = model_arguments(config, num_classes)
    return lambda seed: flatten(create_model(config.model.name, rngs=nnx.Rngs(jax.random.key(seed)), **arguments))


def initial_variables(config: Config, class_names: Sequence[str]) -> tuple[Variables, list[str]]:
    """The variables of `config.init_from` for the run's model, and how they differ from what is stored, in words.

    Raises:
        UserError: the weights cannot be read, or are those of another network.
    """
    draw = fresh_variables(config, len(class_names))

    def fresh(paths: Sequence[str]) -> Variables:
        return jax.jit(lambda seed: {path: draw(seed)[path] for path in paths})(np.uint32(config.seed))

    return fit(config, read_init(config), class_names, fresh)


def read_init(config: Config) -> Weights:
    """The weights of `config.init_from`."""
    try:
        return read_weights(config.init_from, model=config.model.name)
    except UserError as error:
        raise UserError(f"config.init_from: {error}") from error


def fit(
    config: Config, weights: Weights, class_names: Sequence[str], fresh: Callable[[Sequence[str]], Variables]
) -> tuple[Variables, list[str]]:
    """The weights fitted to the config's model, see `adapt`; also tells where they expect other images."""
    try:
        variables, notes = adapt(weights, model(config, len(class_names)), fresh=fresh, class_names=class_names)
    except UserError as error:
        raise UserError(f"config.init_from: {config.init_from}: {error}") from error
    expected = weights.card.preprocessing
    for name in ("mean", "std"):
        if expected and getattr(expected, name) != getattr(config.data, name):
            notes.append(f"they were trained with data.{name}={getattr(expected, name)}, which the config changes")
    return variables, notes


def card(config: Config, class_names: Sequence[str]) -> Card:
    """What a run's weights say of themselves."""
    arguments = network_arguments(config, len(class_names))
    preprocessing = Preprocessing(config.data.mean, config.data.std, config.data.crop_ratio)
    return Card(config.model.name, arguments, tuple(class_names), preprocessing)


def train_step(
    config: Config, num_classes: int, examples: int, teacher: Callable[..., Array] | None = None
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """The function, not yet jitted, `state, batch, seed, the teacher's variables -> next state, metrics`."""
    return functools.partial(
        steps.train_step,
        model=model(config, num_classes),
        normalize=normalization(config),
        teacher=teacher,
        loss=loss(config),
        optimizer=optimizer(config, num_classes),
        learning_rate=schedule(config, examples),
        rates=learning_rates(config, num_classes),
        frozen_backbone=config.optim.trainable == "head",
        num_classes=num_classes,
        label_smoothing=config.mixing.label_smoothing,
        accumulation=config.optim.accumulation,
        clip_norm=config.optim.clip_norm,
        ema_decay=config.ema.decay,
    )


def batches(
    config: Config, source: Source, mesh: Mesh, start: int, total: int, store: Store | None = None
) -> Generator[tuple[steps.Batch, int], None, None]:
    """The device batches of the steps from `start` to `total`, each with how many of its images were corrupt.

    Args:
        store: what a teacher said of them, if that was recorded.

    Raises:
        UserError: more images than `data.max_corrupt` allows could not be decoded.
    """
    rows = sharding.local_rows(mesh, config.batch_size)
    stream = train_batches(
        source,
        seed=config.seed,
        batch_size=config.batch_size,
        rows=rows,
        first_step=start,
        total_steps=total,
        image_size=config.data.image_size,
        crop_scale=config.data.crop_scale,
        flip=config.data.flip,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    draw = functools.partial(
        mixing.draw,
        config.seed,
        groups=config.batch_size // min(config.mixing.group, config.batch_size),
        image_size=config.data.image_size,
        mixup=config.mixing.mixup,
        cutmix=config.mixing.cutmix,
        probability=config.mixing.probability,
        switch_probability=config.mixing.switch_probability,
    )
    corrupt, allowed = 0, config.data.max_corrupt
    for step, host in enumerate(stream, start):
        replaced = int(host.pop("replaced").sum())
        corrupt += replaced
        # Of an epoch at least, so that one bad file among many does not stop the run by coming early.
        seen = max((step + 1 - start) * (rows.stop - rows.start), len(source) // jax.process_count())
        if corrupt > allowed * seen:
            raise UserError(
                f"config.data.max_corrupt: {corrupt} of {seen} images could not be decoded, {allowed:.2%} are allowed; "
                f"mend the files that the log names, or raise it"
            )
        examples, first = host.pop("index"), step * config.batch_size
        taught = store.read(slice(first + rows.start, first + rows.stop), examples) if store else {}
        mix = sharding.put_replicated(draw(step), mesh)
        yield {**sharding.put_batch(host, mesh), "mix": mix, "teacher": sharding.put_batch(taught, mesh)}, replaced
