"""What a run is built of, field by field of the config."""

import dataclasses
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from deit_jax.base.errors import UserError
from deit_jax.config import schema
from deit_jax.data.memory import MemorySource
from deit_jax.run import build
from deit_jax.run.build import train_source, training_loss

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


def test_one_class_is_nothing_to_train_on(monkeypatch, tmp_path):
    """Whatever the source: its top-1 would be 100 % and its loss 0."""
    source = MemorySource(np.zeros((5, 2, 2), np.uint8), np.zeros(5, int), ["flowers"], name="plants train")
    monkeypatch.setattr(build, "open_source", lambda **options: source)
    with pytest.raises(
        UserError, match=r"config\.data\.train_split: all 5 photos, such as plants train\[0\], are of one"
    ):
        train_source(tiny_config())
    monkeypatch.undo()
    for kind in ("rose", "tulip"):
        (tmp_path / "flowers" / kind).mkdir(parents=True)
        (tmp_path / "flowers" / kind / "0.jpg").touch()
    with pytest.raises(UserError, match=f"give --config.data.dir={tmp_path}/flowers$"):
        train_source(tiny_config(data__name="folder", data__dir=str(tmp_path)))
