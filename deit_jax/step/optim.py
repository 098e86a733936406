"""The optimizers, what they train how fast, and the moving average.

The learning rate is in none of them: `params - learning_rate * updates` is the step.
"""

import math
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int

from deit_jax.base.rules import first_match, match_all

# facebook's and timm's rule: no decay on vectors (biases, norms, layer scales), tokens and the position embedding.
DECAY_RULES = [(r"(^|\.)(bias|scale|gamma|cls_token|dist_token|pos_embed)$", False), (r"", True)]

# What Muon orthogonalises: the matrices of the blocks, qkv as one. Embeddings and heads are not for it
# (arXiv:2502.16982, section 2.2; its author's readme, too).
MUON_RULES = [(r"^blocks\.\d+\.(attn|mlp)\..*\.kernel$", True), (r"", False)]

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

    Args:
        paths: the parameters' dotted paths, which decide who decays (`DECAY_RULES`).
    """
    return optax.chain(
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=match_all(DECAY_RULES, paths)),
    )


def lamb(
    paths: Iterable[str], *, b1: float, b2: float, eps: float, weight_decay: float, max_norm: float = 1.0
) -> optax.GradientTransformation:
    """LAMB (arXiv:1904.00962) as timm's, which DeiT-III trains with (facebook's is apex's, which clips alike).

    `u = adam(g) + weight_decay * p` for gradients that are clipped first, and `u * |p| / |u|` tensor by tensor, where
    neither norm is 0; tensors that do not decay take `adam(g)` alone. qkv is one tensor.

    Args:
        paths: as for `adamw`.
        max_norm: of all gradients together; longer ones are cut to it before the moments see them.
    """
    decayed = match_all(DECAY_RULES, paths)
    # The state has the same form with and without decay: a resume may change that.
    trusted = {path: weight_decay > 0 and decays for path, decays in decayed.items()}
    return optax.chain(
        optax.clip_by_global_norm(max_norm),
        adamw(decayed, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay),
        optax.masked(optax.scale_by_trust_ratio(), trusted),
    )


def sgd(paths: Iterable[str], *, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD with Nesterov's momentum, torch's and timm's `--opt sgd`: with `d = g + weight_decay * p` and
    `m = momentum * m + d`, the update is `d + momentum * m`. The decay is part of the gradient, not decoupled from it.

    Args:
        paths: as for `adamw`.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=match_all(DECAY_RULES, paths)),
        optax.trace(momentum, nesterov=True),
    )


def muon(
    paths: Iterable[str], *, momentum: float, b1: float, b2: float, eps: float, weight_decay: float
) -> optax.GradientTransformation:
    """Muon (Jordan et al., https://kellerjordan.github.io/posts/muon) of optax for the blocks' matrices, AdamW for all
    else.

    An orthogonalised update of a matrix [m, n] is multiplied by `0.2 sqrt(max(m, n))`, by which it is about as long as
    AdamW's (arXiv:2502.16982, section 2.2): one learning rate and decay are for both.

    Args:
        paths: as for `adamw`; `MUON_RULES` tells the matrices.
        momentum: of Muon, Nesterov's; the others are AdamW's.
    """
    paths = list(paths)
    labels = {path: "muon" if matrix else "adamw" for path, matrix in match_all(MUON_RULES, paths).items()}
    matrix = optax.contrib.MuonDimensionNumbers()
    orthogonal = optax.chain(
        optax.contrib.scale_by_muon(
            beta=momentum, weight_dimension_numbers=lambda updates: jax.tree.map(lambda _: matrix, updates)
        ),
        optax.stateless(lambda updates, _: jax.tree.map(lambda u: 0.2 * math.sqrt(max(u.shape)) * u, updates)),
        optax.add_decayed_weights(weight_decay),
    )
    others = adamw(paths, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return optax.partition({"muon": orthogonal, "adamw": others}, labels)


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
