"""How a run learns: from the config to the loss, what is trained how fast, the optimizer and the schedule."""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array

from deit_jax.base.errors import UserError
from deit_jax.base.rules import first_match
from deit_jax.config import schema
from deit_jax.config.schema import Config, Duration
from deit_jax.models import flatten
from deit_jax.step import losses, optim, schedule

Loss = Callable[[tuple[Array, ...], Array, Array | None], tuple[Array, dict[str, Array]]]


def training_loss(loss: schema.Loss, distillation: schema.Distillation, cosub: schema.Cosub) -> Loss:
    """The training loss of (logits of each head, targets, the teacher's logits), and its weighted terms.

    Without distillation it is that of the mean of the heads, which is what predicts. With `cosub.weight` each image is
    in the batch twice, in neighbouring rows.
    """
    criteria: dict[str, Callable[[Array, Array], Array]] = {
        "cross_entropy": losses.cross_entropy,
        "binary_cross_entropy": functools.partial(
            losses.binary_cross_entropy, binarize=loss.binarize, threshold=loss.threshold
        ),
    }
    criterion = criteria[loss.kind]
    if cosub.weight:
        agreement, probabilities = {
            "cross_entropy": (losses.cross_entropy, jax.nn.softmax),
            "binary_cross_entropy": (losses.binary_cross_entropy, jax.nn.sigmoid),
        }[loss.kind]
        return lambda logits, targets, taught: losses.cosub_loss(
            jnp.mean(jnp.stack(logits), axis=0),
            targets,
            weight=cosub.weight,
            criterion=criterion,
            agreement=agreement,
            probabilities=probabilities,
        )
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


def rates_of(config: Config, model: nnx.Module) -> dict[str, float]:
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


def optimizer_of(config: Config, paths: Iterable[str]) -> optax.GradientTransformation:
    """The optimizer of the parameters that are trained, without the learning rate.

    Raises:
        UserError: Muon is asked for, and none of them is a matrix of a Transformer's blocks.
    """
    paths = list(paths)
    if config.optim.name == "sgd":
        return optim.sgd(paths, momentum=config.optim.momentum, weight_decay=config.optim.weight_decay)
    adam = {name: getattr(config.optim, name) for name in ("b1", "b2", "eps", "weight_decay")}
    if config.optim.name == "lamb":
        return optim.lamb(paths, **adam)
    if config.optim.name == "muon":
        if not any(first_match(optim.MUON_RULES, path) for path in paths):
            raise UserError(
                f"config.optim.name: muon is for the matrices of a Transformer's blocks, and of {config.model.name} "
                f"none are trained; set it to adamw"
            )
        return optim.muon(paths, momentum=config.optim.momentum, **adam)
    return optim.adamw(paths, **adam)


def schedule_of(config: Config, in_steps: Callable[[Duration], int], *, epoch_steps: int) -> Callable[[Array], Array]:
    """The learning rate of the step.

    Args:
        in_steps: how many steps a duration is.
        epoch_steps: whole batches of an epoch.

    Raises:
        UserError: the rate falls before it has risen to its peak.
    """
    durations = (config.total, config.optim.warmup, config.optim.cooldown, config.optim.decay)
    total, warmup, cooldown, decay = map(in_steps, durations)
    # The first step of a decay is at the peak, which a cool-down alone has to be left one for.
    falling = decay if config.optim.schedule == "wsd" else 0
    if (falling or cooldown) and warmup + max(1, falling) + cooldown > total:
        name = "decay" if falling else "cooldown"
        raise UserError(
            f"config.optim.{name}_{getattr(config.optim, name).unit}: warm-up, decay and cool-down take {warmup:,} + "
            f"{falling:,} + {cooldown:,} steps, too many for the run's {total:,}; shorten one of them"
        )
    return functools.partial(
        schedule.learning_rate,
        kind=config.optim.schedule,
        peak=peak_learning_rate(config),
        start=config.optim.warmup_learning_rate,
        floor=config.optim.min_learning_rate,
        total=total,
        warmup=warmup,
        cooldown=cooldown,
        decay=decay,
        decay_rate=config.optim.decay_rate,
        warmup_prefix=config.optim.warmup_prefix,
        epoch_steps=epoch_steps if config.optim.schedule_per_epoch else None,
    )


def peak_learning_rate(config: Config) -> float:
    """The learning rate after warm-up: linear in the batch size (arXiv:2012.12877, section 6), or as given."""
    return config.optim.learning_rate * (config.batch_size / 512 if config.optim.scale_by_batch else 1)
