"""Whole runs in this process: files, resuming, interruption, rollbacks, refusals."""

import contextlib
import csv
import dataclasses
import functools
import json
import shutil
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import distilled_config, replace, tiny_config, tiny_run, write_random_weights, write_teacher

from deit_jax import parallel, precompute
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.config import resolve, schema
from deit_jax.config.resolve import to_dict
from deit_jax.config.schema import Duration
from deit_jax.models import training_flops
from deit_jax.parallel import peak
from deit_jax.run import learning, stream, train
from deit_jax.run.build import Run
from deit_jax.run.describe import describe_run
from deit_jax.run.evaluate import Evaluator, evaluate
from deit_jax.run.interrupt import Interrupted
from deit_jax.run.metrics import read_rows
from deit_jax.run.monitor import Monitor
from deit_jax.run.rollback import Rollbacks
from deit_jax.run.workdir import Workdir
from deit_jax.step import mixing
from deit_jax.step.state import init_state
from deit_jax.weights.orbax import CheckpointDirectory

CONFIG = tiny_config()
EXACT = ("train/loss", "train/grad_norm", "train/learning_rate", "eval/", "eval_ema/", "step")


WHOLE = {"skipped": 0, "rollbacks": 0, "corrupt_images": 0}  # what the result tells of a run that nothing befell

READ: set[tuple[type, str]] = set()  # (dataclass, field) of the config that the finished run has read


@contextlib.contextmanager
def reads_recorded():
    """Notes in `READ` the fields that are read outside of the door itself."""

    # The door itself, and the copies and comparisons that dataclasses make of all fields, use none of them.
    strangers = (resolve.__file__, schema.__file__, dataclasses.__file__, "<string>")

    def record(self, name):
        if sys._getframe(1).f_code.co_filename not in strangers:
            READ.add((type(self), name))
        return object.__getattribute__(self, name)

    with pytest.MonkeyPatch.context() as patch:
        for section in config_sections():
            patch.setattr(section, "__getattribute__", record)
        yield


