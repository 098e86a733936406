"""Runs of several processes equal those of one, go on on any other number of devices, and end together."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from processes import FLAGS, PATIENCE, ROOT, TOTAL, a_port, children, losses, run, send_at
from tiny import write_teacher

from deit_jax.base.storage import here, place
from deit_jax.run.metrics import read_rows
from deit_jax.weights.orbax import CheckpointDirectory

# processes, devices of each
ONE, EIGHT, TWO, FOUR = (1, 1), (1, 8), (2, 4), (4, 2)
DATA, FSDP2, FSDP4, TENSOR = [], ["--config.mesh.fsdp=2"], ["--config.mesh.fsdp=4"], ["--config.mesh.tensor=2"]
CONSTANT = ["--config.optim.schedule=constant"]
FAULTS = [*CONSTANT, "--step_timeout=20", "--config.total_steps=4000", "--config.eval.every_steps=2000"]
HOST = socket.gethostname()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("teacher")
    write_teacher(workdir)
    return workdir


@pytest.fixture(scope="module")
def teaching(teacher):
    """Flags that choose what a run learns from, by name."""
    named = ["--config.distillation.teacher.name=deit_tiny_patch16_224"]
    hard = ["--config.distillation.kind=hard", *named, f"--config.distillation.teacher.weights={teacher}"]
    return {"plain": [], "hard": hard, "recorded": [*hard, f"--config.distillation.store={teacher / 'store'}"]}


@pytest.fixture(scope="module")
def runs(teacher, teaching, tmp_path_factory):
    """What trains one of the runs to its end, once, and gives its workdir."""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def train(shape, mesh, kind):
        key = (shape, tuple(mesh), kind)
        if key not in done:
            done[key] = root / str(len(done))
            if kind == "recorded" and not (store := teacher / "store").exists():
                ended = run(2, 2, [*FLAGS, *teaching["hard"], f"--output={store}"], module="deit_jax.precompute")
                assert ended.status == 0, ended.err
            flags = [*FLAGS, "--config.checkpoint.every_steps=30", *mesh, *teaching[kind]]
            ended = run(*shape, [*flags, f"--workdir={done[key]}"])
            assert ended.status == 0, ended.err
            assert ended.result["examples"] == 360
        return done[key]

    return train


def facts_of(workdir):
    return json.loads((workdir / "run.json").read_text())


def check_equal(many, one):
    """Losses of every step, and what the evaluations count, are those of one device."""
    rows = read_rows(many / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, TOTAL + 1))
    np.testing.assert_allclose(losses(many), losses(one), rtol=1e-5)
    counted = [name for name in rows[-1] if name.startswith("eval") and not name.endswith("loss")]
    assert len(counted) == 10  # of both sets of weights
    for row, other in zip(rows, read_rows(one / "metrics.jsonl"), strict=True):
        assert {name: row.get(name) for name in counted} == {name: other.get(name) for name in counted}


def test_two_processes_of_four_devices(runs):
    """Cut over fsdp, taught by a hard teacher beside them."""
    one, many = runs(ONE, DATA, "hard"), runs(TWO, FSDP4, "hard")
    check_equal(many, one)
    assert all((many / name).exists() for name in ("curves.png", "confusion.png", "per_class.csv", "predictions.csv"))
    assert (facts_of(many)["processes"], facts_of(many)["devices"]) == (2, 8)
    assert facts_of(many)["parameter_bytes_per_device"] <= 0.35 * facts_of(one)["parameter_bytes_per_device"]
    for row in read_rows(many / "metrics.jsonl"):
        waits = [row["train/data_wait/0"], row["train/data_wait/1"]]
        assert row["train/data_wait"] == max(waits) == waits[row["train/data_wait_process"]]


@pytest.mark.long
def test_an_evaluation_is_that_of_one_process(tmp_path):
    """What it says, and the files that it makes anew; of a run's events there is one file, not one a process."""
    flags, reports = [*FLAGS, f"--workdir={tmp_path}"], ("confusion.png", "per_class.csv", "predictions.csv")
    assert run(2, 2, [*flags, *FSDP2, "--config.log.tensorboard=True"]).status == 0
    assert (tmp_path / "curves.png").exists()
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    results, tables = [], []
    for shape, mesh in (((2, 2), FSDP2), (ONE, DATA)):
        for name in reports:
            (tmp_path / name).unlink()
        ended = run(*shape, [*flags, *mesh, "--mode=evaluate"])
        assert ended.status == 0, ended.err
        assert all((tmp_path / name).exists() for name in reports)
        results.append(ended.result)
        tables.append((tmp_path / "per_class.csv").read_text())
    many, one = results
    assert tables[0] == tables[1]
    for ours, theirs in ((many, one), (many.pop("ema"), one.pop("ema"))):
        assert ours.pop("loss") == pytest.approx(theirs.pop("loss"), rel=1e-5)
    assert many == one


