"""What the processes of a run compare, and what they tell one another, with data of their own: without a run."""

import json
import shutil
import socket

import numpy as np
import pytest
from PIL import Image
from processes import end, start

from deit_jax.data import open_source
from deit_jax.distill import Header, Writer

pytestmark = pytest.mark.long
HOST = socket.gethostname()
DATA = """
from deit_jax.data import open_source
from deit_jax.run.together import require_same_data
require_same_data(train_split=open_source(name="folder", directory={directory!r}, split="train"))
"""
RECORDED = """
from pathlib import Path
from deit_jax.distill import Store
from deit_jax.distill.teaching import require_same_store
require_same_store(Store(Path({directory!r}), fingerprint={{}}, rows=20, soft=True))
"""
# The second one waits for its data, for about as long as it does other things.
SLOW = """
import itertools
from pathlib import Path
import jax
from deit_jax import parallel
from deit_jax.run.interrupt import Interrupt
from deit_jax.run.metrics import Writer
from deit_jax.run.monitor import Monitor
from deit_jax.run.workdir import Workdir
first = hosts.index() == 0
of_first = {{"step": 0, "tensorboard": False, "wandb": False, "config": {{}}}}
exchange = parallel.Exchange(parallel.make_mesh())
given = {{"start": 0, "total": 6, "log_every": 2, "batch_size": 32, "show": True}}
writer = Writer(Workdir(Path({directory!r})), **of_first) if first else None
monitor = Monitor(writer, exchange, Interrupt(alone=False), **given)
batches = (time.sleep(0 if first else 0.3) or ({{}}, 0) for _ in itertools.count())
for step in range(1, 7):
    monitor.wait_for(batches)
    time.sleep(0.3)
    monitor.add(step, {{"loss": 1.0, "skipped_in_a_row": 0}})
monitor.settle()
monitor.close()
"""


def of_two(text, *directories):
    """(exit status, stdout, stderr) of two processes, each with a directory of its own."""
    return end(start([text.format(directory=str(directory)) for directory in directories]), timeout=200)


@pytest.fixture
def copies(tmp_path):
    """Two copies of a folder of photos."""
    for i in range(24):
        path = tmp_path / "here" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((5, 7, 3), i, np.uint8)).save(path)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    return tmp_path / "here", tmp_path / "there"


def test_equal_copies_go_together(copies):
    assert [status for status, *_ in of_two(DATA, *copies)] == [0, 0]


@pytest.mark.parametrize("index", [0, -1])
def test_a_stale_copy_is_named_by_its_photo(index, copies):
    """Names and sizes are those of the other copy."""
    source = open_source(name="folder", directory=str(copies[1]), split="train")
    photo = copies[1] / source.name(range(len(source))[index])
    content = photo.read_bytes()
    photo.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (first, _, said), (second, _, told) = of_two(DATA, *copies)
    assert (first, second) == (2, 2)
    name = photo.relative_to(copies[1])
    assert f"error: config.data.train_split: {name}: is 'of checksum " in said + told
    assert f" in process 0 ({HOST}) and 'of checksum " in said + told
    assert f" in process 1 ({HOST}); start all of a run" in said + told


@pytest.mark.parametrize("changed", ["rows", "header"])
def test_recordings_that_differ_are_named(changed, tmp_path):
    for name in ("here", "there"):
        other = name == "there"
        seed = {"seed": int(other and changed == "header")}
        header = Header(classes=11, top=3, rows=20, chunk=10, views="stream", dtype="float32", fingerprint=seed)
        writer = Writer(tmp_path / name, header)
        for chunk in range(2):
            best = np.zeros((10, 3), np.float16)
            best[7, 1] = other and changed == "rows"
            kinds = {name: np.zeros((10, *shape), kind) for name, (kind, shape) in header.arrays().items()}
            writer.write(chunk, kinds | {"values": best})
    (first, _, said), (second, _, told) = of_two(RECORDED, tmp_path / "here", tmp_path / "there")
    assert (first, second) == (2, 2)
    assert "error: what is in config.distillation.store: is 'of checksum " in said + told
    assert f" in process 1 ({HOST}); start all of a run" in said + told


def test_the_process_that_waits_for_its_data_is_named(tmp_path):
    (first, _, bar), (second, _, _) = of_two(SLOW, tmp_path, tmp_path)
    assert (first, second) == (0, 0)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    for row in rows:
        waits = [row["train/data_wait/0"], row["train/data_wait/1"]]
        assert row["train/data_wait_process"] == 1
        assert row["train/data_wait"] == waits[1] > waits[0] + 0.2
    assert f"data wait {rows[-1]['train/data_wait']:.0%} of process 1 ({HOST})" in bar
