"""Stores: whole or refused, by one line that says what to do."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.distill import Header, Store, Writer, store

PRINT = {"seed": 3, "classes": ["a", "b", "c"], "mixing.mixup": 0.8}
HEADER = Header(classes=11, top=3, rows=26, chunk=6, views="stream", dtype="float32", fingerprint=PRINT)
ROWS = {
    "labels": np.arange(26, dtype=np.uint8) % 11,
    "values": np.arange(78, dtype=np.float16).reshape(26, 3),
    "indices": (np.arange(78, dtype=np.uint8) % 11).reshape(26, 3),
    "rest": -np.arange(26, dtype=np.float16),
}


def chunk_of(rows, chunk):
    return {name: array[6 * chunk : 6 * chunk + 6] for name, array in rows.items()}


def record(folder, header=HEADER, chunks=(4, 0, 3, 1, 2)):
    writer = Writer(folder, header)
    for chunk in chunks:
        rows = chunk_of(ROWS, chunk)
        writer.write(chunk, {name: rows[name] for name in header.arrays()})
    return writer


def opened(folder, **given):
    return Store(folder, **{"fingerprint": PRINT, "rows": 26, "soft": True} | given)


def refused(call, *arguments, **given):
    with pytest.raises(UserError) as error:
        call(*arguments, **given)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "store"
    record(folder)
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "store")
    return tmp_path / "store"


def test_what_is_written_is_read(whole):
    store = opened(whole)
    for start in (*range(0, 24, 2), 20, 3):  # on and back
        rows = store.read(np.arange(start, start + 2), np.zeros(2, int))
        assert rows.keys() == ROWS.keys()
        for name, array in rows.items():
            np.testing.assert_array_equal(array, ROWS[name][start : start + 2])
            assert array.dtype == ROWS[name].dtype
    assert len(store.read(np.arange(24, 26), np.zeros(2, int))["labels"]) == 2


def test_a_hard_run_reads_labels_alone(whole, tmp_path):
    assert opened(whole, soft=False).read(np.arange(6, 9), np.zeros(3, int)).keys() == {"labels"}
    record(tmp_path / "hard", dataclasses.replace(HEADER, top=0))
    np.testing.assert_array_equal(
        opened(tmp_path / "hard", soft=False).read(np.arange(7, 9), np.zeros(2, int))["labels"], [7, 8]
    )
    message = refused(opened, tmp_path / "hard")
    assert message.startswith("config.distillation.kind: is soft, and ")


def test_one_view_is_asked_for_by_example(tmp_path):
    record(tmp_path / "one", dataclasses.replace(HEADER, views="one"))
    examples = np.array([25, 0, 13, 13])
    rows = opened(tmp_path / "one").read(np.arange(1000, 1004), examples)
    for name, array in rows.items():
        np.testing.assert_array_equal(array, ROWS[name][examples])


def test_bytes_are_counted(whole):
    assert HEADER.nbytes == 26 * (1 + 6 + 3 + 2) == sum(array.nbytes for array in ROWS.values())


def test_a_recording_goes_on_where_it_was_killed(tmp_path):
    folder = tmp_path / "store"
    assert record(folder, chunks=(0, 3)).missing() == [1, 2, 4]
    assert "is incomplete: 3 of 5 chunks are missing" in refused(opened, folder)
    assert record(folder, chunks=(4, 1)).missing() == [2]
    record(folder, chunks=(2,))
    assert opened(folder).read(np.arange(24, 26), np.zeros(2, int))["labels"].tolist() == [2, 3]


@pytest.mark.parametrize("left", ["nothing", "torn header", "header", "an array"])
def test_a_recording_killed_at_its_beginning_goes_on(tmp_path, left):
    folder = tmp_path / "store"
    if left == "an array":
        record(folder, chunks=())
        shutil.rmtree(folder / "rest")
        (folder / "values" / "zarr.json").unlink()
    elif left != "nothing":
        folder.mkdir()
        text = json.dumps(dataclasses.asdict(HEADER))
        if left == "header":
            (folder / "store.json").write_text(text)
        else:  # as `replacing` leaves it when it is killed
            fresh = replacing(folder / "store.json").__enter__()
            fresh.write_text(text[:9])
            assert [path.name for path in folder.iterdir()] == [fresh.name]
    record(folder)
    opened(folder)
    assert json.loads((folder / "store.json").read_text()) == dataclasses.asdict(HEADER)


def test_another_recording_may_not_go_on_with_it(copied, tmp_path):
    other = dataclasses.replace(HEADER, dtype="bfloat16", fingerprint=PRINT | {"seed": 4})
    message = refused(Writer, copied, other)
    assert "dtype is 'bfloat16', recorded with 'float32'; seed is 4, recorded with 3" in message
    assert "rows" not in message
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    assert refused(Writer, tmp_path / "photos", HEADER).startswith("--output: ")
    assert refused(Writer, tmp_path / "photos" / "cat.jpg", HEADER).startswith("--output: cannot write to ")


@pytest.mark.parametrize("name", ["done", "labels", "labels/c", "values/c/1", "labels/zarr.json", "done/1"])
def test_a_recording_writes_through_no_link(copied, tmp_path, name):
    """What they lead to is not touched."""
    (copied / name).rename(tmp_path / "elsewhere")
    (copied / name).symlink_to(tmp_path / "elsewhere")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert f"{copied / name} is a link, and a recording writes into its own" in refused(Writer, copied, HEADER)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
    assert opened(copied).read(np.arange(6, 8), np.zeros(2, int))["labels"].tolist() == [6, 7]


def test_a_part_of_the_chunks_is_looked_at(copied, monkeypatch):
    (copied / "done" / "2").unlink()
    (copied / "labels" / "c" / "1").write_text("damaged")
    read, looked = store._read, []
    monkeypatch.setattr(store, "_read", lambda *given: looked.append(given[-1]) or read(*given))
    writer = Writer(copied, HEADER)
    assert [writer.missing(range(first, 5, 2)) for first in (0, 1)] == [[2], [1]]
    assert looked == [0, 4, 1, 3]


def test_the_folder_of_a_recording_may_be_a_link(copied, tmp_path):
    (tmp_path / "link").symlink_to(copied)
    assert record(tmp_path / "link", chunks=()).missing() == []


def test_another_run_may_not_replay_it(whole):
    classes = [f"n{i:08d}" for i in range(1000)]
    message = refused(opened, whole, fingerprint=PRINT | {"mixing.mixup": 0.1, "classes": classes, "flip": 0.5})
    assert "recorded for another run" in message
    for part in ("mixing.mixup is 0.1, recorded with 0.8", "flip is 0.5, recorded with None", "n00000002', ...]"):
        assert part in message
    assert "seed" not in message
    assert len(message) < 500
    opened(whole, fingerprint={"seed": 3})


def test_a_longer_run_may_not_replay_it(whole):
    assert "has 26 rows, the run needs 27" in refused(opened, whole, rows=27)
    opened(whole, rows=5)


def test_what_is_no_store_is_refused(tmp_path, copied):
    assert "is no store; make one with deit_jax.precompute" in refused(opened, tmp_path / "nowhere")
    text = (copied / "store.json").read_text()
    for damaged in (text[:50], "[]", text.replace('"top"', '"tip"')):
        (copied / "store.json").write_text(damaged)
        assert "store.json cannot be read: " in refused(opened, copied)


DAMAGE = {
    "truncated": lambda data: data[:-5],
    "emptied": lambda data: b"",
    "bit-flipped": lambda data: bytes([data[0] ^ 16]) + data[1:],
    "missing": None,
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("chunk", [1, 4])
def test_a_damaged_chunk_is_one_line_and_can_be_recorded_anew(copied, name, chunk, damage):
    (path,) = [path for path in (copied / name / "c" / str(chunk)).rglob("*") if path.is_file()] or [
        copied / name / "c" / str(chunk)
    ]
    if DAMAGE[damage]:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    else:
        path.unlink()
    store, rows = opened(copied), np.arange(6 * chunk, 6 * chunk + 2)
    store.read(np.arange(0, 2), np.zeros(2, int))
    message = refused(store.read, rows, np.zeros(2, int))
    assert f"chunk {chunk} of {copied} cannot be read" in message
    assert len(message) < 700
    (copied / "done" / str(chunk)).unlink()  # as the line says
    record(copied, chunks=(chunk,))
    np.testing.assert_array_equal(opened(copied).read(rows, np.zeros(2, int))[name], ROWS[name][rows])


@pytest.mark.parametrize("name", ["labels/c/1", "values/c/1/0"])
@pytest.mark.parametrize("place", ["an empty folder", "a folder", "a pipe"])
def test_what_is_no_file_is_a_damaged_chunk(copied, name, place):
    path = copied / name
    path.unlink()
    if place == "a pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    if place == "a folder":
        (path / "precious").write_text("mine")
    message = refused(opened(copied).read, np.arange(6, 8), np.zeros(2, int))
    assert f"chunk 1 of {copied} cannot be read: {path} is no regular file; run deit_jax.precompute again" in message
    assert Writer(copied, HEADER).missing() == [1]
    if place == "a folder":
        assert f"{path} is a folder in the place of a file: Directory not empty; remove it, and" in refused(
            record, copied, chunks=(1,)
        )
        shutil.rmtree(path)
    assert record(copied, chunks=(1,)).missing() == []
    np.testing.assert_array_equal(opened(copied).read(np.arange(6, 8), np.zeros(2, int))["values"], ROWS["values"][6:8])


BAD_HEADERS = [
    *({"rows": 10**15}, {"rows": 0}, {"rows": "8"}, {"rows": True}, {"rows": 2.5}, {"rows": 10**12, "chunk": 1}),
    *({"chunk": 0}, {"chunk": "8"}, {"chunk": -6}, {"classes": "x"}, {"classes": 0}, {"classes": 10**9}, {"top": 12}),
    *(
        {"top": -1},
        {"views": "both"},
        {"views": 5},
        {"dtype": None},
        {"fingerprint": []},
        {"fingerprint": "x"},
        {"x": 1},
    ),
]


@pytest.mark.parametrize("change", BAD_HEADERS, ids=str)
def test_a_header_of_another_form_is_one_line(copied, change):
    header = json.loads((copied / "store.json").read_text())
    (copied / "store.json").write_text(json.dumps(header | change))
    message = refused(opened, copied)
    assert "store.json cannot be read: " in message
    assert refused(record, copied) == message


@pytest.mark.parametrize("text", ["", "5", "[]", "null", "{}", "[" * 9999, '{"rows": NaN}'])
def test_a_header_that_is_none_is_one_line(copied, text):
    (copied / "store.json").write_text(text)
    assert "store.json" in refused(opened, copied)


def test_an_array_that_cannot_be_opened_is_one_line(copied):
    for damage in (lambda path: path.write_text("{"), lambda path: path.unlink()):
        damage(copied / "values" / "zarr.json")
        message = refused(opened, copied)
        assert f"{copied / 'values'} cannot be opened: " in message
        assert len(message) < 700


def test_a_full_disk_is_one_line(tmp_path):
    """Stood in for by a file where the folder of the chunks belongs."""
    writer = record(tmp_path / "store", chunks=())
    (tmp_path / "store" / "labels" / "c").write_text("")
    assert refused(writer.write, 0, chunk_of(ROWS, 0)).startswith("--output: cannot write to ")
    assert writer.missing() == [0, 1, 2, 3, 4]
