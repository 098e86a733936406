"""Where a model's random numbers come from when it is made inside `jax.jit`, where `nnx.Rngs` would cost seconds."""

from collections.abc import Callable
from itertools import count
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

M = TypeVar("M", bound=nnx.Module)


class Keys(nnx.Rngs):
    """The keys that `nnx.Rngs(key)` gives for parameters, counted in Python from the one numbered `first`.

    That counts them in a variable of the trace, which takes most of the time of tracing a model's construction.
    """

    def __init__(self, key: jax.Array, first: jax.Array | int = 0):
        self.key, self.first, self.used = key, first, count()

    def params(self) -> jax.Array:
        return jax.random.fold_in(self.key, self.first + next(self.used))


def repeat(make: Callable[..., M], times: int, rngs: nnx.Rngs) -> list[M]:
    """`[make(rngs=rngs) for _ in range(times)]`, of modules that differ in nothing but their random numbers.

    With `Keys` they are drawn in a loop, so that a compiler meets one of them: XLA took half a second for each block of
    a small DeiT on a CPU, at the first start of a run.
    """
    if not isinstance(rngs, Keys):
        return [make(rngs=rngs) for _ in range(times)]
    one = Keys(rngs.key)
    jax.eval_shape(lambda: make(rngs=one))
    taken, start = next(one.used), next(rngs.used)
    firsts = rngs.first + start + taken * jnp.arange(times)
    rngs.used = count(start + taken * times)
    modules = jax.lax.map(lambda first: make(rngs=Keys(rngs.key, first)), firsts)
    return [jax.tree.map(lambda leaf, i=i: leaf[i], modules) for i in range(times)]
