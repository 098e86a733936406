"""Recording a teacher: the right answers at the right rows, whatever comes in between."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import distilled_config, replace, tiny_run, write_teacher

from deit_jax import precompute
from deit_jax.base.errors import UserError
from deit_jax.base.storage import copy_whole, here, place
from deit_jax.data import eval_batches
from deit_jax.data.decode import CorruptImage
from deit_jax.data.index import example_index
from deit_jax.data.memory import MemorySource
from deit_jax.distill import Store, Writer, read_header, teaching
from deit_jax.distill.open import open_teacher
from deit_jax.distill.teaching import open_store
from deit_jax.run.interrupt import Interrupted
from deit_jax.step import mixing
from deit_jax.weights.orbax import read_variables, write_variables

NAMES = tuple(str(digit) for digit in range(10))
ROWS = 12 * 32  # of the tiny run


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(precompute, "CHUNKS", 4)  # of three batches


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    write_teacher(folder)
    return folder


@pytest.fixture
def command(teacher, tmp_path, capsys):
    """Runs the command for the tiny run, with three logits of a soft teacher; gives status, stdout and stderr."""
    (tmp_path / "config.py").write_text(f"""
from ml_collections import ConfigDict
from tiny import distilled_config
from deit_jax.config.resolve import to_dict

def get_config():
    return ConfigDict(to_dict(distilled_config({str(teacher)!r}, distillation__kind="soft", distillation__top_k=3)))
""")

    def run(*arguments):
        capsys.readouterr()
        status = precompute.main([f"--config={tmp_path / 'config.py'}", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture(scope="module")
def recorded(teacher, tmp_path_factory):
    """A store of the tiny run with three logits a row."""
    folder = tmp_path_factory.mktemp("recorded") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precompute, "CHUNKS", 4)
        config = distilled_config(teacher, distillation__kind="soft", distillation__top_k=3)
        precompute.Recording(config, "stream").write(folder)
    return folder


def content(folder):
    """Every file of a store but the times of its markers."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_rows_are_what_the_teacher_says_of_the_mixed_images(teacher, recorded):
    config = distilled_config(teacher)
    run = tiny_run(config)
    asked = open_teacher(config, NAMES)
    store = Store(recorded, fingerprint={}, rows=ROWS, soft=True)
    assert (store.header.rows, store.header.chunk, store.header.chunks, store.header.top) == (ROWS, 96, 4, 3)
    batches = run.batches(0, 12)
    say, mixed = jax.jit(asked), 0
    for step, (batch, _) in enumerate(batches):
        plain = jax.device_put(batch["image"]) / 255
        images = mixing.mix_images(plain, mixing.partners(plain, batch["mix"]), batch["mix"])
        mixed += np.abs(images - batch["image"] / 255).max() > 0.01
        logits = say(asked.variables, images)
        rows = store.read(np.arange(32 * step, 32 * step + 32), np.zeros(32, int))
        values, indices = jax.lax.top_k(logits, 3)
        rows = {name: array[batch["place"]] for name, array in rows.items()}
        np.testing.assert_array_equal(rows["labels"], jnp.argmax(logits, axis=1))
        np.testing.assert_array_equal(rows["indices"], indices)
        # Stored as float16, and differences of logits: near zero the rounding of the two float32 is all that is left.
        np.testing.assert_allclose(rows["values"], values - values[:, :1], rtol=1e-3, atol=1e-5)
    assert mixed > 6


def test_the_command_tells_its_size_and_goes_on_where_it_was(command, recorded, tmp_path):
    folder = tmp_path / "store"
    status, out, _ = command(f"--output={folder}")
    assert status == 0
    first, last = out.splitlines()[0], json.loads(out.splitlines()[-1])
    assert first == f"384 rows of 10 classes, 0.0 MB, in {folder}"
    assert re.fullmatch(r"the teacher has \d+\.\d\d % top-1 as it sees the evaluation split", out.splitlines()[1])
    assert (last["rows"], last["recorded"], last["bytes"]) == (ROWS, ROWS, ROWS * (1 + 6 + 3 + 2))
    assert content(folder) == content(recorded)
    assert json.loads(command(f"--output={folder}")[1].splitlines()[-1])["recorded"] == 0
    for chunk in (1, 3):
        (folder / "done" / str(chunk)).unlink()
        shutil.rmtree(folder / "values" / "c" / str(chunk))
    assert json.loads(command(f"--output={folder}")[1].splitlines()[-1])["recorded"] == 96 + 96
    assert content(folder) == content(recorded)
    # What is marked as done, and is gone or damaged, is recorded anew.
    shutil.rmtree(folder / "values" / "c" / "2")
    damaged = folder / "labels" / "c" / "0"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert json.loads(command(f"--output={folder}")[1].splitlines()[-1])["recorded"] == 96 + 96
    shutil.rmtree(folder / "labels")
    assert json.loads(command(f"--output={folder}")[1].splitlines()[-1])["recorded"] == ROWS
    assert content(folder) == content(recorded)


