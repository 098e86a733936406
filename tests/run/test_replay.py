"""What a replay names: faults planted in weights and batches, one by one, and what training computed of them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from endings import end
from flax import nnx
from tiny import distilled_config, replace, tiny_config, tiny_run, write_teacher, write_weights

from deit_jax import main, parallel
from deit_jax.base.errors import UserError
from deit_jax.config.resolve import to_dict
from deit_jax.distill.teaching import open_teaching
from deit_jax.models import bind
from deit_jax.models.convolution import ConvNorm
from deit_jax.parallel import Exchange
from deit_jax.run import faults
from deit_jax.run import replay as replays
from deit_jax.run.build import Run, build, open_mesh
from deit_jax.run.failures import Failures
from deit_jax.run.interrupt import Interrupt
from deit_jax.run.layers import Watch
from deit_jax.run.monitor import Monitor
from deit_jax.run.replay import _computed, replay
from deit_jax.run.stream import train_source
from deit_jax.run.workdir import Workdir

HUGE = np.float32(3e38)
ALTERNATING = lambda old: np.resize([HUGE, -HUGE], old.shape)  # noqa: E731, whose mean is finite
STEP = 5
UNMIXED = {"mixing__mixup": 0.0, "mixing__cutmix": 0.0}
# Black is 0 and white 1: a huge weight overflows where an image is white, and nowhere else.
PLAIN = {"data__mean": (0.0, 0.0, 0.0), "data__std": (1.0, 1.0, 1.0), "model__drop_path": 0.0}
# Of a network whose layers are all alike except for what a test changes.
PLAIN_DEIT = {"model__name": "deit_tiny_patch16_224", "distillation__token": False}


def one_device(config):
    """A step by itself needs no more, and compiles in a third of the time."""
    return parallel.make_mesh(1, devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    monkeypatch.setattr(replays, "open_mesh", one_device)


@functools.cache
def run_of(**fields) -> Run:
    config = tiny_config(**fields)
    return build(config, one_device(config), train_source(config))


def keep(run, workdir, *, batch=None, **params):
    """Keeps step 5 of a run, as if it had been skipped, with some parameters set to a value or changed by a function.

    Returns:
        The state before it, and its batch.
    """
    state, given = run.first_state(), next(run.batches(STEP - 1, STEP))[0] | (batch or {})
    changed = {path.replace("__", "."): value for path, value in params.items()}
    for path, value in changed.items():
        old = state.params[path]
        new = value(np.array(old)) if callable(value) else np.full(old.shape, value, old.dtype)
        changed[path] = jax.device_put(jnp.asarray(new, old.dtype), old.sharding)
    state = dataclasses.replace(state, params=state.params | changed, step=state.step + (STEP - 1))
    after = dataclasses.replace(state, step=state.step + 1, skipped_in_a_row=state.skipped_in_a_row + 1)
    monitor = Monitor(None, Exchange(run.mesh), Interrupt(), start=0, total=12, log_every=1, batch_size=32)
    monitor.failed = (STEP, 1)
    meta = {"config": to_dict(run.config), "card": run.card.to_json()}
    Failures(Workdir(workdir), run, meta).look(STEP, given, after, monitor)
    return state, given


def found(run, workdir, **changes):
    keep(run, workdir, **changes)
    return replay(run.config, workdir, STEP, "cpu")


FAULTS = {
    "a layer": ({}, {"blocks__1__mlp__fc1__kernel": HUGE}, "blocks.1.mlp.fc1"),
    "the first of two": (
        {},
        {"blocks__1__mlp__fc1__kernel": HUGE, "blocks__0__norm2__scale": HUGE},
        "blocks.0.norm2",
    ),
    "what is computed between layers": ({}, {"blocks__0__attn__qkv__kernel": 1e30}, "blocks.0.attn"),
    "the sum around a branch": ({}, {"blocks__0__attn__proj__bias": ALTERNATING, "cls_token": ALTERNATING}, "blocks.0"),
    "the sum before the first block": ({}, {"patch_embed__proj__bias": HUGE, "pos_embed": HUGE}, "model"),
    "a head": ({}, {"head__kernel": HUGE}, "head"),
    "the loss": ({}, {"head__bias": lambda old: np.where(np.arange(10) == 3, HUGE, -HUGE)}, "loss"),
    "the norm of finite gradients": ({}, {"head__kernel": lambda old: old * 1e25}, "grad_norm"),
    "bfloat16, rematerialised, in micro-batches": (
        {
            "model__dtype": "bfloat16",
            "model__remat": True,
            "optim__accumulation": 2,
            "optim__gradient_dtype": "bfloat16",
        },
        {"blocks__1__mlp__fc1__kernel": HUGE},
        "blocks.1.mlp.fc1",
    ),
    "copies": ({"cosub__weight": 0.5, "model__drop_path": 0.3}, {"blocks__0__attn__qkv__bias": HUGE}, "blocks.0.attn"),
}


@pytest.mark.parametrize(
    ("fields", "changes", "first"),
    [
        pytest.param(*fault, id=name, marks=[] if name in ("a layer", "the loss") else pytest.mark.long)
        for name, fault in FAULTS.items()
    ],
)
def test_the_first_fault_is_named(fields, changes, first, tmp_path, capsys):
    run = run_of(**PLAIN_DEIT | {"model__drop_path": 0.0} | fields)
    result = found(run, tmp_path, **changes)
    assert result["first"] == first
    assert not result["finite"]
    assert not (np.isfinite(result["loss"]) and np.isfinite(result["grad_norm"]))
    assert ("the model itself" if first == "model" else first) in capsys.readouterr().out
    if first == "grad_norm":
        assert result["rows"] == []
    else:
        assert len(result["rows"]) == 32 // run.config.optim.accumulation  # it is the weights' fault
        assert len(result["examples"]) == 16


@pytest.mark.long
def test_what_went_in_and_which_examples_by_hand(tmp_path):
    """One image is white and the others are black; 48 inputs of 1 times a huge weight are beyond float32."""
    run = run_of(**PLAIN_DEIT, **PLAIN, **UNMIXED, optim__accumulation=2)
    images = np.zeros((32, 8, 8, 3), np.uint8)
    images[[9, 22]] = 255
    source, index = run.source, np.arange(100, 132)
    batch = {"image": images, "index": index.astype(np.int32)}
    sharding = next(run.batches(0, 1))[0]["image"].sharding
    batch = {name: jax.device_put(value, sharding) for name, value in batch.items()}
    result = found(run, tmp_path, batch=batch, patch_embed__proj__kernel=1e37)
    assert result["first"] == "patch_embed"
    assert result["largest_input"] == 1.0
    assert result["largest_parameter"] == np.float32(1e37)
    # The first of two micro-batches has the even rows.
    assert result["rows"] == [22]
    assert result["examples"] == [{"row": 22, "example": 122, "name": source.name(122)}]
    assert result["updates_since"] == 0


def test_the_partner_of_a_mixed_row_is_named(tmp_path):
    run = run_of(**PLAIN_DEIT, model__drop_path=0.0)
    result = found(run, tmp_path, head__kernel=HUGE)
    # Groups of eight rows, in reverse.
    assert [example["mixed_with"] for example in result["examples"][:9]] == [7, 6, 5, 4, 3, 2, 1, 0, 15]


@pytest.mark.long
def test_a_gradient_is_named_with_the_examples_that_it_comes_of(tmp_path):
    """The head is sure of class 3: its examples have no gradient at all. In the last MLP nothing is active, so that
    the forward pass does not see the weights of fc2, in which all other gradients overflow, to be NaN times 0 behind.
    """
    run = run_of(**PLAIN_DEIT, **PLAIN, **UNMIXED, mixing__label_smoothing=0.0)
    changes = {
        "head__kernel": lambda old: 1e8 * old,
        "head__bias": lambda old: np.where(np.arange(10) == 3, 1e12, 0),
        "blocks__1__mlp__fc1__bias": -100.0,
        "blocks__1__mlp__fc2__kernel": 1e38,
    }
    _, batch = keep(run, tmp_path, **changes)
    result = replay(run.config, tmp_path, STEP, "cpu")
    assert np.isfinite(result["loss"])
    assert result["first"] == "gradient of blocks.1.mlp.fc1.bias"
    assert result["largest_parameter"] == 100
    assert 0 < result["largest_input"] < np.inf
    others = np.flatnonzero(np.asarray(batch["label"]) != 3).tolist()
    assert 0 < len(others) < 32
    assert result["rows"] == others


@pytest.mark.parametrize(
    "fields",
    [
        {"optim__accumulation": 2, "model__remat": True, **PLAIN_DEIT},
        {"cosub__weight": 0.5, **PLAIN_DEIT},
    ],
    ids=["accumulation", "copies"],
)
@pytest.mark.long
def test_layer_by_layer_the_loss_is_the_compiled_one(fields, tmp_path, monkeypatch):
    """With stochastic depth and mixing: the same keys, rows and arguments."""
    run = run_of(**fields)
    state, batch = keep(run, tmp_path)
    teaching = open_teaching(run.config, run.source, run.mesh, rows=0)
    compiled, norm, magnitudes = _computed(run, teaching, state, batch)
    seen = []
    monkeypatch.setattr(
        Watch, "stage", lambda self, name, given, out, **more: seen.append(out) if name == "loss" else None
    )
    assert faults.first_fault(run, teaching, state, batch, {}) is None
    assert len(seen) == run.config.optim.accumulation
    np.testing.assert_allclose(np.mean(seen), compiled, rtol=1e-6)
    assert magnitudes.keys() == run.rates.keys()
    if run.config.optim.accumulation > 1:  # and that is training's
        whole = dataclasses.replace(run.first_state(), step=state.step)
        _, metrics = run.train_step()(whole, batch, np.uint32(0))
        np.testing.assert_allclose([compiled, norm], [metrics["loss"], metrics["grad_norm"]], rtol=1e-6)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher")
    return workdir, write_teacher(workdir)


@pytest.mark.long
def test_a_teacher_comes_before_the_layers(teacher, tmp_path):
    config = distilled_config(teacher[0])
    run = build(config, one_device(config), train_source(config))
    result = found(run, tmp_path / "run", head__kernel=HUGE)
    assert result["first"] == "head"
    of_teacher = tiny_run(teacher[1])
    variables = jax.device_get(of_teacher.first_state().params)
    # Each row overflows: by the kernel alone it would be HUGE times a sum that the norm makes about 0.
    variables["head.kernel"] = np.full_like(variables["head.kernel"], HUGE)
    variables["fc_norm.bias"] = np.ones_like(variables["fc_norm.bias"])
    write_weights(teacher[1], of_teacher.source.class_names, tmp_path / "huge", variables)
    config = replace(run.config, "distillation", teacher=dataclasses.replace(
        run.config.distillation.teacher, weights=str(tmp_path / "huge")
    ))  # fmt: skip
    result = replay(config, tmp_path / "run", STEP, "cpu")
    assert result["first"] == "teacher"
    assert result["largest_input"] == pytest.approx(1, abs=0.01)  # images in [0, 1]
    assert len(result["rows"]) == 32


@pytest.mark.long
def test_a_recorded_teacher_is_kept_with_the_batch(tmp_path):
    run = run_of(distillation__kind="soft", distillation__store=str(tmp_path / "nowhere"))
    values = np.zeros((32, 10), np.float32)
    values[7] = np.nan
    sharding = next(run.batches(0, 1))[0]["image"].sharding
    taught = {"values": jax.device_put(values, sharding)}
    result = found(run, tmp_path / "run", batch={"teacher": taught})
    assert (result["first"], result["rows"]) == ("teacher", [7])


def test_the_data_stay_closed_and_the_batch_is_as_it_was(tmp_path, monkeypatch):
    run = run_of(**PLAIN_DEIT)
    state, batch = keep(run, tmp_path, batch={"mix": next(run.batches(3, 4))[0]["mix"]})
    monkeypatch.setattr("deit_jax.run.stream.open_source", lambda **given: 1 / 0)
    result = replay(run.config, tmp_path, STEP, "cpu")
    teaching = open_teaching(run.config, run.source, run.mesh, rows=0)
    assert (result["loss"], result["grad_norm"]) == tuple(map(float, _computed(run, teaching, state, batch)[:2]))
    assert (result["finite"], result["first"]) == (True, None)


@pytest.mark.long
def test_the_type_is_the_runs_and_another_mesh_may_replay(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(replays, "open_mesh", open_mesh)
    run = run_of(**PLAIN_DEIT, model__dtype="bfloat16")
    keep(run, tmp_path)
    auto = replace(replace(run.config, "model", dtype="auto"), "mesh", fsdp=4)  # of eight devices
    assert replay(auto, tmp_path, STEP, "cpu")["finite"]
    assert "differs from the run: mesh.fsdp: 1 -> 4\n" in (told := capsys.readouterr().out)
    assert "dtype" not in told
    assert replay(replace(run.config, "model", dtype="float32"), tmp_path, STEP, "cpu")["finite"]
    assert "differs from the run: model.dtype: 'bfloat16' -> 'float32'" in capsys.readouterr().out


def test_another_run_is_refused(tmp_path):
    keep(run_of(**PLAIN_DEIT), tmp_path)
    with pytest.raises(UserError, match=r"config\.model\.depth"):
        replay(run_of(**PLAIN_DEIT, model__depth=3).config, tmp_path, STEP, "cpu")


CONFIG_FILE = """
from ml_collections import ConfigDict
from tiny import tiny_config
from deit_jax.config.resolve import to_dict

