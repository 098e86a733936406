"""Distilled runs: beside the teacher and with the recorded one, which have to be the same."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import EVERYTHING, EVERYTHING_FLAGS, distilled_config, replace, tiny_config, write_teacher

from deit_jax import parallel, precompute
from deit_jax.base.errors import UserError
from deit_jax.config.given import load_config
from deit_jax.config.resolve import resolve
from deit_jax.distill import expand
from deit_jax.distill.open import open_teacher
from deit_jax.distill.teaching import open_store, open_teaching
from deit_jax.run import train
from deit_jax.run.build import Run, build
from deit_jax.run.metrics import read_rows
from deit_jax.run.stream import eval_source, train_source

ROOT = Path(__file__).parents[2]
# The class head of an undistilled network learns from logits of erased images; the batch is cut in two.
USUAL = {
    "model__name": "deit_tiny_patch16_224",
    "model__depth": 1,
    "distillation__kind": "soft",
    "distillation__token": False,
    "distillation__alpha": 0.3,
    "distillation__tau": 3.0,
    "distillation__kl_reduction": "batchmean",
    "distillation__top_k": -1,
    "distillation__teacher__evaluate": False,
    "optim__accumulation": 2,
    "erasing__probability": 0.5,
}
KINDS = {
    "hard": {},
    "soft": USUAL,
    "growing": {**USUAL, "data__image_size_schedule": "4@0,8@0.1"},
    "everything": EVERYTHING,
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    write_teacher(folder)
    return folder


@pytest.fixture(scope="module")
def stores(teacher, tmp_path_factory):
    """A store of each kind, for the tiny run: made when it is asked for."""

    @functools.cache
    def made(kind):
        folder = tmp_path_factory.mktemp("stores") / kind
        precompute.Recording(distilled_config(teacher, **KINDS[kind]), "stream").write(folder)
        return folder

    return made


@pytest.fixture(scope="module")
def runs(teacher, stores, tmp_path_factory):
    """(workdir, result, teaching) of two kinds, co-run and recorded, when they are asked for."""

    @functools.cache
    def made(kind, how):
        config = distilled_config(teacher, **KINDS[kind])
        if how == "recorded":
            config = replace(config, "distillation", store=str(stores(kind)))
        return run(config, tmp_path_factory.mktemp("runs"))

    return made


def run(config, workdir):
    kept, open_teaching = [], train.open_teaching
    with pytest.MonkeyPatch.context() as patch:

        def opened(*arguments, **given):
            kept.append(open_teaching(*arguments, **given))
            return kept[0]

        patch.setattr(train, "open_teaching", opened)
        result = train.train(config, workdir)
    return workdir, result, kept[0]


def losses(workdir, name="loss"):
    return np.array([row[f"train/{name}"] for row in read_rows(workdir / "metrics.jsonl")])


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        ("soft", 1e-3),
        pytest.param("growing", 1e-3, marks=pytest.mark.long),
        # Equal to the bit with XLA's fusion emitters; the code of before, which the tests take, rounds some otherwise.
        pytest.param("everything", 1e-6, marks=pytest.mark.long),
    ],
)
def test_a_recorded_teacher_teaches_as_one_beside(runs, kind, tolerance):
    beside, recorded = (runs(kind, how)[0] for how in ("co-run", "recorded"))
    for name in ("loss", "loss_base", "loss_distillation", "grad_norm"):
        assert len(losses(beside, name)) == 12
        np.testing.assert_allclose(losses(recorded, name), losses(beside, name), rtol=tolerance)


@pytest.mark.parametrize("kind", ["soft", pytest.param("everything", marks=pytest.mark.long)])
def test_every_weighted_term_is_logged(runs, kind):
    workdir = runs(kind, "co-run")[0]
    base, distillation = losses(workdir, "loss_base"), losses(workdir, "loss_distillation")
    assert (base > 0.1).all()
    assert (distillation > 0.1).all()
    np.testing.assert_allclose(base + distillation, losses(workdir), rtol=1e-6)


def test_the_teacher_stays_as_it_is(runs, teacher):
    variables = runs("soft", "co-run")[2].variables
    for path, value in open_teacher(distilled_config(teacher), list("0123456789")).variables.items():
        np.testing.assert_array_equal(variables[path], value)


@pytest.mark.long
def test_both_heads_are_evaluated_or_the_only_one(runs):
    assert {"top1", "top1_cls", "top1_dist"} <= runs("everything", "co-run")[1].keys()
    assert not {"top1_cls", "top1_dist"} & runs("soft", "co-run")[1].keys()


def test_the_teachers_accuracy_is_told_before_training(teacher, tmp_path, capsys, monkeypatch):
    config = distilled_config(teacher)
    monkeypatch.setattr(Run, "batches", lambda *arguments: (row for row in ()))
    with pytest.raises(StopIteration):
        train.train(config, tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "the teacher has" in line]
    told = float(line.partition("the teacher has ")[2].partition(" %")[0])
    source = eval_source(config, None)
    asked = open_teacher(config, source.class_names)
    images = np.stack([np.stack([source[i].image] * 3, -1) for i in range(len(source))])
    said = np.argmax(jax.jit(asked)(asked.variables, images / np.float32(255)), axis=1)
    right = np.mean([said[i] == source[i].label for i in range(len(source))])
    assert told == pytest.approx(100 * right, abs=0.01)
    assert right > 0.6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mixing__mixup": 0.1}, r"mixing\.mixup is 0\.1, recorded with 0\.8"),
        ({"seed": 4, "data__flip": 0.5}, r"seed is 4, recorded with 0; data\.flip is 0\.5, recorded with 0\.0"),
        ({"total_steps": 13}, r"has 384 rows, the run needs 416"),
        ({"distillation__kind": "soft"}, r"config\.distillation\.kind: is soft, and .* best class alone"),
        ({"distillation__teacher__image_size": 16}, r"distillation\.teacher\.image_size is \[16, 16\]"),
        ({"distillation__teacher__weights": "gone"}, r"gone: .*leave .*teacher\.name and \.weights empty"),
        ({"distillation__store": "nowhere"}, "nowhere is no store"),
    ],
)
def test_a_store_of_another_run_leaves_nothing_behind(teacher, stores, tmp_path, fields, message):
    config = distilled_config(teacher, **{"distillation__store": str(stores("hard"))} | fields)
    with pytest.raises(UserError, match=message):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_store_alone_will_do(stores):
    config = tiny_config(distillation__kind="hard", distillation__store=str(stores("hard")))
    teaching = open_teaching(config, train_source(config), parallel.make_mesh(), rows=384)
    assert teaching.store is not None


def test_a_soft_recording_serves_a_hard_run_by_its_labels(stores, teacher):
    usual = distilled_config(teacher, **USUAL | {"distillation__store": str(stores("soft"))})
    source, some = train_source(usual), (np.arange(32), np.zeros(32, int))
    rows = open_store(replace(usual, "distillation", kind="hard"), source, 384).read(*some)
    assert rows.keys() == {"labels"}
    logits = expand(open_store(usual, source, 384).read(*some), 10)
    np.testing.assert_array_equal(rows["labels"], np.argmax(logits, axis=-1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model__name": "deit_tiny_patch16_224", "distillation__token": True},
            "1 head.*set it to False, or config.mod",
        ),
        ({"distillation__token": False}, "2 head.*set it to True, or config.model.name to a model without"),
    ],
)
def test_a_token_that_the_model_lacks_says_both_mends(teacher, tmp_path, fields, message):
    with pytest.raises(UserError, match=r"config\.distillation\.token: .*" + message):
        train.train(distilled_config(teacher, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Long ones.

MESHES = {"one": (1, 1, 1), "data": (8, 1, 1), "fsdp": (2, 4, 1)}


@pytest.mark.long
def test_meshes_of_eight_devices_and_recordings_give_the_losses_of_one(teacher, tmp_path):
    """Over 30 steps, with micro-batches."""
    fields = {"total_steps": 30, "optim__accumulation": 2, "data__image_size": 12}
    config = distilled_config(teacher, **fields)
    source, seed = train_source(config), np.uint32(0)
    precompute.Recording(config, "stream").write(tmp_path / "store")
    told = {}
    for name, shape in MESHES.items():
        mesh = parallel.make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
        for how in ("co-run", "recorded"):
            given = replace(config, "distillation", store=str(tmp_path / "store") if how == "recorded" else "")
            teaching = open_teaching(given, source, mesh, rows=30 * 32)
            run = build(given, mesh, source)
            state, step = run.first_state(), run.train_step(teaching.logits)
            told[name, how] = []
            for batch, _ in run.batches(0, 30, teaching.store):
                state, metrics = step(state, batch, seed, teaching.variables)
                told[name, how].append(float(metrics["loss"]))
    for way, values in told.items():
        np.testing.assert_allclose(values, told["one", "co-run"], rtol=1e-5, err_msg=str(way))


@pytest.mark.long
def test_a_bfloat16_teacher_says_the_same(tmp_path):
    """At least 99.9 % of its labels on the stream of the quickstart, after three quarters of its training."""
    quickstart = "configs/quickstart.py:hardware=cpu"
    fields = ["--config.total_epochs=60", "--config.log.progress=False"]
    # Thousands of steps: here it is compiling without optimisation that would take long.
    trained = start("main", f"--config={quickstart}", *fields, f"--workdir={tmp_path}", XLA_FLAGS="")
    assert finish(trained)["ema"]["top1"] > 97
    given = load_config(str(ROOT / quickstart))
    given.model.name = "deit_tiny_distilled_patch16_224"
    given.distillation.update(kind="hard", token=True)
    given.distillation.teacher.update(name="deit_tiny_patch16_224", weights=str(tmp_path))
    said = {}
    for dtype in ("float32", "bfloat16"):
        given.model.dtype = dtype
        rows = precompute.Recording(resolve(given), "stream").rows(0, 100, 0)
        said[dtype] = np.concatenate([batch["labels"] for batch in rows])
    assert len(said["float32"]) == 6400
    same = np.mean(said["bfloat16"] == said["float32"])
    assert same >= 0.999, same


def flags(teacher, *more):
    """The tiny digits of configs/quickstart.py, with a teacher."""
    fields = {
        "model.name": "deit_tiny_distilled_patch16_224",
        **{"model.width": 24, "model.depth": 2, "model.heads": 3, "model.patch_size": 4, "data.image_size": 8},
        **{"total_steps": 240, "batch_size": 16, "ema.decay": 0.9, "log.progress": False},
        **{"log.every_steps": 3, "eval.every_steps": 80, "checkpoint.every_steps": 20},
        **{"distillation.kind": "hard", "distillation.token": True},
        **{"distillation.teacher.name": "deit_tiny_patch16_224", "distillation.teacher.weights": teacher},
    }
    return ["--config=configs/quickstart.py", *(f"--config.{name}={value}" for name, value in fields.items()), *more]


def start(command, *arguments, **variables):
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"} | variables
    return subprocess.Popen(
        [sys.executable, "-m", f"deit_jax.{command}", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def kill_when(process, reached):
    while process.poll() is None and not reached():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.long
def test_killed_recordings_and_trainings_equal_the_undisturbed(teacher, tmp_path):
    arguments = [*flags(teacher), "--config.total_steps=2000", "--config.distillation.kind=soft"]
    finish(start("precompute", *arguments, f"--output={tmp_path / 'whole'}"))
    folder = tmp_path / "killed"
    kill_when(start("precompute", *arguments, f"--output={folder}"), (folder / "store.json").exists)
    for chunks in (2, 5):
        done = folder / "done"
        kill_when(
            start("precompute", *arguments, f"--output={folder}"),
            lambda done=done, chunks=chunks: done.is_dir() and len([*done.iterdir()]) >= chunks,
        )
    result = finish(start("precompute", *arguments, f"--output={folder}"))
    assert 0 < result["recorded"] < result["rows"] == 2000 * 16
    files = {
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and "store.json." not in path.name
    }
    for path in files:
        assert (folder / path).read_bytes() == (tmp_path / "whole" / path).read_bytes(), path
    assert finish(start("precompute", *arguments, f"--output={folder}", "--check"))["same_labels"] == 100

    for kind, tolerance in (("hard", 1e-6), ("soft", 1e-3)):
        run = [*flags(teacher), f"--config.distillation.kind={kind}"]
        beside, recorded = tmp_path / kind / "beside", tmp_path / kind / "recorded"
        finish(start("main", *run, f"--workdir={beside}"))
        run += [f"--config.distillation.store={folder}", f"--workdir={recorded}"]
        for step in (50, 190):
            kill_when(start("main", *run), lambda recorded=recorded, step=step: rows_reach(recorded, step))
        finish(start("main", *run))
        assert json.loads((recorded / "run.json").read_text())["start_step"] > 50
        assert len(losses(beside)) == len(losses(recorded)) == 82
        np.testing.assert_allclose(losses(recorded), losses(beside), rtol=tolerance)


SEVERAL = """
import sys
import jax

