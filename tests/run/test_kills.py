"""Runs killed at arbitrary steps and started again, in processes of their own, equal the undisturbed run exactly."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import EVERYTHING_FLAGS

from deit_jax.run.metrics import read_rows
from deit_jax.weights.orbax import CheckpointDirectory

ROOT = Path(__file__).parents[2]
EXACT = ("step", "train/loss", "train/grad_norm", "train/learning_rate", "eval/", "eval_ema/")
TOTAL = 240
SMALL = [
    "--config.model.width=24",
    "--config.model.depth=2",
    "--config.model.heads=3",
    "--config.model.drop_path=0.2",
    "--config.mixing.cutmix=0.5",
    f"--config.total_steps={TOTAL}",
    "--config.log.every_steps=3",
    "--config.eval.every_steps=80",
    "--config.checkpoint.every_steps=20",
    "--config.ema.decay=0.9",
    "--config.batch_size=16",
    "--config.log.progress=False",
]

# How the papers' recipes learn. Images grow after 120 steps, since an epoch of the photos has three.
LEARNING_FLAGS = [
    "--config.optim.name=lamb",
    "--config.optim.scale_by_batch=False",
    "--config.loss.kind=binary_cross_entropy",
    "--config.data.image_size_schedule=16@0,24@40",
    "--config.ema.warmup=True",
    "--config.mixing.off_steps=150",
    "--config.cosub.weight=0.5",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 61 JPEGs of odd sizes in three classes, one of them not an image."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(61):
        path = folder / "abc"[i % 3] / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        if i == 30:
            path.write_bytes(b"not a photo")
            continue
        pixels = random.integers(0, 80, (37 + i % 5, 53 + i % 7, 3), np.uint8) + np.uint8(60 * (i % 3))
        Image.fromarray(pixels).save(path)
    return folder


def command(data, workdir):
    if data is None:
        config = ["--config=configs/quickstart.py", "--config.data.image_size=8", "--config.model.patch_size=4"]
    else:
        config = ["--config=configs/image_folder.py", f"--config.data.dir={data}", "--config.data.max_corrupt=0.1"]
        config += ["--config.data.image_size=24", "--config.model.patch_size=8"]
        config += [*EVERYTHING_FLAGS, *LEARNING_FLAGS, "--config.mixing.group=4"]
    return [sys.executable, "-m", "deit_jax.main", *SMALL, *config, f"--workdir={workdir}"]


def environment():
    return os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


def run(data, workdir):
    done = subprocess.run(command(data, workdir), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def run_and_kill(data, workdir, step):
    """Kills the run as soon as a row of `step` or later is on the disk."""
    process = subprocess.Popen(
        command(data, workdir), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    with process:
        while process.poll() is None:
            rows = read_rows(workdir / "metrics.jsonl")
            if rows and rows[-1]["step"] >= step:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
    assert process.returncode == -signal.SIGKILL
    return read_rows(workdir / "metrics.jsonl")


def exact(rows):
    return [{name: value for name, value in row.items() if name.startswith(EXACT)} for row in rows]


def finished_checkpoints(workdir):
    return [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_killed_runs_go_on_exactly(kind, photos, tmp_path):
    """The folder's with all that recipes have: augmentation, repeats, erasing, and mixing of elements, which ends;
    images that grow, LAMB, binary cross-entropy, copies that learn from one another, and an average that warms up.
    """
    data = photos if kind == "folder" else None
    result = run(data, tmp_path / "whole")
    for step in (50, 117, 190):
        before = run_and_kill(data, tmp_path / "killed", step)
        newest = max(finished_checkpoints(tmp_path / "killed"))
        survivors = [row for row in before if row["step"] <= newest]
        assert survivors
    assert run(data, tmp_path / "killed") == result
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["start_step"] == newest > 117
    ours, whole = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("killed", "whole"))
    assert [row["step"] for row in ours] == [row["step"] for row in whole] == sorted({*range(3, 241, 3), 80, 160})
    assert exact(ours) == exact(whole)
    # Rows up to the checkpoint are the killed run's to the last digit of their timings: nothing was computed again.
    assert ours[: len(survivors)] == survivors
    arrays = [CheckpointDirectory(tmp_path / name / "checkpoints").meta(TOTAL) for name in ("killed", "whole")]
    assert arrays[0]["arrays"] == arrays[1]["arrays"]
    assert any(row["train/corrupt"] for row in whole) == (kind == "folder")


@pytest.mark.long
def test_terminated_run_saves_and_tells_its_exit_code(tmp_path):
    process = subprocess.Popen(command(None, tmp_path), cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    with process:
        while not read_rows(tmp_path / "metrics.jsonl"):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        message = process.stderr.read()
    assert process.returncode == 75
    step = max(finished_checkpoints(tmp_path))
    assert f"interrupted; the same command goes on from step {step} of {TOTAL}" in message
    assert step < TOTAL