@pytest.mark.long
def test_a_benchmark_of_two_processes():
    flags = ["train", "--model=deit_tiny_patch16_224", "--batch_size=4", "--batches=2"]
    ended = run(2, 1, flags, module="deit_jax.benchmark")
    assert ended.status == 0, ended.err
    assert ended.result["images_per_second"] > 0


@pytest.mark.long
@pytest.mark.parametrize("kind", ["plain", "hard", "recorded"])
@pytest.mark.parametrize("mesh", [DATA, FSDP2, FSDP4, TENSOR], ids=["data", "fsdp2", "fsdp4", "tensor"])
@pytest.mark.parametrize("shape", [EIGHT, TWO, FOUR], ids=["1x8", "2x4", "4x2"])
def test_all_shapes_and_meshes_are_one(shape, mesh, kind, runs):
    check_equal(runs(shape, mesh, kind), runs(ONE, DATA, kind))


@pytest.mark.long
@pytest.mark.parametrize("where", ["folder", "bucket"])
@pytest.mark.parametrize("shape", [ONE, FOUR], ids=["1x1", "4x2"])
def test_a_run_goes_on_on_other_devices(shape, where, bucket, tmp_path):
    """Saved at step 15 by two processes of four, cut over fsdp; then data parallel, on other devices."""
    workdir, whole = bucket if where == "bucket" else str(tmp_path / "run"), tmp_path / "whole"
    # At a constant rate: another does know of the end.
    flags = [*FLAGS, *CONSTANT, f"--workdir={workdir}"]
    assert run(*TWO, [*flags, *FSDP4, "--config.total_steps=15"]).status == 0
    ended = run(*shape, flags)
    assert ended.status == 0, ended.err
    assert run(*ONE, [*FLAGS, *CONSTANT, f"--workdir={whole}"]).status == 0
    with here(place(workdir, "--workdir")) as local:
        assert (facts_of(local)["processes"], facts_of(local)["start_step"]) == (shape[0], 15)
        check_equal(local, whole)


@pytest.mark.long
def test_a_run_goes_on_from_eight_devices_to_one_and_back(tmp_path):
    """Losses are those of a run that one device made without a stop."""
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    ways = [(EIGHT, FSDP4), ((1, 4), DATA), (ONE, DATA), ((2, 2), FSDP2), (FOUR, FSDP4), (TWO, TENSOR)]
    for stop, (shape, mesh) in zip((5, 10, 15, 20, 25, TOTAL), ways, strict=True):
        flags = [*FLAGS, *CONSTANT, *mesh, f"--config.total_steps={stop}", f"--workdir={parts}"]
        ended = run(*shape, flags)
        assert ended.status == 0, ended.err
        assert (facts_of(parts)["start_step"], facts_of(parts)["processes"]) == (stop - 5, shape[0])
    assert run(*ONE, [*FLAGS, *CONSTANT, f"--workdir={whole}"]).status == 0
    np.testing.assert_allclose(losses(parts), losses(whole), rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_one_that_is_lost(number, index, tmp_path):
    """The other ends in time and names it, and the same command goes on from the newest checkpoint."""
    flags = [*FLAGS, *FAULTS, f"--workdir={tmp_path}"]
    ended = run(2, 2, flags, during=send_at(tmp_path, 40, index, number))
    assert ended.status == 75
    assert ended.seconds < 20 + 15 + 20  # the limit; what the launcher leaves one that stands still; a busy machine
    (line,) = [line for line in ended.err.splitlines() if line.startswith(f"process {1 - index} ({HOST}): ")]
    lost = re.escape(f"process {index} ({HOST})")
    here = r"(the data of |saving )?step \d+"  # whichever of two limits of 20 seconds comes first
    silent = rf"{here} has taken 20 seconds.*; {lost}, silent for \d+ seconds, was at "
    assert re.search(
        rf" {lost}, last heard of at .*; here was {here}$| {lost} is gone.*; here was {here}$|{silent}", line
    )
    check_goes_on(flags, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 1])
