"""A run whose workdir is in a bucket, against a server of its own: what it leaves there, and what it goes through."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bucket import bucket, proxy, variables
from tiny import replace, tiny_config, tiny_run

from deit_jax import convert, main, predict
from deit_jax.base import buckets
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.base.storage import COMMITTED, here, place
from deit_jax.run import lease
from deit_jax.run.checkpoint import Checkpoints
from deit_jax.run.metrics import read_rows
from deit_jax.run.workdir import own
from deit_jax.weights.orbax import CheckpointDirectory, CorruptCheckpoint, read_variables

ROOT = Path(__file__).parents[2]
# When one read fails, Orbax leaves the others behind on an event loop that it has closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
EXACT = ("step", "train/loss", "train/grad_norm", "train/learning_rate", "eval/", "eval_ema/")
FLAGS = [
    "--config=configs/quickstart.py",
    "--config.data.image_size=8",
    "--config.model.patch_size=4",
    "--config.model.width=24",
    "--config.model.depth=2",
    "--config.model.heads=3",
    "--config.model.drop_path=0.2",
    "--config.total_steps=60",
    "--config.log.every_steps=3",
    "--config.eval.every_steps=20",
    "--config.checkpoint.every_steps=8",
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


def start(workdir, *flags, url="", patience=60):
    command = [sys.executable, "-c", PROGRAM, str(patience), *FLAGS, *flags, f"--workdir={workdir}"]
    environment = os.environ | (variables(url) if url else {}) | {"DEIT_JAX": ""}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


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
def test_a_run_is_killed_goes_on_exactly_and_is_used_where_it_lies(bucket, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    workdir = place(f"{bucket}/run", "")
    checkpoints = CheckpointDirectory(workdir / "checkpoints")
    with start(workdir) as process:
        until(lambda: 32 in checkpoints.steps() or process.poll() is not None)
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
    copied, _ = read_variables(place(f"{bucket}/copy", ""))
    jax.tree.map(np.testing.assert_array_equal, copied, average)
    np.save(tmp_path / "x.npy", np.zeros(1))
    capsys.readouterr()
