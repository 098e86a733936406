"""How a run learns, field by field of the config."""

import dataclasses
import shutil
import typing

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config, tiny_run

from deit_jax.base.errors import UserError
from deit_jax.config import schema
from deit_jax.run import train
from deit_jax.run.learning import peak_learning_rate, training_loss
from deit_jax.run.metrics import read_rows

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


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"optim__schedule": "wsd", "optim__decay_steps": 10}, r"decay_epochs: .* 3 \+ 10 \+ 0 steps, and .* 12;"),
        ({"optim__schedule": "wsd", "optim__decay_steps": 5, "optim__cooldown_steps": 5}, r"3 \+ 5 \+ 5 steps"),
        ({"optim__cooldown_steps": 12}, r"config\.optim\.cooldown_epochs: 12 steps, and the run has 12"),
        ({"optim__name": "muon", "optim__trainable": "head"}, r"config\.optim\.name: muon is for the matrices"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(fields, named):
    with pytest.raises(UserError, match=named):
        tiny_run(tiny_config(**fields))


def test_the_peak_is_for_512_images_or_as_it_is_given():
    assert peak_learning_rate(tiny_config(batch_size=256)) == pytest.approx(5e-3)
    assert peak_learning_rate(tiny_config(batch_size=256, optim__scale_by_batch=False)) == 1e-2


@pytest.mark.parametrize(("name", "rate"), [("lamb", 0.05), ("sgd", 0.3), ("muon", 0.02)])
def test_every_optimizer_goes_on_where_it_was(name, rate, tmp_path):
    """On eight devices, over which some tensors are cut, a run that is ended and goes on is the whole one."""
    fields = {"optim__name": name, "mesh__fsdp": 2, "optim__schedule": "wsd", "optim__decay_steps": 4}
    fields |= {"eval__every_steps": 12}
    fields |= {"optim__learning_rate": rate, "optim__scale_by_batch": False}
    config = tiny_config(**fields)
    train.train(config, tmp_path / "whole")
    rows = {row["step"]: row for row in read_rows(tmp_path / "whole" / "metrics.jsonl")}
    assert rows[10]["train/learning_rate"] < rows[8]["train/learning_rate"] == pytest.approx(rate)
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "12")  # as if it had been interrupted after step 8
    train.train(config, tmp_path / "whole")
    again = {row["step"]: row for row in read_rows(tmp_path / "whole" / "metrics.jsonl")}
    assert again.keys() == rows.keys()
    assert [again[step]["train/loss"] for step in again] == [rows[step]["train/loss"] for step in again]
