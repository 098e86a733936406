"""The learning-rate schedule and the optimizer.

The schedule is a function of `state.step`, not of the optimizer's own count: a skipped update does not shift it.
"""

import re
from collections.abc import Iterable

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from deit_jax.base.rules import first_match, match_all

# facebook's and timm's rule: no decay on vectors (biases, norms, layer scales), tokens and the position embedding.
DECAY_RULES = [(r"(^|\.)(bias|scale|gamma|cls_token|dist_token|pos_embed)$", False), (r"", True)]

# Whose gradients may travel between devices in bfloat16: of the dense layers that compute in it, almost all there is.
# Normalisation and heads compute in float32.
EXCHANGE_RULES = [(r"^patch_embed\.|\.(qkv|proj|fc1|fc2)\.(kernel|bias)$", True), (r"", False)]

# What is trained. "attention" is arXiv:2203.09795, section 4: the attention layers, with the position embedding and the
# heads as facebook's `--attn-only` does; "head" is a linear probe.
TRAINABLE_RULES = {
    "all": [(r"", True)],
    "attention": [(r"\.attn\.|^pos_embed$|^head(_dist)?\.", True), (r"", False)],
    "head": [(r"^(head(_dist)?|fc|classifier)\.", True), (r"", False)],
}


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


def ema_decay(step: Int[Array, ""], *, decay: float, warmup: bool) -> Float[Array, ""] | float:
    """What a moving average keeps of itself at an update.

    Args:
        step: updates done before this one, from 0.
        decay: in [0, 1).
        warmup: `min(decay, 1 - (1 + step)^(-2/3))`, as timm's ModelEmaV3 warms up: the first update copies the weights,
            and the average is never of more updates than there were. Without, it begins as the initial weights, of
            which 0.99996 still keeps 96 % after 1,000 updates.
    """
    if not warmup:
        return decay
    return jnp.minimum(decay, 1 - (1 + step.astype(jnp.float32)) ** (-2 / 3))


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


def learning_rates(paths: Iterable[str], *, trainable: str, layer_decay: float) -> dict[str, float]:
    """What each trained parameter's learning rate is multiplied by; a path that is left out is not trained.

    Args:
        paths: the parameters' dotted paths.
        trainable: a key of `TRAINABLE_RULES`.
        layer_decay: d in (0, 1]: d^(L + 1 - l) for layer l of L blocks, where the embeddings are layer 0, block i is
            layer i + 1, and what comes after the blocks is layer L + 1 (arXiv:2106.08254, section 3.2; BEiT, MAE).
    """
    paths = list(paths)
    depth = 1 + max((int(path.split(".")[1]) for path in paths if path.startswith("blocks.")), default=-1)

    def layer(path: str) -> int:
        if path.startswith("blocks."):
            return int(path.split(".")[1]) + 1
        return 0 if re.match(r"patch_embed\.|(cls_token|dist_token|pos_embed)$", path) else depth + 1

    trained = [path for path in paths if first_match(TRAINABLE_RULES[trainable], path)]
    return {path: layer_decay ** (depth + 1 - layer(path)) for path in trained}