process, processes, port, *arguments = sys.argv[1:]
if int(processes) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
from deit_jax import precompute

precompute.CHUNKS = 6
precompute.main(arguments)
"""


@pytest.mark.long
def test_several_processes_record_what_one_does(teacher, tmp_path):
    """Of images that everything was done to, and that are mixed across the processes."""
    flags_of_all = flags(teacher, *EVERYTHING_FLAGS, "--config.mixing.group=4")

    def record(processes):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        # Devices make the rows of a batch in turn: two for one process, one for each of two.
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(2 // processes)}
        command = [sys.executable, "-c", SEVERAL]
        arguments = [str(processes), port, *flags_of_all, f"--output={tmp_path / str(processes)}"]
        started = [
            subprocess.Popen([*command, str(process), *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE)
            for process in range(processes)
        ]
        said = [process.communicate()[0] for process in started]
        assert [process.returncode for process in started] == [0] * processes
        return json.loads(said[0].splitlines()[-1])["recorded"]

    def files(folder):
        return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    rows = record(1)
    assert record(2) == rows
    one = files(tmp_path / "1")
    assert len([path for path in one if path.parent.name == "done"]) == 6
    assert files(tmp_path / "2") == one
    # Each looks at a half of the chunks: what is damaged in either is recorded anew by both together.
    for chunk in (1, 2):
        (tmp_path / "2" / "labels" / "c" / str(chunk)).write_bytes(b"damaged")
    assert 0 < record(2) < rows
    assert files(tmp_path / "2") == one


def rows_reach(workdir, step):
    rows = read_rows(workdir / "metrics.jsonl")
    return bool(rows) and rows[-1]["step"] >= step
