"""Training losses, means over the batch, in float32. Targets are class probabilities `[batch, classes]`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def cross_entropy(logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]) -> Float[Array, ""]:
    """Cross-entropy on soft targets in nats: mean over the batch of `-sum_c t_c log softmax(z)_c`.

    With one-hot targets it is the usual cross-entropy; with smoothed or mixed ones it is timm's
    SoftTargetCrossEntropy, which DeiT trains with (arXiv:2012.12877, section 6).
    """
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1))


def binary_cross_entropy(
    logits: Float[Array, "batch classes"],
    targets: Float[Array, "batch classes"],
    *,
    binarize: bool = False,
    threshold: float = 0.0,
) -> Float[Array, ""]:
    """One sigmoid cross-entropy a class, mean over batch and classes: `-(t log s(z) + (1 - t) log s(-z))`.

    Args:
        binarize: every class with a target above `threshold` counts as fully present and the others as absent: above 0
            as DeiT-III trains with mixed labels (arXiv:2204.07118, section 3.2), above 0.2 arXiv:2110.00476.
    """
    logits = logits.astype(jnp.float32)
    if binarize:
        targets = (targets > threshold).astype(jnp.float32)
    return -jnp.mean(targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits))


def cosub_loss(
    logits: Float[Array, "copies classes"],
    targets: Float[Array, "copies classes"],
    *,
    weight: float,
    criterion: Callable[[Array, Array], Array],
    agreement: Callable[[Array, Array], Array],
    probabilities: Callable[[Array], Array],
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Co-training of submodels (arXiv:2212.04884, section 3): `(1 - weight) criterion + weight agreement`.

    Each image is there twice, in neighbouring rows, with a draw of stochastic depth each. A copy learns the targets,
    and what its twin says, to whom no gradient goes. facebook's engine.py has a quarter of each of the four terms,
    which is a `weight` of 1/2, and binary cross-entropy for all; it binarizes the targets, not what the twin says.

    Args:
        weight: in [0, 1].
        criterion, agreement: means over the batch of (logits, targets), and of (logits, the twin's probabilities).
        probabilities: of logits.

    Returns:
        The loss, and its weighted terms `base` and `cosub`, which sum to it.
    """
    twins = logits.reshape(-1, 2, logits.shape[-1])[:, ::-1].reshape(logits.shape)
    said = probabilities(jax.lax.stop_gradient(twins).astype(jnp.float32))
    terms = {"base": (1 - weight) * criterion(logits, targets), "cosub": weight * agreement(logits, said)}
    return terms["base"] + terms["cosub"], terms


def distillation_loss(
    *,
    cls_logits: Float[Array, "batch classes"],
    dist_logits: Float[Array, "batch classes"] | None,
    targets: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"] | None,
    teacher_labels: Integer[Array, " batch"] | None = None,
    kind: str,
    alpha: float,
    tau: float,
    kl_reduction: str = "numel",
    base: Callable[[Array, Array], Array] = cross_entropy,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """DeiT's training loss (arXiv:2012.12877, section 4): `(1 - alpha) base + alpha distillation`.

    `base(cls_logits, targets)` is the class head's. The distillation is the distillation head's, or without one the
    class head's too ("usual distillation" of the paper's table 3); no gradient goes to the teacher. Its kinds:

    * "soft" (equation 2; arXiv:1503.02531): `soft_distillation` of temperature `tau`.
    * "hard" (equation 3): `hard_distillation` with the teacher's best class, without label smoothing.
    * "none": `base` alone, with weight 1; the teacher, `alpha` and `tau` are not looked at.

    Args:
        teacher_logits: what a teacher says of the images that the student sees; None with "none" or with labels.
        teacher_labels: for "hard", instead of logits: the teacher's best class.
        alpha: in [0, 1]; equation 2 calls it lambda, equation 3 fixes it at 1/2.
        tau: positive; for "soft" alone.

    Returns:
        The loss, and its weighted terms `base` and, except for "none", `distillation`, which sum to it.

    Raises:
        ValueError: an argument is outside of its range, or the teacher is missing, or there twice.
    """
    if kind == "none":
        loss = base(cls_logits, targets)
        return loss, {"base": loss}
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha} is not in [0, 1]")
    student = cls_logits if dist_logits is None else dist_logits
    if kind == "soft":
        if teacher_logits is None or teacher_labels is not None:
            raise ValueError("soft distillation takes teacher_logits, and no teacher_labels")
        distillation = soft_distillation(student, teacher_logits, tau=tau, kl_reduction=kl_reduction)
    elif kind == "hard":
        if teacher_logits is not None and teacher_labels is None:
            teacher_labels = jnp.argmax(teacher_logits, axis=-1)
        elif teacher_logits is not None or teacher_labels is None:
            raise ValueError("hard distillation takes either teacher_logits or teacher_labels")
        distillation = hard_distillation(student, teacher_labels)
    else:
        raise ValueError(f"kind {kind!r} is none of none, soft, hard")
    if teacher_logits is not None:  # a best class is found among NaN, too, and what is not positive counts as no class
        distillation = jnp.where(jnp.isnan(teacher_logits).any(), jnp.nan, distillation)
    terms = {"base": (1 - alpha) * base(cls_logits, targets), "distillation": alpha * distillation}
    return terms["base"] + terms["distillation"], terms


def soft_distillation(
    logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    *,
    tau: float,
    kl_reduction: str = "numel",
) -> Float[Array, ""]:
    """`tau^2 KL(softmax(teacher / tau) || softmax(student / tau))`, the second term of equation 2 of arXiv:2012.12877.

    The equation writes the arguments the other way round, but means this, which its code computes: `sum_c p_c (log p_c
    - log q_c)` for the teacher's p and the student's q, as in arXiv:1503.02531. A class may have no probability at all
    (a teacher's logit of -inf).

    Args:
        tau: the temperature, positive.
        kl_reduction: what the sum over batch and classes is divided by: "batchmean" (timm, the paper's formula): the
            batch; "numel" (facebook's losses.py): batch times classes, a term that is `classes` times smaller.

    Raises:
        ValueError: `tau` is not positive, or `kl_reduction` is unknown.
    """
    if not tau > 0:
        raise ValueError(f"tau {tau} is not positive")
    divisors = {"numel": logits.size, "batchmean": len(logits)}
    if kl_reduction not in divisors:
        raise ValueError(f"kl_reduction {kl_reduction!r} is none of {', '.join(divisors)}")
    teacher = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits).astype(jnp.float32) / tau)
    student = jax.nn.log_softmax(logits.astype(jnp.float32) / tau)
    divergence = jnp.where(teacher > -jnp.inf, jnp.exp(teacher) * (teacher - student), 0)  # 0 log 0 is 0
    return jnp.sum(divergence) * (tau**2 / divisors[kl_reduction])


def hard_distillation(logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"]) -> Float[Array, ""]:
    """Cross-entropy with the teacher's labels: mean over the batch of `-log softmax(z)_label`."""
    return cross_entropy(logits, jax.nn.one_hot(labels, logits.shape[-1]))
