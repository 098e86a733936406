"""How a run learns, field by field of the config."""

import dataclasses
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from deit_jax.config import schema
from deit_jax.run.learning import training_loss

KINDS = typing.get_args(typing.get_type_hints(schema.Loss)["kind"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_loss_is_one_of_its_own(kind):
    config = tiny_config()
    logits, targets = jnp.array([[0.5, -1.0, 2.0]]), jnp.array([[0.1, 0.2, 0.7]])

    def value(kind: str) -> float:
        loss = training_loss(dataclasses.replace(config.loss, kind=kind), config.distillation)
        return float(loss((logits,), targets, None)[0])

    assert np.isfinite(value(kind))
    assert [value(other) == value(kind) for other in KINDS].count(True) == 1