def test_one_that_is_terminated(index, tmp_path):
    """Both save the same step, and the same command goes on from there."""
    flags = [*FLAGS, *FAULTS, f"--workdir={tmp_path}"]
    ended = run(2, 2, flags, during=send_at(tmp_path, 40, index, signal.SIGTERM))
    assert ended.status == 75
    newest = max(checkpoints(tmp_path))
    assert f"interrupted; the same command goes on from step {newest} of 4000" in ended.err
    assert newest == read_rows(tmp_path / "metrics.jsonl")[-1]["step"]
    check_goes_on(flags, tmp_path)


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def check_goes_on(flags, workdir):
    """From the newest checkpoint, with the rows of an undisturbed run; those before it are not computed again."""
    newest, before = max(checkpoints(workdir)), read_rows(workdir / "metrics.jsonl")
    total = newest + 20
    change = [f"--config.total_steps={total}"]
    flags = [flag for flag in flags if "total_steps" not in flag and "workdir" not in flag]
    whole = workdir.with_name(f"{workdir.name}_whole")
    for each in (workdir, whole):
        assert run(2, 2, [*flags, *change, f"--workdir={each}"]).status == 0
    assert facts_of(workdir)["start_step"] == newest
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, total + 1))
    assert rows[:newest] == before[:newest]
    assert losses(workdir) == losses(whole)


def is_saving(workdir):
    """Whether a step that is newer than all whole ones is unfinished, not one that is being removed."""
    there = CheckpointDirectory(workdir / "checkpoints")
    return any(int(left.name.partition(".")[0]) > (there.latest() or 0) for left in there.unfinished())


def wait_for(condition, process):
    while process.poll() is None and not condition():
        time.sleep(0.001)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_twenty_ends_at_random_moments(number, tmp_path):
    """All are killed, or any of them is terminated, every other time while they save: every start goes on exactly, and
    no checkpoint is lost."""
    total, dice = 900, random.Random(0)
    flags = [*FLAGS, f"--config.total_steps={total}", "--config.checkpoint.every_steps=10"]
    flags += ["--config.eval.every_steps=300", "--step_timeout=30"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(2, 2, [*flags, f"--workdir={whole}"], patience=4 * PATIENCE).status == 0
    newest = torn = 0

    def newest_row():
        return max((row["step"] for row in read_rows(killed / "metrics.jsonl")), default=0)

    for i in range(20):
        moment = newest_row() + dice.randrange(1, 30)  # behind all rows of before, so that this run has begun
        chosen = slice(None) if number == signal.SIGKILL else slice(pick := dice.randrange(2), pick + 1)

        def end(process, moment=moment, amid=i % 2, chosen=chosen):
            wait_for(lambda: newest_row() >= moment, process)
            if amid:
                wait_for(lambda: is_saving(killed), process)
            for child in children(process)[chosen]:
                os.kill(child, number)

        ended = run(2, 2, [*flags, f"--workdir={killed}"], during=end)
        assert ended.status == 75, ended.err
        assert facts_of(killed)["start_step"] == newest
        newest = max([newest, *checkpoints(killed)])
        assert newest in [0, *checkpoints(killed)]
        if number == signal.SIGKILL:
            torn += is_saving(killed)
        else:  # which saves where it stops
            assert newest == newest_row()
    assert torn or number == signal.SIGTERM
    assert run(2, 2, [*flags, f"--workdir={killed}"], patience=4 * PATIENCE).status == 0
    ours, theirs = (read_rows(folder / "metrics.jsonl") for folder in (killed, whole))
    exact = ("step", "train/loss", "train/grad_norm", "eval")
    for row, other in zip(ours, theirs, strict=True):
        assert {n: v for n, v in row.items() if n.startswith(exact)} == {
            n: v for n, v in other.items() if n.startswith(exact)
        }


@pytest.mark.long
@pytest.mark.parametrize(
    ("own", "says"),
    [
        (
            ["--config.optim.eps=1e-7"],
            f"config.optim.eps: is 1e-08 in process 0 ({HOST}) and 1e-07 in process 1 ({HOST})",
        ),
        (["--mode=evaluate"], f"--mode: is 'train' in process 0 ({HOST}) and 'evaluate' in process 1 ({HOST})"),
        # A relative workdir, elsewhere; a minute is left to shared folders.
        ([], f"--workdir: process 1 ({HOST}) does not see what process 0 ({HOST}) has in"),
    ],
    ids=["config", "flags", "workdir"],
)
def test_processes_that_disagree_are_told(own, says, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    address = f"127.0.0.1:{a_port()}"
    common = [sys.executable, "-m", "deit_jax.main", f"--config={ROOT / 'configs/quickstart.py'}", "--workdir=run"]
    common += [*FLAGS[1:], "--step_timeout=100", f"--coordinator={address}", "--processes=2"]
    started = [
        subprocess.Popen(
            [*common, f"--process={i}", *own_flags],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, (own_flags, folder) in enumerate((([], tmp_path), (own, tmp_path / "elsewhere")))
    ]
    said = [process.communicate(timeout=200)[1] for process in started]
    assert [process.returncode for process in started] == [2, 2], said
    assert says in said[0] + said[1]
    assert not (tmp_path / "run").exists()