def test_an_interrupted_recording_keeps_its_chunks(command, recorded, tmp_path, monkeypatch):
    write = Writer.write

    def write_and_stop(self, chunk, rows):
        write(self, chunk, rows)
        if chunk == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", write_and_stop)
        with pytest.raises(Interrupted, match="the same command goes on"):
            command(f"--output={tmp_path / 'store'}")
    assert sorted(path.name for path in (tmp_path / "store" / "done").iterdir()) == ["0", "1"]
    command(f"--output={tmp_path / 'store'}")
    assert content(tmp_path / "store") == content(recorded)


@pytest.mark.long
@pytest.mark.parametrize("where", ["folder", "bucket"])
def test_a_killed_recording_goes_on(teacher, command, tmp_path, where, request):
    """Six kills while it writes, each after another whole chunk; the seventh start ends it."""
    whole = tmp_path / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precompute, "CHUNKS", 50)  # of a batch each
        command(f"--output={whole}")
    output = str(tmp_path / "store") if where == "folder" else f"{request.getfixturevalue('bucket')}/store"
    store = place(output, "")
    start = [sys.executable, "-m", "deit_jax.precompute", f"--config={tmp_path / 'config.py'}", f"--output={output}"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}

    def chunks():
        return {path.name for path in (store / "done").iterdir()} if (store / "done").is_dir() else set()

    kept, killed = chunks(), 0
    for pause in np.random.default_rng(0).uniform(0, 0.05, size=6):
        with subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while process.poll() is None and chunks() == kept:
                time.sleep(0.005)
            time.sleep(pause)
            process.kill()
        killed += process.returncode == -signal.SIGKILL
        assert kept < chunks() or process.returncode == 0, process.stderr.read()
        kept = chunks()
    assert killed > 2
    done = subprocess.run(start, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["recorded"] == ROWS - 32 * len(kept)
    with here(store) as copy:
        assert content(copy) == content(whole)


@pytest.mark.long
def test_a_check_asks_again(command, recorded, tmp_path):
    shutil.copytree(recorded, tmp_path / "store")
    result = json.loads(command(f"--output={tmp_path / 'store'}", "--check", "--views=one")[1].splitlines()[-1])
    assert (result["rows_checked"], result["same_labels"]) == (8 * 32, 100)
    assert 0 <= result["largest_difference"] < 1e-3  # float16
    store, writer = (
        Store(recorded, fingerprint={}, rows=0, soft=True),
        Writer(tmp_path / "store", read_header(recorded)),
    )
    changes = {
        "labels": lambda labels: (labels + (np.arange(96) < 5)) % np.uint8(10),
        "values": lambda values: values / 2,
        "indices": lambda indices: indices[:, ::-1],
    }
    for name, change in changes.items():
        for chunk in range(4):
            rows = store.read(np.arange(96 * chunk, 96 * chunk + 96), np.zeros(96, int))
            writer.write(chunk, rows | {name: change(rows[name])})
        with pytest.raises(UserError, match="the teacher says something else now"):
            command(f"--output={tmp_path / 'store'}", "--check")


def test_a_check_reads_every_chunk_and_wants_the_same_dtype(command, recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(precompute, "CHECKED", 1)
    for chunk in range(4):
        folder = tmp_path / str(chunk)
        shutil.copytree(recorded, folder)
        file = next((folder / "rest" / "c").glob(f"{chunk}*"))
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(UserError, match=f"chunk {chunk} of .* cannot be read"):
            command(f"--output={folder}", "--check")
    with pytest.raises(UserError, match=r"config\.model\.dtype: is bfloat16, .* was recorded in float32; check it in"):
        command(f"--output={recorded}", "--check", "--config.model.dtype=bfloat16")


def test_a_store_of_another_run_is_neither_checked_nor_gone_on_with(command, recorded):
    for check in ((), ("--check",)):
        with pytest.raises(UserError, match=r"mixing\.mixup is 0\.5, recorded with 0\.8") as error:
            command(f"--output={recorded}", "--config.mixing.mixup=0.5", *check)
        assert "seed" not in str(error.value)


@pytest.mark.long
def test_one_view_is_the_centre_crop_of_every_example(teacher, tmp_path, monkeypatch):
    config = distilled_config(teacher, data__crop_ratio=0.7, data__max_corrupt=1.0)
    result = precompute.Recording(config, "one").write(tmp_path / "store")
    assert result["rows"] == result["recorded"] == read_header(tmp_path / "store").rows == 1437
    run = tiny_run(config)
    asked = open_teacher(config, NAMES)
    (batch,) = eval_batches(
        run.source, batch_size=1437, rows=range(1437), image_size=8, crop_ratio=0.7, threads=0, prefetch=0
    )
    expected = jnp.argmax(jax.jit(asked)(asked.variables, batch["image"] / np.float32(255)), axis=1)
    other = dataclasses.replace(distilled_config(teacher, data__crop_ratio=0.7), seed=5, batch_size=8)
    other = replace(other, "distillation", store=str(tmp_path / "store"))
    store = open_store(other, run.source, rows=10**9)  # as long a run as one likes, of any seed and batch
    np.testing.assert_array_equal(store.read(np.arange(0, 1437), np.arange(1437))["labels"], expected)

    def examples(step):
        """At the positions of a batch and the one after it."""
        positions = range(32 * step, 32 * step + 33)
        return np.array([example_index(at, seed=config.seed, examples=1437, batch_size=32) for at in positions])

    read, broken = MemorySource.__getitem__, examples(45)[7]

    def read_or_fail(self, index):
        if index == broken:
            raise CorruptImage("damaged")
        return read(self, index)

    monkeypatch.setattr(MemorySource, "__getitem__", read_or_fail)
    for step, (batch, replaced) in enumerate(run.batches(44, 46, store), 44):
        shown = examples(step)  # of the second epoch
        if step == 45:
            assert replaced == 1
            shown[7] = shown[8]  # its neighbour stands in, and the teacher's word on it
        np.testing.assert_array_equal(batch["teacher"]["labels"], expected[shown[batch["place"]]])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--output: missing"),
        (["--config.distillation.kind=none"], r"config\.distillation\.kind: is 'none', so there is nothing to record"),
        (["--config.distillation.token=False"], r"config\.distillation\.token: is False, .* 2 head.* set it to True"),
        (["--config.distillation.teacher.weights=nowhere"], r"config\.distillation\.teacher\.weights: nowhere"),
        (["--check"], "is no store"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_anything_is_written(command, tmp_path, flags, message):
    output = [] if not flags else [f"--output={tmp_path / 'store'}"]
    with pytest.raises(UserError, match=message):
        command(*output, *flags)
    assert not (tmp_path / "store").exists()


def test_teachers_that_differ_between_processes_are_not_recorded(command, tmp_path, monkeypatch):
    def differs(teacher):
        raise UserError("the teachers differ")

    monkeypatch.setattr(teaching, "require_same_teacher", differs)
    with pytest.raises(UserError, match="the teachers differ"):
        command(f"--output={tmp_path / 'store'}")
    assert not (tmp_path / "store").exists()


def test_a_teacher_that_says_nothing_is_refused(teacher, tmp_path):
    variables, meta = read_variables(teacher / "checkpoints")
    variables["fc_norm.scale"] = np.full(24, 3e38, np.float32)  # finite, and too large to compute with
    write_variables(tmp_path / "nan" / "checkpoints", variables, meta)
    config = distilled_config(tmp_path / "nan", distillation__kind="soft", distillation__top_k=3)
    with pytest.raises(UserError, match="its logits are NaN or infinite in the batch of step 0"):
        precompute.Recording(config, "stream").write(tmp_path / "store")


@pytest.mark.long
def test_a_store_in_a_bucket_is_the_one_on_a_disk(teacher, recorded, bucket):
    """Recorded there in two goes, by a teacher from there, checked there, and read from there."""
    config = distilled_config(teacher, distillation__kind="soft", distillation__top_k=3)
    copy_whole(teacher, place(f"{bucket}/teacher", ""))
    there = replace(
        config,
        "distillation",
        teacher=dataclasses.replace(config.distillation.teacher, weights=f"{bucket}/teacher"),
        store=f"{bucket}/store",
    )
    recording, store = precompute.Recording(there, "stream"), place(f"{bucket}/store", "")
    recording.write(store)
    (store / "done" / "1").unlink()
    (store / "values" / "c" / "2" / "0").write_bytes(b"damaged")
    assert recording.write(store)["recorded"] == 2 * recording.header.chunk
    with here(store) as copy:
        assert content(copy) == content(recorded)
    assert precompute.check(there, store)["same_labels"] == 100.0
    run = tiny_run(there)
    ours = open_store(there, run.source, ROWS).read(np.arange(96, 128), np.arange(32))
    theirs = Store(recorded, fingerprint={}, rows=ROWS, soft=True).read(np.arange(96, 128), np.arange(32))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, strict=True)
    (store / "labels" / "c" / "0").write_bytes(b"damaged")
    with pytest.raises(UserError, match=f"chunk 0 of {store} cannot be read: .*run deit_jax.precompute again"):
        open_store(there, run.source, ROWS).read(np.arange(32), np.arange(32))
