"""The learning rate of a step.

It is a function of `state.step`, not of the optimizer's own count: a skipped update does not shift it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def learning_rate(
    step: Int[Array, ""],
    *,
    kind: str = "cosine",
    peak: float,
    start: float,
    floor: float,
    total: int,
    warmup: int,
    cooldown: int = 0,
    decay: int = 0,
    decay_rate: float = 1.0,
    warmup_prefix: bool = False,
    epoch_steps: int | None = None,
) -> Float[Array, ""]:
    """Linear warm-up from `start` to `peak`, then what `kind` says, in the end `cooldown` steps at `floor`.

    With t the step, it is `start + t / warmup * (peak - start)` while t < warmup, and `floor` from `end = total -
    cooldown` on where there is a cool-down: timm trains 310 epochs for `--epochs 300 --cooldown-epochs 10`, which here
    are 310 in all, the last 10 of them cool-down. In between:

    * "cosine": `floor + (peak - floor) / 2 * (1 + cos(pi * t / end))`: the cosine does not begin anew after the
      warm-up, as in timm's CosineLRScheduler, which DeiT uses.
    * "wsd" (warm-up, stable, decay; arXiv:2404.06395): `peak`, and over the last `decay` steps before `end`
      `floor + (peak - floor) * (1 - sqrt(f))` at the share f of them: of the decays that arXiv:2405.18392 (section 4)
      compares the best, and timm's default.
    * "step": `peak * decay_rate^floor(t / decay)`, as timm's StepLRScheduler; `floor` is for the cool-down alone.
    * "constant": `peak`.

    With `warmup_prefix` "cosine" and "step" begin when the warm-up ends, as timm's of that name and big_vision's: in
    their formulas stands `t - warmup` for t, and `end - warmup` for `end`.

    Args:
        step: updates done before this one, from 0.
        peak, start, floor: learning rates, already scaled by the batch size where they should be.
        total, warmup, cooldown, decay: in steps; `decay` is positive for "wsd" and "step".
        epoch_steps: if given, t stands still within an epoch of so many steps and lags one epoch behind, so that the
            first two epochs share the rate `start`: facebook's main.py calls `lr_scheduler.step(epoch)` after epoch
            `epoch`.
    """
    if epoch_steps:
        step = jnp.maximum(step // epoch_steps - 1, 0) * epoch_steps
    t, end = step.astype(jnp.float32), total - cooldown
    begin = warmup if warmup_prefix else 0
    if kind == "cosine":
        share = jnp.clip((t - begin) / max(end - begin, 1), 0, 1)
        rate = floor + (peak - floor) / 2 * (1 + jnp.cos(jnp.pi * share))
    elif kind == "wsd":
        share = jnp.clip((t - (end - decay)) / decay, 0, 1)
        rate = floor + (peak - floor) * (1 - jnp.sqrt(share))
    elif kind == "step":
        rate = peak * decay_rate ** ((step - begin) // decay).astype(jnp.float32)
    else:
        rate = jnp.float32(peak)
    rate = jnp.where(t < warmup, start + (peak - start) * t / max(warmup, 1), rate)
    return jnp.where(t >= end, floor, rate) if cooldown else rate
