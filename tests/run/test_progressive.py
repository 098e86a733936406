"""Training images that change their size during a run."""

import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import EVERYTHING, replace, tiny_config, tiny_run

from deit_jax.base.errors import UserError
from deit_jax.config.schema import Duration
from deit_jax.models import resize_positions
from deit_jax.run import describe, train
from deit_jax.run.interrupt import Interrupted
from deit_jax.run.metrics import read_rows
from deit_jax.run.monitor import Monitor
from deit_jax.weights.orbax import CheckpointDirectory

# An epoch of the digits has 40 steps where images are repeated, patches are 4 pixels wide.
CONFIG = tiny_config(data__image_size_schedule="4@0,12@0.1,8@0.225", **EVERYTHING)
SIZES = [4] * 4 + [12] * 5 + [8] * 3


@pytest.fixture(scope="module")
def run():
    return tiny_run(CONFIG)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train.train(CONFIG, workdir)


def batches(run, start, stop):
    return [jax.device_get(batch) for batch, _ in run.batches(start, stop)]


def test_the_size_of_a_step_follows_from_the_config(run):
    assert run.sizes == [(0, 4), (4, 12), (9, 8)]
    assert [run.size_at(step) for step in range(12)] == SIZES
    assert run.size_at(10**6) == 8
    longer = tiny_run(tiny_config(data__image_size_schedule="4@0,8@0.1", data__repeats=3, total_steps=99))
    assert longer.sizes == [(0, 4), (4, 8)]
    assert tiny_run(tiny_config()).sizes == [(0, 8)]
    assert tiny_run(tiny_config(data__image_size_schedule="4@0,12@0.001,8@0.002")).sizes[1:] == [(1, 12), (1, 8)]


def test_the_header_tells_a_size_that_the_run_ends_before():
    """Its evaluation would be the first that has it."""
    shorter = tiny_run(dataclasses.replace(CONFIG, total=Duration(9, 0, 0)))
    assert describe._sizes_of(shorter) == "4 from step 0, 12 from step 4, 8 from step 9, which this run does not reach"


def test_a_batch_is_that_of_a_run_of_its_size_alone(run):
    """Images, mixing and erasing, with everything on; whatever came before it in the stream."""
    whole = batches(run, 0, 12)
    assert [batch["image"].shape[1:3] for batch in whole] == [(size, size) for size in SIZES]
    for step in (0, 3, 4, 8, 9, 11):
        config = replace(replace(CONFIG, "data", image_size=SIZES[step]), "data", image_size_schedule="")
        for other in (tiny_run(config), run):
            (alone,) = batches(other, step, step + 1)
            jax.tree.map(np.testing.assert_array_equal, alone, whole[step])


@pytest.mark.long
def test_a_step_is_that_of_the_network_of_its_size(run):
    """But for the position embedding, which is resized: its gradient comes back to the grid of the run's own."""
    small = tiny_run(replace(replace(CONFIG, "data", image_size=4), "data", image_size_schedule=""))
    (batch,) = batches(run, 0, 1)
    state = run.first_state()
    positions = resize_positions(state.params["pos_embed"], 2, (2, 2), (1, 1))
    given = {path: jnp.array(value) for path, value in state.params.items()} | {"pos_embed": positions}
    expected, metrics = small.train_step()(small.first_state(given), batch, np.uint32(0), None)
    before = np.asarray(state.params["pos_embed"])
    state, found = run.train_step()(state, batch, np.uint32(0), None)
    np.testing.assert_allclose(found["loss"], metrics["loss"], rtol=1e-6)
    for path in ("cls_token", "blocks.0.attn.qkv.kernel", "head_dist.bias"):
        np.testing.assert_allclose(state.opt_state[0].mu[path], expected.opt_state[0].mu[path], rtol=1e-4, atol=1e-7)
    moments, theirs = (np.asarray(each.opt_state[0].mu["pos_embed"]) for each in (state, expected))
    assert moments.shape == before.shape
    # One patch in the middle of two by two: half a pixel from each, of which torch's bicubic makes a quarter.
    np.testing.assert_allclose(moments[:, :2], theirs[:, :2], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(moments[:, 2:], np.repeat(theirs[:, 2:] / 4, 4, axis=1), rtol=1e-4, atol=1e-7)


@pytest.mark.long
def test_with_fixed_positions_a_step_is_that_of_the_network_of_its_size():
    """To the last variable: there is nothing to resize, nor to train."""
    fields = {"model__name": "vit_small_patch16_gap_224", "distillation__token": False, "optim__weight_decay": 0.5}
    grown, small = (
        tiny_run(tiny_config(**fields, **data))
        for data in ({"data__image_size_schedule": "4@0,8@0.1"}, {"data__image_size": 4})
    )
    (batch,) = batches(grown, 0, 1)
    state, expected = grown.first_state(), small.first_state()
    assert "pos_embed" not in state.params
    assert state.params["blocks.0.attn.qkv.kernel"].shape == (24, 72)
    state, found = grown.train_step()(state, batch, np.uint32(0), None)
    expected, metrics = small.train_step()(expected, batch, np.uint32(0), None)
    jax.tree.map(np.testing.assert_array_equal, (state, found), (expected, metrics))


@pytest.mark.long
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_a_run_goes_on_exactly_across_the_switch(finished, tmp_path, monkeypatch, stop):
    """With everything on that the recipe has."""
    add = Monitor.add

    def add_and_interrupt(self, step, metrics):
        if step == stop:
            signal.raise_signal(signal.SIGTERM)
        add(self, step, metrics)

    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "add", add_and_interrupt)
        with pytest.raises(Interrupted, match=f"from step {stop} of 12"):
            train.train(CONFIG, tmp_path)
    assert train.train(CONFIG, tmp_path) == finished[1]
    rows, whole = (read_rows(path / "metrics.jsonl") for path in (tmp_path, finished[0]))
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in whole]
    arrays, theirs = (CheckpointDirectory(path / "checkpoints").meta(12)["arrays"] for path in (tmp_path, finished[0]))
    assert arrays == theirs


@pytest.mark.long
def test_the_header_tells_the_sizes(finished, capsys):
    train.train(CONFIG, finished[0])
    assert "image size    4 from step 0, 12 from step 4, 8 from step 9" in capsys.readouterr().out


def test_patches_have_to_divide_the_sizes():
    for spec, line in {
        "4@0,10@1": "10 .* patch size 4 of .*; take 8 or 12$",
        "3@0,8@1": "3 .* patch size 4 .*; take 4$",
    }.items():
        with pytest.raises(UserError, match=rf"^config\.data\.image_size_schedule: '{spec}': {line}"):
            tiny_run(tiny_config(data__image_size_schedule=spec))


@pytest.mark.long
def test_convolutional_networks_take_any_size():
    fields = dict.fromkeys(("patch_size", "width", "depth", "heads", "drop_path"), 0) | {"name": "regnety_002"}
    convnet = {f"model__{name}": value for name, value in fields.items()} | {"distillation__token": False}
    run = tiny_run(tiny_config(**convnet, data__image_size=40, data__image_size_schedule="33@0,40@0.1"))
    (batch,) = batches(run, 0, 1)
    state = jax.eval_shape(run.train_step(), run.target, batch, np.uint32(0), None)[0]
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, run.target)
