"""What fields of a config say of one another: each alone may be right, and both together not."""

import dataclasses

from deit_jax.base.errors import UserError
from deit_jax.base.storage import place
from deit_jax.config.curves import published_curve
from deit_jax.config.schema import UNITS, Config, Distillation
from deit_jax.config.sizes import parse_sizes


def check_contradictions(config: Config) -> None:
    """`UserError` naming the first field that does not go with another one."""
    _check_run(config)
    _check_images(config)
    _check_cosub(config)
    _check_distillation(config.distillation)
    published_curve(config.eval.published_curve)


def _check_run(config: Config) -> None:
    durations = {
        "total": config.total,
        "log.every": config.log.every,
        "checkpoint.every": config.checkpoint.every,
        "eval.every": config.eval.every,
        "optim.warmup": config.optim.warmup,
        "optim.cooldown": config.optim.cooldown,
        "optim.decay": config.optim.decay,
        "mixing.off": config.mixing.off,
    }
    for path, duration in durations.items():
        units = [unit for unit in UNITS if getattr(duration, unit)]
        if len(units) > 1:
            raise UserError(
                f"config.{path}_{units[0]} and config.{path}_{units[1]}: both are set; set one of them to 0"
            )
        if not units and path in ("total", "log.every", "checkpoint.every", "eval.every"):
            raise UserError(f"config.{path}_steps: no unit of {path} is set; set _steps, _epochs or _examples")
    if config.optim.schedule in ("wsd", "step") and not any(dataclasses.astuple(config.optim.decay)):
        raise UserError(
            f"config.optim.decay_epochs: missing for optim.schedule={config.optim.schedule!r}; set how long a decay is"
        )
    if config.optim.schedule_per_epoch and (
        config.optim.schedule == "wsd" or any(dataclasses.astuple(config.optim.cooldown))
    ):
        raise UserError(
            "config.optim.schedule_per_epoch: lags an epoch behind, as facebook's code does, so that a decay "
            "would not come to its end, and a cool-down would begin too late; set it to False"
        )
    for name in ("data", "fsdp", "tensor"):
        if (axis := getattr(config.mesh, name)) == 0 or axis < -1:
            raise UserError(f"config.mesh.{name}: is {axis}, should be a number of devices, or -1 for mesh.data")
    if config.data.augment:
        from deit_jax.data.policy import parse_policy  # and JAX with it, which --help does not wait for

        parse_policy(config.data.augment)
    if config.model.num_classes == 0 or config.model.num_classes < -1:
        raise UserError("config.model.num_classes: should be positive, or -1 for as many as the data has")
    if config.batch_size % config.optim.accumulation:
        raise UserError(
            f"config.optim.accumulation: {config.optim.accumulation} does not divide batch_size {config.batch_size}"
        )
    loss = config.loss
    binarized = loss.kind == "binary_cross_entropy" and loss.binarize
    if binarized and config.mixing.label_smoothing and not loss.threshold:
        raise UserError(
            "config.mixing.label_smoothing: with loss.binarize every smoothed class would count as present; "
            "set one of the two to 0, or loss.threshold above what smoothing gives a class"
        )


def _check_images(config: Config) -> None:
    pairs = {f"data.{name}": getattr(config.data, name) for name in ("crop_scale", "crop_aspect")}
    pairs |= {f"erasing.{name}": getattr(config.erasing, name) for name in ("area", "aspect")}
    for path, (low, high) in pairs.items():
        if low > high:
            raise UserError(f"config.{path}: is {(low, high)}, should be (smallest, largest)")
    if config.erasing.min_count > config.erasing.max_count:
        raise UserError(
            f"config.erasing.min_count: is {config.erasing.min_count}, more than erasing.max_count, "
            f"{config.erasing.max_count}; set it lower"
        )
    scheduled = [size for size, _ in parse_sizes(config.data.image_size_schedule)]
    smallest = min(scheduled or [config.data.image_size])
    low, high = (int(share * smallest) for share in config.mixing.cutmix_minmax)
    if low >= high and any(config.mixing.cutmix_minmax):
        raise UserError(
            f"config.mixing.cutmix_minmax: {config.mixing.cutmix_minmax} of {smallest} pixels leave no "
            f"side, at least {low} and below {high}; set (smallest, largest), or (0.0, 0.0) for none"
        )
    group, mixing = config.mixing_group, config.mixing
    if group == 1 < min(mixing.group, config.batch_size):
        raise UserError(
            f"config.batch_size: {config.batch_size} is a multiple of no number up to mixing.group {mixing.group}, so "
            f"that nothing would mix; take another, or set mixing.group=1"
        )
    mixes = mixing.probability and (mixing.mixup or mixing.cutmix or any(mixing.cutmix_minmax))
    if group > 1 and mixes and config.batch_size // group < config.data.repeats:
        raise UserError(
            f"config.data.repeats: {config.data.repeats} copies of an image would mix with each other: a batch of "
            f"{config.batch_size} has {config.batch_size // group} group(s) of mixing.group {group}; make that smaller"
        )


def _check_cosub(config: Config) -> None:
    if not config.cosub.weight:
        return
    if config.distillation.kind != "none":
        raise UserError(
            f"config.cosub.weight: two copies learn from one another, or both from a teacher, and distillation.kind is "
            f"{config.distillation.kind!r}; set one of them to 0 or 'none'"
        )
    if not config.model.drop_path or config.optim.trainable == "head":
        raise UserError(
            "config.cosub.weight: the copies of an image differ by stochastic depth alone, of which there is none; set "
            "model.drop_path, with optim.trainable other than head, or the weight to 0"
        )


def _check_distillation(distillation: Distillation) -> None:
    if distillation.top_k == 0 or distillation.top_k < -1:
        raise UserError("config.distillation.top_k: should be positive, or -1 for all classes")
    if distillation.kind == "none" and distillation.store:
        raise UserError(
            "config.distillation.kind: is 'none', and distillation.store names what a teacher said; set soft or hard, "
            "or leave the store out"
        )
    if distillation.store:
        place(distillation.store, "config.distillation.store")  # of a kind that is read
    if distillation.kind != "none" and not (distillation.teacher.name or distillation.store):
        raise UserError(
            f"config.distillation.teacher.name: missing for distillation.kind={distillation.kind!r}; name a teacher, "
            f"or a recorded one in distillation.store"
        )
