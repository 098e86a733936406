"""A run whose workdir is in a bucket, against a server of its own: what it leaves there, and what it goes through."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulator import proxy, variables
from PIL import Image

from deit_jax import convert, main, predict
from deit_jax.base import storage
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.base.storage import COMMITTED, here, place
from deit_jax.run import lease
from deit_jax.run import workdir as workdirs
from deit_jax.run.checkpoint import Checkpoints
from deit_jax.run.metrics import read_rows
from deit_jax.run.rollback import Rollbacks
from deit_jax.run.workdir import own
from deit_jax.step.state import init_state
from deit_jax.weights import Card, read_weights
from deit_jax.weights.orbax import CheckpointDirectory, read_variables

ROOT = Path(__file__).parents[2]
EXACT = ("step", "train/loss", "train/grad_norm", "train/learning_rate", "eval/", "eval_ema/")
FLAGS = [
    "--config=configs/quickstart.py",
    "--config.data.image_size=8",
    "--config.model.patch_size=4",
    "--config.model.width=24",
    "--config.model.depth=2",
    "--config.model.heads=3",
    "--config.model.drop_path=0.2",
    "--config.total_steps=16",
    "--config.log.every_steps=2",
    "--config.eval.every_steps=8",
    "--config.checkpoint.every_steps=3",
    "--config.ema.decay=0.9",
    "--config.batch_size=16",
    "--config.log.progress=False",
]
# A process with less patience than people have, so that the test need not have it either.
PROGRAM = """
import sys
from deit_jax import cli, main
from deit_jax.base import buckets
from deit_jax.run import lease
buckets.PATIENCE, lease.REFRESH, lease.WATCH = float(sys.argv.pop(1)), 0.5, 2.0
cli.run(main.main)
"""


def start(workdir, *, errors=subprocess.PIPE, url="", patience=60):
    command = [sys.executable, "-c", PROGRAM, str(patience), *FLAGS, f"--workdir={workdir}"]
    environment = os.environ | (variables(url) if url else {}) | {"DEIT_JAX": ""}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)


def until(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(0.05)
    return found


def rows_of(workdir):
    with here(place(str(workdir), "") / "metrics.jsonl") as file:
        return read_rows(file)


def exact(rows):
    return [{name: value for name, value in row.items() if name.startswith(EXACT)} for row in rows]


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    """What a killed owner costs the next, in this process."""
    monkeypatch.setattr(lease, "WATCH", 1.5)
    monkeypatch.setattr(lease, "SETTLE", 0.1)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.pictures
@pytest.mark.long
def test_a_run_is_killed_goes_on_exactly_and_is_used_where_it_lies(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    workdir = place(f"{bucket}/run", "")
    checkpoints = CheckpointDirectory(workdir / "checkpoints")
    with start(workdir) as process:
        until(lambda: 6 in checkpoints.steps() or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, process.stderr.read()
    newest = checkpoints.latest()
    survivors = [row for row in rows_of(workdir) if row["step"] <= newest]
    results = []
    for where in (workdir, tmp_path / "whole"):
        assert main.main([*FLAGS, f"--workdir={where}"]) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert results[0] == results[1]
    assert json.loads((workdir / "run.json").read_bytes())["start_step"] == newest
    ours, whole = rows_of(workdir), read_rows(tmp_path / "whole" / "metrics.jsonl")
    assert exact(ours) == exact(whole)
    assert ours[: len(survivors)] == survivors  # to the last digit of their timings: nothing was computed again
    names = {path.name for path in workdir.iterdir()}
    assert names >= {"config.json", "curves.png", "confusion.png", "per_class.csv", "predictions.csv", "tensorboard"}
    assert ".lock" not in names
    # Evaluated, converted into a bucket and out of it, and predicted with.
    assert main.main([*FLAGS, f"--workdir={workdir}", "--mode=evaluate"]) == 0
    evaluated = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert evaluated == {name: results[0][name] for name in evaluated}
    for destination in ("file.safetensors", "hf", "copy"):
        source = workdir if destination == "file.safetensors" else f"{bucket}/file.safetensors"
        kind = ["--format=hf"] if destination == "hf" else []
        assert convert.main([str(source), f"{bucket}/{destination}", *kind]) == 0
    average, _ = read_variables(tmp_path / "whole" / "checkpoints")
    for spec in (f"{bucket}/copy", f"{bucket}/hf", f"{bucket}/file.safetensors", f"{workdir}@16#ema"):
        jax.tree.map(np.testing.assert_array_equal, dict(read_weights(spec).variables), average)
    with pytest.raises(UserError, match=f"{bucket}/run: exists|{bucket}/run: is a folder with something in it"):
        convert.main([f"{bucket}/file.safetensors", f"{bucket}/run"])
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / "photo.png")
    said = []
    for spec in (f"{workdir}@16", tmp_path / "whole"):
        capsys.readouterr()
        assert predict.main([f"--weights={spec}", "--json", str(tmp_path / "photo.png")]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


META = {"card": Card("x").to_json()}
PATHS = {"blocks.0.mlp.fc1.kernel": (64, 240), "head.kernel": (16, 3)}  # the first is no part of an index


def a_state(step):
    params = {path: jax.random.normal(jax.random.key(step), shape) for path, shape in PATHS.items()}
    state = init_state(params, {}, (), keep_ema=True)
    return jax.device_put(dataclasses.replace(state, step=jnp.int32(step)), jax.devices()[0])


def opened(root, keep=3, **options):
    return Checkpoints(root / "checkpoints", aside=root / "corrupt", keep=keep, **options)


def saved(root, steps=(1, 2), keep=3):
    checkpoints = opened(root, keep)
    for step in steps:
        checkpoints.save(a_state(step), META, last=True)
    return checkpoints


def restored(root):
    """The step that a run would go on from; its arrays are what was saved."""
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), a_state(0))
    state = opened(root).restore_latest(target, lambda meta: None)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(a_state(int(state.step))))
    return int(state.step)


def largest(step):
    """The file with the arrays of a step."""
    return max((file for file in step.files() if "/d/" in str(file)), key=lambda file: file.stat().length)


def cut(step):
    largest(step).write_bytes(largest(step).read_bytes()[:-1000])


def flip(step):
    data = bytearray(largest(step).read_bytes())
    data[len(data) // 2] ^= 4
    largest(step).write_bytes(bytes(data))


def remove(name):
    return lambda step: (step / name).unlink()


DAMAGE = {
    "cut": cut,
    "a flipped bit": flip,
    "no description": remove("meta/metadata"),
    "an emptied description": lambda step: (step / "meta" / "metadata").write_bytes(b""),
    "no index": remove("state/manifest.ocdbt"),
    "no tree": remove("state/_METADATA"),
}


@pytest.mark.parametrize(
    "damage", [each if each == "cut" else pytest.param(each, marks=pytest.mark.long) for each in DAMAGE]
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(bucket, damage, caplog):
    root = place(bucket, "")
    saved(root).close()
    DAMAGE[damage](root / "checkpoints" / "2")
    assert restored(root) == 1
    assert f"moved to {root}/corrupt, the one before is taken" in caplog.text
    assert {path.parts[-1] for path in (root / "corrupt").iterdir()} == {"2"}
    saved(root, [2]).close()
    assert restored(root) == 2


def test_a_step_without_its_marker_is_none_in_a_bucket_nor_copied_to_a_disk(bucket, tmp_path):
    root = place(bucket, "")
    saved(root).close()
    (root / "checkpoints" / "2" / COMMITTED).unlink()
    about = root / "checkpoints" / "2" / "_CHECKPOINT_METADATA"
    begun = json.loads(about.read_bytes()) | {"commit_timestamp_nsecs": None}
    about.write_bytes(json.dumps(begun).encode())  # as Orbax leaves it at a kill
    with here(root) as copy:
        copied = CheckpointDirectory(copy / "checkpoints")
        assert (copied.steps(), copied.latest(), copied.best()) == ([1], 1, 1)
        assert restored(copy) == 1
        assert not (copy / "checkpoints" / "2").exists()
    assert CheckpointDirectory(root / "checkpoints").steps() == [1]
    assert restored(root) == 1
    assert not (root / "checkpoints" / "2").exists()


def test_old_checkpoints_are_removed_and_the_best_is_kept(bucket):
    root = place(bucket, "")
    checkpoints = opened(root, keep=1)
    for step, top1 in ((1, 60.0), (2, 90.0), (3, 80.0), (4, 70.0)):
        checkpoints.save(a_state(step), META)
        checkpoints.judge(step, top1)
    checkpoints.close()
    assert checkpoints.steps() == [2, 4]
    assert checkpoints.best() == 2
    assert {path.name for path in (root / "checkpoints").iterdir() if path.files()} == {"2", "4"}


def test_two_runs_in_one_workdir(bucket, monkeypatch, caplog):
    """The second is refused while the first is alive; when it is gone the workdir is free at once."""
    monkeypatch.setattr(lease, "REFRESH", 0.2)
    root = place(bucket, "")
    with own(root) as workdir:
        with pytest.raises(TryAgain, match=rf"--workdir: {root} belongs to process {os.getpid()} on .*still runs"):
            own(root).__enter__()
        assert workdir.keep()
        workdir.metrics.write_text('{"step": 1}\n')
    assert [path.name for path in root.iterdir()] == ["metrics.jsonl"]
    start = time.monotonic()
    with own(root) as workdir:
        assert workdir.metrics.read_text() == '{"step": 1}\n'  # fetched, to be written on
    assert time.monotonic() - start < lease.WATCH
    assert caplog.text == ""


def test_an_owner_that_stood_still_and_lost_the_workdir_writes_no_more(bucket, monkeypatch):
    root = place(bucket, "")
    monkeypatch.setattr(lease, "REFRESH", 1000.0)  # the first stands still
    first = own(root)
    workdir = first.__enter__()
    monkeypatch.setattr(lease, "REFRESH", 0.2)
    with own(root):
        threading.Thread(target=workdir._lease._refresh, daemon=True).start()  # and goes on
        until(lambda: workdir._lease._lost)
        with pytest.raises(TryAgain, match=rf"{root} was taken by process {os.getpid()} on .* while this run stood"):
            workdir.keep()
        with pytest.raises(TryAgain, match=f"{root} was taken by"):
            workdir.write_json("rollbacks.json", [])
        for step in (1, 2):
            (root / "checkpoints" / str(step) / COMMITTED).write_bytes(b"")
        checkpoints = opened(root, keep=1, require=workdir.require)
        (root / "checkpoints" / "3" / "begun").write_bytes(b"")
        before = {*root.files()} - {root / ".lock"}
        checkpoints._collect()
        checkpoints._failed("whatever")
        checkpoints.judge(2, 50.0)
        with pytest.raises(TryAgain, match=f"{root} was taken by"):
            checkpoints._set_aside(2)
        assert {*root.files()} - {root / ".lock"} == before
    with pytest.raises(TryAgain, match=f"{root} was taken by"):
        first.__exit__(None, None, None)


def test_a_jump_is_written_after_the_rows_before_it_or_not_at_all(bucket, monkeypatch):
    """A start that knows of the jump goes on behind them."""
    root, jumps = place(bucket, ""), [{"from": 1, "to": 3, "skipped": 2}]
    with own(root) as workdir:
        workdir.metrics.write_text('{"step": 3}\n')
        rollbacks = Rollbacks(workdir, total=9, limit=1, batch_size=1)
        with monkeypatch.context() as patch:
            patch.setattr(type(workdir), "keep", lambda workdir: False)
            with pytest.raises(TryAgain, match="the rows before a rollback cannot be kept"):
                rollbacks._store(jumps)
        assert not (root / "rollbacks.json").exists()
        Rollbacks(workdir, total=9, limit=1, batch_size=1)._store(jumps)
        assert (root / "metrics.jsonl").read_bytes() == b'{"step": 3}\n'
        assert json.loads((root / "rollbacks.json").read_bytes()) == jumps


def test_rows_that_the_bucket_did_not_take_outlive_the_next_start(bucket, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(storage.tempfile, "tempdir", str(tmp_path))

    def fail(*given):
        raise OSError("refused")

    monkeypatch.setattr(workdirs, "copy_whole", fail)
    with own(place(bucket, "")) as workdir:
        workdir.metrics.write_text('{"step": 1}\n')
    (kept,) = tmp_path.iterdir()
    assert f"its newest rows are in {kept} alone" in caplog.text
    os.utime(kept, (0, 0))
    storage.scratch()
    assert (kept / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_an_owner_goes_on_writing_after_an_error_of_any_kind(bucket, monkeypatch):
    monkeypatch.setattr(lease, "REFRESH", 0.05)
    owner = lease.Lease(place(f"{bucket}/.lock", ""))
    read, errors = owner._read, [RuntimeError("of a library"), TryAgain("for a while")]

    def failing():
        if errors:
            raise errors.pop()
        return read()

    monkeypatch.setattr(owner, "_read", failing)
    until(lambda: not errors)
    times = owner._times
    until(lambda: owner._times > times)
    owner.release()


@pytest.mark.parametrize(
    ("workdir", "line"),
    [
        ("s3://bucket/run", r"--workdir: s3://bucket/run is a URL of s3, which is not read; name a folder or file of"),
        ("gs://bucket", r"--workdir: gs://bucket names no place in a bucket; write gs://bucket/name"),
        ("gs://bucket/a//b", r"--workdir: gs://bucket/a//b names no place in a bucket"),
        ("gs://nowhere/run", r"--workdir: cannot write to gs://nowhere/run: there is no bucket gs://nowhere; make it"),
    ],
)
def test_places_that_are_none(bucket, workdir, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=f"^{line}"):
        main.main([*FLAGS, f"--workdir={workdir}"])


@pytest.mark.long
def test_a_bucket_that_may_not_be_written_is_named(bucket):
    with proxy() as server:
        server.forbids.set()
        with start(f"{bucket}/run", url=server.url) as process:
            out, err = process.communicate(timeout=120)
    line = f"error: --workdir: cannot write to {bucket}/run: "
    assert (process.returncode, out, err.count("\n"), err[: len(line)]) == (2, "", 1, line)
    assert "permission" in err


@pytest.mark.long
def test_a_bucket_that_refuses_writes_for_a_while_costs_no_row(bucket, tmp_path):
    told = tmp_path / "stderr"
    with proxy() as server, told.open("w") as errors:
        workdir = place(f"{bucket}/run", "")
        with start(workdir, url=server.url, patience=4, errors=errors) as process:
            until(lambda: CheckpointDirectory(workdir / "checkpoints").steps())
            server.refuses.set()
            until(lambda: "saving to" in told.read_text() and "rows are not copied" in told.read_text())
            server.refuses.clear()
            process.communicate()
        assert process.returncode == 0, told.read_text()
    assert "Traceback" not in told.read_text()
    assert [row["step"] for row in rows_of(workdir)] == list(range(2, 17, 2))
    assert CheckpointDirectory(workdir / "checkpoints").latest() == 16


@pytest.mark.long
@pytest.mark.parametrize("when", ["start", "later"])
def test_a_bucket_that_does_not_answer_ends_the_run_in_a_line(bucket, when):
    with proxy() as server:
        workdir = place(f"{bucket}/run", "")
        if when == "start":
            server.silent.set()
        with start(workdir, url=server.url, patience=3) as process:
            if when == "later":
                until(lambda: CheckpointDirectory(workdir / "checkpoints").steps())
                server.silent.set()
            _, err = process.communicate(timeout=300)
        assert process.returncode == 75, err
        assert "Traceback" not in err
        assert "no answer within" in err.splitlines()[-1] or "could not be saved" in err.splitlines()[-1]
    if when == "later":
        with start(workdir) as process:
            _, err = process.communicate()
        assert process.returncode == 0, err
        assert CheckpointDirectory(workdir / "checkpoints").latest() == 16
