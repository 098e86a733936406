"""Training losses, means over the batch, in float32. Targets are class probabilities `[batch, classes]`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def cross_entropy(logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]) -> Float[Array, ""]:
    """Cross-entropy on soft targets in nats: mean over the batch of `-sum_c t_c log softmax(z)_c`.

    With one-hot targets it is the usual cross-entropy; with smoothed or mixed ones it is timm's
    SoftTargetCrossEntropy, which DeiT trains with (arXiv:2012.12877, section 6).
    """
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1))


def binary_cross_entropy(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"], *, binarize: bool = False
) -> Float[Array, ""]:
    """One sigmoid cross-entropy a class, mean over batch and classes: `-(t log s(z) + (1 - t) log s(-z))`.

    Args:
        binarize: every class with a positive target counts as fully present, as DeiT-III trains with mixed labels
            (arXiv:2204.07118, section 3.2; arXiv:2110.00476).
    """
    logits = logits.astype(jnp.float32)
    if binarize:
        targets = (targets > 0).astype(jnp.float32)
    return -jnp.mean(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))
