"""The state of a training run: everything that one step reads and writes, and that a checkpoint holds."""

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

MAX_STEP = 2**31 - 1  # what the counter holds
Variables = dict[str, Any]  # {dotted path: array}
# Arrays; in a tree like a state also shapes, shardings or what Orbax puts in their place.
Leaf: TypeAlias = Any
Tree: TypeAlias = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree; scalars are int32."""

    step: Leaf  # training steps done, skipped ones included
    params: Tree  # {dotted path: array}
    stats: Tree  # batch-norm statistics; empty for transformers
    opt_state: Tree
    ema: Tree  # moving average of params and stats; empty where none is kept
    skipped: Leaf  # updates left out for a non-finite loss or gradient
    skipped_in_a_row: Leaf


def init_state(params: Variables, stats: Variables, opt_state: optax.OptState, *, keep_ema: bool) -> TrainState:
    """The state before the first step; `opt_state` is the optimizer's for the parameters that are trained."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        stats=stats,
        opt_state=opt_state,
        # A copy: the step donates the state, and a buffer cannot be donated twice.
        ema={path: jnp.array(value, copy=True) for path, value in (params | stats).items()} if keep_ema else {},
        skipped=jnp.int32(0),
        skipped_in_a_row=jnp.int32(0),
    )