def config_sections():
    return [kind for kind in vars(schema).values() if dataclasses.is_dataclass(kind)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 12 steps from start to end: its workdir and what it returned."""
    workdir = tmp_path_factory.mktemp("finished")
    with reads_recorded():
        return workdir, train.train(CONFIG, workdir)


def test_every_field_of_the_config_is_read(finished, tmp_path, monkeypatch):
    other = replace(CONFIG, "loss", kind="binary_cross_entropy")
    write_teacher(tmp_path / "teacher")
    taught = distilled_config(tmp_path / "teacher", distillation__kind="soft", erasing__probability=0.5, model__depth=1)
    # What a distilled run reads, it reads before its step is compiled.
    monkeypatch.setattr(Run, "jit_step", lambda run, step: lambda *given: jax.eval_shape(step, *given) and 1 / 0)
    with reads_recorded():
        learning.training_loss(other.loss, other.distillation, other.cosub)
        learning.optimizer_of(replace(CONFIG, "optim", name="sgd"), [])
        precompute.Recording(taught, "stream")
        with pytest.raises(ZeroDivisionError):
            train.train(taught, tmp_path / "run")
    leaves = {(section, field.name) for section in config_sections() for field in dataclasses.fields(section)}
    # Durations add their units up in a method of their own, in schema.py.
    assert {(section.__name__, name) for section, name in leaves - READ if section is not Duration} == set()


def exact_rows(workdir):
    """What must not depend on interruptions, of each row."""
    return [{k: v for k, v in row.items() if k.startswith(EXACT)} for row in read_rows(workdir / "metrics.jsonl")]


def final_state(workdir, step=12):
    with np.errstate(all="ignore"):
        return CheckpointDirectory(workdir / "checkpoints").meta(step)["arrays"]


def at_step(monkeypatch, step, act):
    """Runs `act` when the loop hands in the metrics of `step`."""
    add = Monitor.add

    def add_and_act(self, at, metrics):
        if at == step:
            act()
        return add(self, at, metrics)

    monkeypatch.setattr(Monitor, "add", add_and_act)


def test_what_a_run_leaves(finished):
    workdir, result = finished
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["step"] for row in rows if "eval/top1" in row] == [6, 12]
    last, best = rows[-1], max((row["eval_ema/top1"], row["step"]) for row in rows if "eval/top1" in row)[1]
    told = {"top1", "top5", "loss", "examples", "top1_cls", "top1_dist", "ema", "step", "last"}
    assert result.keys() == told | WHOLE.keys()
    assert {name: result[name] for name in WHOLE} == WHOLE
    assert result["examples"] == result["ema"]["examples"] == last["eval/examples"] == 360
    assert result["last"] == {"step": 12, "top1": last["eval_ema/top1"]}
    assert result["step"] == best
    assert (result["top1"], result["ema"]["loss"]) == (rows[best - 1]["eval/top1"], rows[best - 1]["eval_ema/loss"])
    assert {"train/images_per_second", "train/data_wait", "train/corrupt"} <= last.keys()
    assert json.loads((workdir / "config.json").read_text())["model"] == json.loads(
        json.dumps(to_dict(CONFIG)["model"])
    )
    run = json.loads((workdir / "run.json").read_text())
    assert (run["start_step"], run["total_steps"], run["devices"]) == (0, 12, 8)
    assert run["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    with (workdir / "per_class.csv").open() as file:
        assert sum(int(row["examples"]) for row in csv.DictReader(file)) == 360
    for picture in ("curves.png", "confusion.png"):
        with Image.open(workdir / picture) as image:
            assert min(image.size) > 300
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())[-2:] == [8, 12]


def test_evaluate_gives_what_the_run_gave(finished, monkeypatch, capsys):
    workdir, result = finished
    opened = stream.open_source

    def open_source(*, field, **given):
        assert field == "config.data.eval_split"
        return opened(field=field, **given)

    monkeypatch.setattr(stream, "open_source", open_source)
    top1 = {row["step"]: row["eval_ema/top1"] for row in read_rows(workdir / "metrics.jsonl") if "eval/top1" in row}
    best = max(top1, key=lambda step: (top1[step], step))
    ours = evaluate(CONFIG, workdir)
    assert (ours["step"], ours["ema"]["top1"]) == (best, top1[best])
    assert ours | WHOLE | {"last": result["last"]} == result
    assert (
        f"step {best}, the best (moving average): {top1[best]:.2f} % top-1 of 360 images\n" in capsys.readouterr().out
    )


def test_a_finished_run_only_tells_its_result(finished):
    workdir, result = finished
    before = (workdir / "metrics.jsonl").read_text()
    assert train.train(CONFIG, workdir) == result
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("every", "steps"), [((0, 1.0, 0), 10), ((0, 20.0, 0), 20), ((1, 0.0, 0), 1), ((0, 0.0, 64), 2)]
)
def test_small_data_are_neither_evaluated_nor_saved_at_every_step(every, steps):
    """Unless that is asked for. An epoch has one batch."""
    config = replace(CONFIG, "eval", every=Duration(*every))
    run = tiny_run(replace(config, "checkpoint", every=Duration(*every)), list("0123456789"))
    assert (run.eval_every, run.save_every) == (steps, steps)


@pytest.mark.long
def test_what_is_told_in_the_end_is_of_the_best_evaluation(tmp_path, monkeypatch, capsys):
    call = Evaluator.__call__

    def flattered(self, *given):
        results = call(self, *given)
        monkeypatch.setattr(Evaluator, "__call__", call)  # of step 6 alone
        results["eval_ema"].right = results["eval_ema"].seen.copy()
        return results

    monkeypatch.setattr(Evaluator, "__call__", flattered)
    result = train.train(CONFIG, tmp_path)
    last = read_rows(tmp_path / "metrics.jsonl")[-1]["eval_ema/top1"]
    assert (result["step"], result["ema"]["top1"], result["last"]) == (6, 100.0, {"step": 12, "top1": last})
    assert f"best          100.00 % top-1 at step 6, moving average; the last, step 12, has {last:.2f} %" in (
        capsys.readouterr().out
    )


def test_what_is_told_in_the_end_is_of_the_step_that_is_handed_on(finished, tmp_path, capsys):
    """Evaluated again, where it is the best of a start before."""
    shutil.copytree(finished[0], tmp_path / "run")
    CheckpointDirectory(tmp_path / "run" / "checkpoints").judge(8, 99.0)
    result = train.train(CONFIG, tmp_path / "run")
    out = capsys.readouterr().out
    assert "this run is finished; to train on, raise config.total" in out
    *_, best, of_best, of_run, after = out.splitlines()
    last = finished[1]["last"]["top1"]
    assert (result["step"], result["last"]) == (8, finished[1]["last"])
    told = f"{result['ema']['top1']:.2f} % top-1 at step 8, moving average; the last, step 12, has {last:.2f} %"
    assert best == f"best          {told}"
    assert of_best.startswith("of the best   confusion.png, per_class.csv, predictions.csv, and what predict")
    assert str(tmp_path / "run") in of_run
    assert after.endswith(f"python -m deit_jax.predict --weights={tmp_path / 'run'} PHOTO")
    tables = [(tmp_path / "run" / name).read_bytes() for name in ("per_class.csv", "predictions.csv")]
    assert tables[1] != (finished[0] / "predictions.csv").read_bytes()
    evaluated = evaluate(CONFIG, tmp_path / "run")
    assert evaluated | WHOLE | {"last": result["last"]} == result
    assert [(tmp_path / "run" / name).read_bytes() for name in ("per_class.csv", "predictions.csv")] == tables


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            replace(CONFIG, "optim", learning_rate=1e-5),
            r"config\.optim\.learning_rate: is 1e-05, the run in this workdir has 0\.01, and it decides how the "
            r"run was trained; it is finished, at step 12: .* another --workdir, to train on raise config\.total_steps",
        ),
        (dataclasses.replace(CONFIG, total=Duration(7, 0.0, 0)), r"config\.total_steps: is 7 steps, .* has 12; "),
        (replace(CONFIG, "ema", decay=0.5), r"config\.ema\.decay: is 0\.5, .* how the run was trained; it is finished"),
    ],
)
def test_a_finished_run_is_not_silently_another(finished, changed, message):
    before = (finished[0] / "config.json").read_bytes()
    with pytest.raises(UserError, match=message):
        train.train(changed, finished[0])
    assert (finished[0] / "config.json").read_bytes() == before


def test_a_run_that_is_shortened_may_have_jumped_beyond_its_end(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "rollbacks.json").write_text('[{"from": 8, "to": 10, "skipped": 2}]')
    with pytest.raises(UserError, match=r"config\.total_steps: is 7 steps, and the run in this workdir has 12"):
        train.train(dataclasses.replace(CONFIG, total=Duration(7, 0.0, 0)), tmp_path / "run")


def test_a_best_step_that_is_damaged_is_handed_on_by_nobody(finished, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    CheckpointDirectory(run / "checkpoints").judge(8, 99.0)
    shutil.rmtree(run / "checkpoints" / "8" / "state")
    result = train.train(CONFIG, run)
    assert result == finished[1] | {"step": 12} == finished[1]
    assert f"moved to {run / 'corrupt'}" in caplog.text
    assert (run / "corrupt" / "8").is_dir()
    assert CheckpointDirectory(run / "checkpoints").best() == 12


def test_what_trains_nothing_is_not_the_config_of_the_run(finished):
    before = (finished[0] / "config.json").read_bytes()
    assert train.train(replace(CONFIG, "checkpoint", keep=7), finished[0]) == finished[1]
    assert (finished[0] / "config.json").read_bytes() == before


def test_interrupted_run_goes_on_exactly(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted, match="from step 5 of 12"):
            train.train(CONFIG, tmp_path)
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: 1 / 0)  # a crash: the steps behind the last checkpoint are lost
        with pytest.raises(ZeroDivisionError):
            train.train(CONFIG, tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')
    assert train.train(CONFIG, tmp_path) == finished[1]
    assert exact_rows(tmp_path) == exact_rows(finished[0])
    assert final_state(tmp_path) == final_state(finished[0])
    assert json.loads((tmp_path / "run.json").read_text())["start_step"] == 6


@pytest.mark.long
def test_resume_on_another_mesh(finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Interrupted):
            train.train(CONFIG, tmp_path)
    train.train(replace(CONFIG, "mesh", fsdp=4), tmp_path)
    ours, theirs = read_rows(tmp_path / "metrics.jsonl"), read_rows(finished[0] / "metrics.jsonl")
    np.testing.assert_allclose([r["train/loss"] for r in ours], [r["train/loss"] for r in theirs], rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        (dataclasses.replace(CONFIG, seed=1), "config.seed"),
        (dataclasses.replace(CONFIG, batch_size=40), "config.batch_size"),
        (replace(CONFIG, "mixing", mixup=0.1), "config.mixing.mixup"),
        (replace(CONFIG, "model", depth=3), "config.model.depth"),
        (replace(CONFIG, "model", name="deit_tiny_patch16_224"), "config.model.name"),
        (replace(CONFIG, "ema", decay=0.0), "config.ema.decay"),
        (replace(CONFIG, "data", train_split="train[:1000]"), "config.data.train_split"),
    ],
)
def test_another_run_in_the_workdir_is_refused(finished, changed, field):
    before = (finished[0] / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=field):
        train.train(changed, finished[0])
    assert (finished[0] / "metrics.jsonl").read_text() == before


def test_changed_data_is_refused(finished, monkeypatch):
    source = stream.train_source(CONFIG)
    monkeypatch.setattr(train, "train_source", lambda config: source)
    monkeypatch.setattr(source, "fingerprint", "another")
    with pytest.raises(UserError, match=r"config\.data\.dir"):
        train.train(CONFIG, finished[0])


def test_what_may_change_is_announced(tmp_path, capsys):
    told = train._check_same_run(
        replace(CONFIG, "optim", learning_rate=0.5),
        {"data": 1, "card": {"class_names": []}, "jax": "0.12.0"},
        Workdir(tmp_path),
        {"data": 1, "card": {"class_names": []}, "jax": "0.10.2", "config": to_dict(CONFIG)},
    )
    assert told[0] == "optim.learning_rate: 0.01 -> 0.5"
    assert told[1].startswith("jax: 0.10.2 -> 0.12.0, which may draw other drop-path masks")
    assert len(told) == 2

    run, workdir = tiny_run(CONFIG), Workdir(tmp_path)
    state = run.first_state()
    for step, changes in ((0, []), (3, ["a"]), (5, ["b"]), (5, ["c"]), (8, [])):
        at = dataclasses.replace(state, step=np.int32(step))
        describe_run(run, run.source, workdir, at, [], changes)
        printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed since")]
        assert printed == [f"changed since the checkpoint: {change}" for change in changes]
    kept = json.loads((tmp_path / "run.json").read_text())["changes"]
    assert kept == [{"step": 3, "changes": ["a"]}, {"step": 5, "changes": ["c"]}]


def test_other_groups_than_were_asked_for_are_told(tmp_path, capsys):
    state = tiny_run(CONFIG).first_state()
    for asked, told in ((7, ["images mix in groups of 4, not 7, of which 32 is no multiple"]), (8, []), (64, [])):
        run = tiny_run(tiny_config(mixing__group=asked), list("ab"))
        describe_run(run, run.source, Workdir(tmp_path), state, [], [])
        notes = [line[14:] for line in capsys.readouterr().out.splitlines() if line.startswith("note ")]
        assert notes == told


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_for_accelerators_is_told_where_there_is_none(tmp_path, capsys, dtype):
    """As of `:hardware=tpu` where JAX has not found the TPU."""
    run = tiny_run(tiny_config(model__dtype=dtype))
    describe_run(run, run.source, Workdir(tmp_path), run.first_state(), ["another"], [])
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note ")]
    assert notes[0].endswith("another")
    assert [("JAX has found no accelerator" in note) for note in notes[1:]] == [True] * (dtype == "bfloat16")


def test_the_jax_of_a_checkpoint_that_does_not_tell_is_that_of_the_last_start(tmp_path):
    card = {"class_names": []}
    check = functools.partial(
        train._check_same_run,
        CONFIG,
        {"data": 1, "card": card, "jax": "0.12.0"},
        Workdir(tmp_path),
        {"data": 1, "card": card, "config": to_dict(CONFIG)},
    )
    for text, told in (("", "jax: unknown -> 0.12.0"), ('{"versions": {"jax": "0.10.2"}}', "jax: 0.10.2 -> 0.12.0")):
        (tmp_path / "run.json").write_text(text)
        assert told in check()[0]
    (tmp_path / "run.json").write_text('{"versions": {"jax": "0.12.0"}}')
    assert check() == []


def test_weights_alone_are_no_run_to_go_on_with(tmp_path):
    write_random_weights(CONFIG, list("0123456789"), tmp_path)
    with pytest.raises(UserError, match=r"--workdir: .*weights alone.*config\.init_from"):
        train.train(CONFIG, tmp_path)


@pytest.mark.long
def test_utilisation_is_told_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(peak, "MATMULS_CPU", (64, 2))
    run = tiny_run(replace(CONFIG, "log", utilisation="on"))
    assert run.image_seconds()(0) > 0
    assert tiny_run(CONFIG).image_seconds()(0) == 0  # auto: not on CPU
    monkeypatch.setattr(parallel, "matmul_peak", lambda *given: lambda: 1e9)
    twice = tiny_run(tiny_config(log__utilisation="on", cosub__weight=0.5))
    assert twice.image_seconds()(0) == 2 * run.image_seconds()(0)
    smaller = tiny_run(tiny_config(log__utilisation="on", data__image_size_schedule="4@0,8@1")).image_seconds()
    small, usual = (training_flops(tiny_run(tiny_config(data__image_size=size)).model) / 1e9 for size in (4, 8))
    assert [smaller(step) for step in (0, 43, 44, 45)] == [small, small, usual, usual]
    fields = dict.fromkeys(("patch_size", "width", "depth", "heads", "drop_path"), 0) | {"name": "regnety_002"}
    convnet = {f"model__{name}": value for name, value in fields.items()} | {"distillation__token": False}
    network = tiny_run(tiny_config(**convnet, log__utilisation="on"))
    assert network.image_seconds()(0) == training_flops(network.model) / 1e9 > 0


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--workdir: cannot write to .*file"):
        train.train(CONFIG, tmp_path / "file" / "run")


def poison(monkeypatch, steps):
    """The batches of these steps give a loss that is not finite."""
    draw = mixing.draw

    def poisoned(seed, step, **settings):
        mix = draw(seed, step, **settings)
        return {**mix, "label_weight": mix["label_weight"] * np.float32("nan")} if step in steps else mix

    monkeypatch.setattr(mixing, "draw", poisoned)


GUARDED = replace(replace(CONFIG, "guard", max_skipped=2, max_rollbacks=1), "checkpoint", every=Duration(3, 0.0, 0))


@pytest.mark.long
def test_a_burst_is_jumped_over_and_repeated_on_resume(tmp_path, monkeypatch):
    poison(monkeypatch, {6, 7})  # the steps that end as 7 and 8; the second is read when 9 is on its way
    train.train(GUARDED, tmp_path / "whole")
    jumps = json.loads((tmp_path / "whole" / "rollbacks.json").read_text())
    assert jumps == [{"from": 6, "to": 9, "skipped": 2}]
    rows = {row["step"]: row for row in read_rows(tmp_path / "whole" / "metrics.jsonl")}
    assert sorted(rows) == list(range(1, 13))
    assert rows[7]["train/loss"] is rows[8]["train/loss"] is None
    assert rows[11]["train/skipped_in_a_row"] == 0
    with monkeypatch.context() as patch:
        at_step(patch, 11, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train.train(GUARDED, tmp_path / "killed")
    train.train(GUARDED, tmp_path / "killed")
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["start_step"] == 9
    assert final_state(tmp_path / "killed") == final_state(tmp_path / "whole")


def test_gives_up_after_the_last_rollback(tmp_path, monkeypatch):
    poison(monkeypatch, set(range(4, 12)))
    with pytest.raises(
        UserError, match=r"not finite, 3 .* to step 9 \(stream positions 192 to 287\), after 1 roll"
    ) as told:
        train.train(GUARDED, tmp_path)
    assert told.value.alike


def test_jumps_from_later_steps_are_void(tmp_path):
    path = tmp_path / "rollbacks.json"
    path.write_text('[{"from": 3, "to": 5, "skipped": 7}, {"from": 6, "to": 9}]')
    state = init_state({}, {}, (), keep_ema=False)
    back = Rollbacks(Workdir(tmp_path), total=12, limit=2, batch_size=1).resume(
        dataclasses.replace(state, step=jnp.int32(3))
    )
    assert (int(back.step), int(back.skipped)) == (5, 7)
    assert json.loads(path.read_text()) == [{"from": 3, "to": 5, "skipped": 7}]
    assert int(Rollbacks(Workdir(tmp_path), total=12, limit=2, batch_size=1).resume(state).step) == 0
    assert json.loads(path.read_text()) == []


BAD_ROLLBACKS = [
    *("", "{", '["a"]', "5", "null", "\xff", "[[1]]", "[" * 9999, '{"from": 1, "to": 2}', '[{"from": 4}]'),
    *('[{"from": 4, "to": -7}]', '[{"from": 4, "to": 4}]', '[{"from": 4, "to": 1e3}]', '[{"from": true, "to": 3}]'),
    *('[{"from": 1, "to": 9}, {"from": 2, "to": 5}]', '[{"from": 1, "to": 13}]'),
]


@pytest.mark.parametrize("text", BAD_ROLLBACKS)
def test_rollbacks_of_another_form_are_one_line(tmp_path, text):
    (tmp_path / "rollbacks.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"rollbacks\.json: cannot be read: .*bring it back, or remove it"):
        Rollbacks(Workdir(tmp_path), total=12, limit=2, batch_size=1)


@pytest.mark.long
def test_a_burst_at_the_end_ends_with_the_state_gone_back_to(tmp_path, monkeypatch):
    poison(monkeypatch, {10, 11})
    result = train.train(GUARDED, tmp_path)
    assert json.loads((tmp_path / "rollbacks.json").read_text()) == [{"from": 9, "to": 12, "skipped": 2}]
    assert (result["skipped"], result["rollbacks"]) == (2, 1)
    assert train.train(GUARDED, tmp_path) == result
    assert evaluate(GUARDED, tmp_path)["examples"] == 360


def break_stream(monkeypatch, step, act):
    """Runs `act` where the loop waits for the batch of `step`."""
    wait_for = Monitor.wait_for

    def waiting(self, batches):
        if int(getattr(self, "waits", 0)) + 1 == step:
            act()
        self.waits = getattr(self, "waits", 0) + 1
        return wait_for(self, batches)

    monkeypatch.setattr(Monitor, "wait_for", waiting)


def fail(error):
    raise error


@pytest.mark.long
def test_a_stream_that_fails_costs_no_step(finished, tmp_path, monkeypatch):
    error = TryAgain("the disk is ill")
    with monkeypatch.context() as patch:
        break_stream(patch, 6, lambda: fail(error))
        with pytest.raises(type(error), match=str(error)):
            train.train(CONFIG, tmp_path)
    assert CheckpointDirectory(tmp_path / "checkpoints").steps() == [4, 5]
    assert train.train(CONFIG, tmp_path) == finished[1]
    assert exact_rows(tmp_path) == exact_rows(finished[0])
    assert final_state(tmp_path) == final_state(finished[0])


@pytest.mark.long
def test_a_run_that_waits_for_its_data_saves_and_ends(finished, tmp_path, monkeypatch):
    def hang():
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("the signal has not left the wait")

    with monkeypatch.context() as patch:
        break_stream(patch, 6, hang)
        with pytest.raises(Interrupted, match="from step 5 of 12"):
            train.train(CONFIG, tmp_path)
    assert json.loads((tmp_path / "checkpoints" / "5" / "meta" / "metadata").read_text())["progress"]["row"] is None
    assert train.train(CONFIG, tmp_path) == finished[1]


def test_a_signal_before_the_first_step_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "build", lambda *given: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train.train(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    "stops", [lambda: fail(ValueError("no evaluation")), lambda: signal.raise_signal(signal.SIGINT)]
)
def test_what_an_evaluation_raises_costs_no_training(finished, tmp_path, monkeypatch, stops):
    """Step 6 is saved before it is evaluated, and evaluated by the same command again: nothing differs."""
    with monkeypatch.context() as patch:
        call = Evaluator.__call__

        def failing(self, *given):
            stops()
            return call(self, *given)

        patch.setattr(Evaluator, "__call__", failing)
        with pytest.raises((ValueError, Interrupted)):
            train.train(CONFIG, tmp_path)
    assert 6 in CheckpointDirectory(tmp_path / "checkpoints").steps()
    assert train.train(CONFIG, tmp_path) == finished[1]
    assert exact_rows(tmp_path) == exact_rows(finished[0])
    saved = CheckpointDirectory(tmp_path / "checkpoints")
    assert saved.best() == CheckpointDirectory(finished[0] / "checkpoints").best()
    assert evaluate(CONFIG, tmp_path) == evaluate(CONFIG, finished[0])


@pytest.mark.long
def test_an_evaluation_that_was_done_is_not_done_for_another_step(tmp_path, monkeypatch):
    """A checkpoint keeps the row that its evaluation joined; what goes on from there has no more to do with it."""
    config = replace(replace(CONFIG, "eval", every=Duration(4, 0.0, 0)), "checkpoint", every=Duration(2, 0.0, 0))
    for step in (5, 7):
        with monkeypatch.context() as patch:
            at_step(patch, step, lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train.train(config, tmp_path)
    train.train(config, tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["step"] for row in rows if "eval/top1" in row] == [4, 8, 12]


def test_what_a_report_raises_costs_no_result(finished, tmp_path, monkeypatch, caplog):
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "curves.png").unlink()
    monkeypatch.setattr(train.plots, "save_curves", lambda *rest, **options: fail(ValueError("no picture")))
    assert train.train(CONFIG, tmp_path / "run") == finished[1]
    assert "curves.png is not drawn: no picture" in caplog.text


@pytest.mark.long
def test_curves_are_drawn_with_each_evaluation_and_a_published_one_over_the_steps_of_its_epochs(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        train.plots, "save_curves", lambda rows, path, **published: drawn.append((rows[-1]["step"], published))
    )
    train.train(replace(CONFIG, "eval", published_curve="deit3_small"), tmp_path)
    assert [step for step, _ in drawn] == [6, 12]
    for _, published in drawn:
        assert published["published"][:2] == [(44, 0.1), (6 * 44, 2.008)]  # 1,437 digits in batches of 32
        assert published["published"][-1] == (800 * 44, 81.376)
        assert published["label"] == "published, facebook's DeiT-III-S, 800 epochs at 224 px"


@pytest.mark.long
def test_a_full_disk_at_the_end_is_one_line_and_the_result(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("12"))
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointDirectory, "save", lambda *given: fail(OSError(28, "No space left on device")))
        with pytest.raises(train.Unsaved, match=r"step 12 could not be saved.*goes on from step 8") as caught:
            train.train(CONFIG, tmp_path / "run")
    told = caught.value.result  # of what the disk has
    assert (told["step"], told["last"], caught.value.alike) == (
        8,
        {"step": 12, "top1": finished[1]["ema"]["top1"]},
        True,
    )
    assert train.train(CONFIG, tmp_path / "run") == finished[1]


def test_an_evaluation_split_that_cannot_be_decoded_is_refused_before_the_first_step(tmp_path, monkeypatch):
    opened = stream.open_source

    def open_source(*, field, **given):
        source = opened(field=field, **given)
        if field == "config.data.eval_split":
            monkeypatch.setattr(source, "_images", [b"version https://git-lfs.github.com/spec/v1"] * len(source))
        return source

    monkeypatch.setattr(stream, "open_source", open_source)
    with pytest.raises(UserError, match=r"config\.data\.eval_split: 360 of its 360 images cannot be decoded"):
        train.train(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_evaluating_another_model_is_refused(finished):
    with pytest.raises(UserError, match=r"config\.model\.heads"):  # whose arrays have the same shapes
        evaluate(replace(CONFIG, "model", heads=4), finished[0])


def test_evaluation_needs_no_training_batch(finished):
    config = dataclasses.replace(CONFIG, batch_size=7)
    assert evaluate(config, finished[0])["examples"] == 360


def test_evaluating_a_damaged_checkpoint_is_one_line(finished, tmp_path):
    shutil.copytree(finished[0] / "checkpoints", tmp_path / "checkpoints")
    for step in (tmp_path / "checkpoints").iterdir():
        (step / "state" / "_METADATA").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        evaluate(CONFIG, tmp_path)


def cut_arrays(step):
    for file in (step / "state" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[:100])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(cut_arrays, id="cut arrays"),
        pytest.param(lambda step: (step / "meta" / "metadata").unlink(), id="no meta", marks=pytest.mark.long),
    ],
)
def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(finished, tmp_path, damage):
    """Which are done again, to the same bits."""
    shutil.copytree(finished[0], tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "12")
    assert train.train(CONFIG, tmp_path / "run") == finished[1]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["start_step"] == 8
    assert [path.name for path in (tmp_path / "run" / "corrupt").iterdir()] == ["12"]
    assert exact_rows(tmp_path / "run") == exact_rows(finished[0])
    assert final_state(tmp_path / "run") == final_state(finished[0])


def test_single_nan_is_skipped(tmp_path, monkeypatch):
    poison(monkeypatch, {3})
    train.train(GUARDED, tmp_path)
    assert not (tmp_path / "rollbacks.json").exists()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["train/skipped"] for row in rows] == [0, 0, 0] + [1] * 9
