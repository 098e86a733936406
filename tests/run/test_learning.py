"""How a run learns, field by field of the config."""

import dataclasses
import re
import shutil
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config, tiny_run

from deit_jax.base.errors import UserError
from deit_jax.config import schema
from deit_jax.models import bind
from deit_jax.run import train
from deit_jax.run.learning import peak_learning_rate, training_loss
from deit_jax.run.metrics import read_rows

NAMES = [str(i) for i in range(10)]
KINDS = typing.get_args(typing.get_type_hints(schema.Loss)["kind"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_loss_is_one_of_its_own(kind):
    config = tiny_config()
    logits, targets = jnp.array([[0.5, -1.0, 2.0]]), jnp.array([[0.1, 0.2, 0.7]])

    def value(kind: str) -> float:
        loss = training_loss(dataclasses.replace(config.loss, kind=kind), config.distillation, config.cosub)
        return float(loss((logits,), targets, None)[0])

    assert np.isfinite(value(kind))
    assert [value(other) == value(kind) for other in KINDS].count(True) == 1


@pytest.mark.parametrize("learning", [{}, {"distillation": "soft"}, {"distillation": "hard"}, {"cosub": 0.5}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_takes_mixed_labels(kind, learning):
    """It is linear in its targets: that of a mixture of two labels is the mixture of theirs."""
    config = tiny_config()
    loss = training_loss(
        dataclasses.replace(config.loss, kind=kind),
        dataclasses.replace(config.distillation, kind=learning.get("distillation", "none")),
        dataclasses.replace(config.cosub, weight=learning.get("cosub", 0.0)),
    )
    logits = jnp.array(np.random.default_rng(0).normal(size=(2, 4, 3)) + 2 * np.arange(3), jnp.float32)
    first, last = (jnp.tile(jax.nn.one_hot(label, 3), (4, 1)) for label in (0, 2))
    mixed, unlikely, likely = (
        float(loss(tuple(logits), targets, logits[0])[0]) for targets in (0.7 * first + 0.3 * last, first, last)
    )
    assert mixed == pytest.approx(0.7 * unlikely + 0.3 * likely, rel=1e-6)
    assert mixed < unlikely - 0.1


FALLING = {"optim__decay_steps": 9, "optim__cooldown_steps": 10}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"optim__schedule": "wsd", "optim__decay_steps": 10}, r"optim\.decay_steps: .* 3 \+ 10 \+ 0 steps, .* 12;"),
        ({"optim__schedule": "wsd", "optim__decay_epochs": 1.0}, r"optim\.decay_epochs: .* 3 \+ 44 \+ 0 steps"),
        ({"optim__schedule": "wsd", "optim__decay_steps": 5, "optim__cooldown_steps": 5}, r"decay_steps: .* 3 \+ 5 \+"),
        ({"optim__cooldown_examples": 288}, r"optim\.cooldown_examples: .* 3 \+ 0 \+ 9 steps, .* run's 12"),
        ({"optim__cooldown_steps": 12, "optim__warmup_steps": 0}, r"optim\.cooldown_steps: .* 0 \+ 0 \+ 12 steps"),
        (FALLING | {"optim__schedule": "step"}, r"optim\.cooldown_steps: .* 3 \+ 0 \+ 10 steps"),
        (FALLING | {"optim__schedule": "constant"}, r"optim\.cooldown_steps: .* 3 \+ 0 \+ 10 steps"),
        ({"total_steps": 0, "total_examples": 2**50}, r"config\.total_examples: .* are more than the 2,147,483,647"),
        ({"optim__name": "muon", "optim__trainable": "head"}, r"config\.optim\.name: muon is for the matrices"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(fields, named):
    with pytest.raises(UserError, match=named):
        tiny_run(tiny_config(**fields))


@pytest.mark.parametrize(
    ("fields", "rate"),
    [
        ({"optim__schedule": "wsd", "optim__decay_steps": 5, "optim__cooldown_steps": 4}, 6.25e-4),
        ({"optim__schedule": "step", "optim__decay_steps": 9, "optim__cooldown_steps": 8}, 6.25e-4),
        ({"optim__cooldown_steps": 8}, 1e-5 + 6.15e-4 / 2 * (1 - np.sqrt(1 / 2))),
    ],
)
def test_a_schedule_may_fill_the_run(fields, rate):
    """One step is left between its warm-up of 3 steps and its fall."""
    learning_rate = tiny_run(tiny_config(**fields)).learning_rate
    assert learning_rate(jnp.int32(3)) == pytest.approx(rate, rel=1e-5)
    assert learning_rate(jnp.int32(12 - fields["optim__cooldown_steps"])) == pytest.approx(1e-5)


def test_a_warm_up_may_be_longer_than_the_run():
    """Its header tells it."""
    assert tiny_run(tiny_config(optim__warmup_steps=13)).learning_rate(jnp.int32(12)) < 6.25e-4


def test_the_peak_is_for_512_images_or_as_it_is_given():
    assert peak_learning_rate(tiny_config(batch_size=256)) == pytest.approx(5e-3)
    assert peak_learning_rate(tiny_config(batch_size=256, optim__scale_by_batch=False)) == 1e-2


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        pytest.param("lamb", 0.05, marks=pytest.mark.long),
        pytest.param("sgd", 0.3, marks=pytest.mark.long),
        pytest.param("muon", 0.02, marks=pytest.mark.long),
    ],
)
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


@pytest.mark.long
def test_copies_stay_on_the_device_of_their_image_and_draw_their_own_depth():
    fields = {"cosub__weight": 0.5, "mixing__group": 4, "model__drop_path": 0.4}
    run = tiny_run(tiny_config(**fields))
    batch, _ = next(run.batches(0, 1))
    compiled = run.train_step().lower(run.target, batch, np.uint32(0), None).compile()
    assert not re.search(r" (collective-permute|all-to-all|all-gather)(-start)?\(", compiled.as_text())
    _, metrics = compiled(run.first_state(), batch, np.uint32(0), None)
    assert metrics["loss"] == pytest.approx(float(metrics["loss_base"] + metrics["loss_cosub"]), rel=1e-6)
    keys = jax.random.key(0)
    seen = jnp.repeat(run.normalize(batch["image"][:3]), 2, axis=0)
    (logits, _) = bind(run.model, run.first_state().params).head_logits(seen, key=keys)
    assert len(np.unique(np.asarray(logits).round(6), axis=0)) > 3


# What a resume may change, with another value each; of any optimizer.
CHANGES = {
    "optim__weight_decay": 0.0,
    "optim__momentum": 0.0,
    "optim__clip_norm": 1.0,
    "optim__b1": 0.0,
    "optim__layer_decay": 0.5,
    "optim__accumulation": 2,
    "optim__schedule": "constant",
    "optim__cooldown_steps": 2,
    "optim__gradient_dtype": "bfloat16",
    "ema__warmup": True,
    "ema__decay": 0.5,
    "cosub__weight": 0.5,
    "model__drop_path": 0.0,
    "loss__kind": "binary_cross_entropy",
}


@pytest.mark.parametrize("name", ["adamw", "lamb", "sgd", "muon"])
def test_what_a_resume_may_change_leaves_the_form_of_the_state(name):
    given = {"optim__name": name, "distillation__token": False, "model__name": "deit_tiny_patch16_224"}
    target = tiny_run(tiny_config(**given), NAMES).target
    for field, value in CHANGES.items():
        changed = tiny_run(tiny_config(**given | {field: value}), NAMES).target
        assert jax.tree.structure(changed) == jax.tree.structure(target), field
        assert [x.dtype for x in jax.tree.leaves(changed)] == [x.dtype for x in jax.tree.leaves(target)], field


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__name": "resnet18"}, r"^config\.model\.name: unknown model 'resnet18'; did you mean resnet50"),
        ({"cosub__weight": 0.5, "model__depth": 1}, r"^config\.cosub\.weight: .*model\.depth"),
        (
            {"loss__kind": "binary_cross_entropy", "loss__binarize": True, "loss__threshold": 0.005},
            r"^config\.loss\.threshold: is 0\.005, .* gives each class 0\.01, .*set it higher",
        ),
    ],
)
def test_what_only_the_network_or_the_classes_tell_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        tiny_run(tiny_config(**fields), NAMES)
