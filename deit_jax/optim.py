"""The learning-rate schedule and the optimizer.

The schedule is a function of `state.step`, not of the optimizer's own count: a skipped update does not shift it.
"""

from collections.abc import Iterable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from deit_jax.rules import match_all

# facebook's and timm's rule: no decay on vectors (biases, norms) nor on the tokens and the position embedding.
DECAY_RULES = [(r"(^|\.)(bias|scale|cls_token|dist_token|pos_embed)$", False), (r"", True)]


def learning_rate(
    step: Int[Array, ""],
    *,
    peak: float,
    start: float,
    floor: float,
    total: int,
    warmup: int,
    epoch_steps: int | None = None,
) -> Float[Array, ""]:
    """Linear warm-up from `start` to `peak`, then a cosine from `peak` at step 0 to `floor` at step `total`.

    With t the step, `start + t / warmup * (peak - start)` while t < warmup, then
    `floor + (peak - floor) / 2 * (1 + cos(pi * t / total))`: the cosine does not begin anew after the warm-up,
    as in timm's CosineLRScheduler, which DeiT uses.

    Args:
        step: updates done before this one, from 0.
        peak, start, floor: learning rates, already scaled by the batch size where they should be.
        epoch_steps: if given, t stands still within an epoch of so many steps and lags one epoch behind, so that the
            first two epochs share the rate `start`: facebook's main.py calls `lr_scheduler.step(epoch)` after epoch
            `epoch`.
    """
    t = step.astype(jnp.float32)
    if epoch_steps:
        t = jnp.maximum(step // epoch_steps - 1, 0).astype(jnp.float32) * epoch_steps
    cosine = floor + (peak - floor) / 2 * (1 + jnp.cos(jnp.pi * jnp.minimum(t / total, 1)))
    return jnp.where(t < warmup, start + (peak - start) * t / max(warmup, 1), cosine)


def adamw(
    paths: Iterable[str], *, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101), torch's: `m / (sqrt(v) + eps)` after bias correction, plus decoupled decay.

    The learning rate is not in it: `params - learning_rate * updates` is the step.

    Args:
        paths: the parameters' dotted paths, which decide who decays (`DECAY_RULES`).
    """
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=match_all(DECAY_RULES, paths)),
    )
