"""What is kept of a teacher's logits, and the logits that it stands for: pure functions for use under `jax.jit`."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

FLOAT16_MAX = 65504.0


def kept_logits(kind: str, top_k: int, classes: int) -> int:
    """How many logits of a row are recorded of a `soft` teacher; 0 of a `hard` one: its best class alone.

    Args:
        top_k: of them, at most; -1 for all.
    """
    if kind == "hard":
        return 0
    return classes if top_k == -1 else min(top_k, classes)


def summarize(logits: Float[Array, "batch classes"], top: int) -> dict[str, Array]:
    """What a store keeps of a batch of logits: `labels`, and of the `top` largest, if any, what `expand` needs.

    Args:
        top: from 0 to classes.

    Returns:
        `labels` [batch], the best class; with `top` also `values` float16 [batch, top], the largest logits, best first
        (all of them, in the order of the classes, where top = classes), else with them `indices` [batch, top], their
        classes, and `rest` float16 [batch], the log of the summed exponentials of the logits left out. The largest
        logit of each row is subtracted, which no softmax sees: so float16 is finest where the probability is. Classes
        are in `index_type`; values below float16 are its smallest.
    """
    classes = logits.shape[-1]
    index = index_type(classes)
    kept = {"labels": jnp.argmax(logits, axis=-1).astype(index)}
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    if top == classes:
        kept["values"] = _half(logits)
    elif top:
        values, indices = jax.lax.top_k(logits, top)
        left_out = jnp.put_along_axis(logits, indices, -jnp.inf, axis=-1, inplace=False)
        kept |= {"values": _half(values), "indices": indices.astype(index)}
        kept["rest"] = _half(jax.nn.logsumexp(left_out, axis=-1))
    return kept


def expand(kept: Mapping[str, Array | np.ndarray], classes: int) -> Float[Array, "batch classes"]:
    """Logits in float32 from what `summarize` kept, the largest of each row 0.

    The classes that were left out share the probability that remained evenly: each gets `rest - log(classes - top)`.
    Of labels alone, 1 for the label and 0 for all others.
    """
    if "values" not in kept:
        return jax.nn.one_hot(kept["labels"], classes)
    values = jnp.asarray(kept["values"], jnp.float32)
    if "indices" not in kept:
        return values
    share = jnp.asarray(kept["rest"], jnp.float32) - np.log(classes - values.shape[-1])
    even = jnp.broadcast_to(share[:, None], (len(values), classes))
    return jnp.put_along_axis(even, jnp.asarray(kept["indices"], jnp.int32), values, axis=-1, inplace=False)


def index_type(classes: int) -> np.dtype:
    """The smallest unsigned type with room for every class, and for its largest value, which marks a missing one."""
    return np.min_scalar_type(classes)


def _half(x: Array) -> Array:
    return jnp.clip(x, -FLOAT16_MAX, FLOAT16_MAX).astype(jnp.float16)