def get_config():
    return ConfigDict(to_dict(tiny_config(**FIELDS)))
"""


def test_the_command_ends_with_json(tmp_path):
    fields = PLAIN_DEIT | {"model__drop_path": 0.0}
    (tmp_path / "config.py").write_text(CONFIG_FILE.replace("FIELDS", repr(fields)))
    keep(run_of(**fields), tmp_path / "run", head__kernel=HUGE)
    arguments = [f"--config={tmp_path}/config.py", f"--workdir={tmp_path}/run"]
    ending = end(main.main, [*arguments, "--mode=replay", f"--step={STEP}"])
    assert (ending.status, ending.fault()) == (0, "")
    result = json.loads(ending.out.splitlines()[-1])
    assert (result["first"], result["loss"], result["largest_parameter"]) == ("head", None, float(HUGE))
    for more, says in {
        ("--mode=replay",): "--step: missing, which of those in .*; kept are 5",
        ("--mode=replay", "--step=7"): "--step: 7 is not kept in .*; kept are 5",
        ("--mode=replay", "--step=7", f"--workdir={tmp_path}/other"): "--step: 7 is not kept in .*; none is",
        ("--step=7",): "--step: is for --mode=replay; leave it out, or set --mode=replay",
    }.items():
        ending = end(main.main, [*arguments, *more])
        assert (ending.status, ending.fault()) == (2, "")
        assert_matches(says, ending.err)


def assert_matches(pattern, text):
    with pytest.raises(UserError, match=pattern):
        raise UserError(text)


def test_layers_are_watched_in_the_order_of_their_calls():
    run = run_of(**PLAIN_DEIT)
    state, batch = run.first_state(), next(run.batches(0, 1))[0]
    watch = Watch()
    images = run.normalize(batch["image"])
    with jax.disable_jit():
        watch.over(bind(run.model, state.params), images).head_logits(images)
    parts = ("norm1", "attn", "attn.proj", "norm2", "mlp", "mlp.fc1", "mlp.fc2")  # attention itself multiplies by qkv
    blocks = [f"blocks.{i}{name and '.'}{name}" for i in range(2) for name in ("", *parts)]
    assert watch.order == ["patch_embed", *blocks, "norm", "head"]
    assert watch.fault is None


def test_a_convolutions_layers_are_watched_too():
    layer = ConvNorm(3, 5, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.bn.scale[...] = jnp.full(5, HUGE)
    images = jnp.ones((2, 7, 7, 3)).at[0].set(0)  # of which nothing is left to be scaled, by the stored statistics
    watch = Watch()
    watch.over(layer, images)(images, train=False)
    assert (watch.order, watch.fault.first) == (["conv", "bn"], "bn")
    assert watch.fault.rows.tolist() == [False, True]
    assert watch.fault.largest_parameter == HUGE
