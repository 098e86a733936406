"""Weight files: what is read as it was written, and what is refused."""

import builtins
import errno
import json
import os
import stat
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from weight_samples import assert_same_arrays

from deit_jax.base.errors import UserError
from deit_jax.base.storage import copy_whole, place
from deit_jax.weights import places
from deit_jax.weights.files import read_tensors, write_safetensors
from deit_jax.weights.places import find

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "half": np.array([1.5, np.nan, np.inf], np.float16),
    "brain": np.array([1.5, 3e38], ml_dtypes.bfloat16),
    "empty": np.zeros((0, 5), np.float32),
}


def test_values_types_and_metadata_come_back(tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, TENSORS.items(), {"key": "value"})
    tensors, metadata = read_tensors(path)
    assert_same_arrays(TENSORS, tensors)
    assert metadata == {"key": "value", "format": "pt"}
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_float64_becomes_float32_and_is_told(tmp_path, caplog):
    safetensors.numpy.save_file({"x": np.array([1 / 3])}, tmp_path / "w.safetensors")
    tensors, _ = read_tensors(tmp_path / "w.safetensors")
    assert_same_arrays({"x": np.array([1 / 3], np.float32)}, tensors)
    assert "1 tensors are float64, taken as float32: x" in caplog.text


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    path.write_text("before")

    def half(tensors, path, metadata):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.numpy, "save_file", half)
    with pytest.raises(OSError, match="disk full"):
        write_safetensors(path, TENSORS.items(), {})
    assert [p.read_text() for p in tmp_path.iterdir()] == ["before"]


def test_errors_of_the_library_are_the_systems(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/w\.safetensors'") as error:
        write_safetensors(tmp_path / "w.safetensors", TENSORS.items(), {})
    assert error.value.errno == 28


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o022)
    try:
        write_safetensors(tmp_path / "w.safetensors", TENSORS.items(), {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == 0o644


def test_counters_are_left_out(tmp_path):
    """Those of batch normalisations, of torch's AveragedModel, and of other averages."""
    counters = {"bn.num_batches_tracked": np.array(7), "n_averaged": np.array([3], np.int32), "begun": np.array(True)}
    tensors = {"bn.weight": np.ones(3, np.float32), "scale": np.array(2, np.float32), "k": np.arange(2)}
    safetensors.numpy.save_file(tensors | counters, tmp_path / "w.safetensors")
    assert_same_arrays(tensors, read_tensors(tmp_path / "w.safetensors")[0])


def test_what_torch_puts_into_names_is_left_out(tmp_path):
    x = np.ones(3, np.float32)
    names = ["module.a", "_orig_mod.b.c", "module._orig_mod.d", "blocks.0._orig_mod.e", "b._fsdp_wrapped_module.f"]
    names += ["blocks.1._checkpoint_wrapped_module.g", "modules.h"]
    safetensors.numpy.save_file(dict.fromkeys(names, x), tmp_path / "w.safetensors")
    plain = ["a", "b.c", "d", "blocks.0.e", "b.f", "blocks.1.g", "modules.h"]
    assert_same_arrays(dict.fromkeys(plain, x), read_tensors(tmp_path / "w.safetensors")[0])
    safetensors.numpy.save_file({"a": x, "module.a": x}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"w\.safetensors: a tensor is duplicated: a is there as module\.a too"):
        read_tensors(tmp_path / "w.safetensors")


def test_more_than_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    """A sparse file takes no room itself, whatever its header says, rightly, of its length."""
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 3 * 2**18, "SC_PAGE_SIZE": 2**12}.get)
    length = 100 * 2**30
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(file_of({"a": {"dtype": "F32", "shape": [length // 4], "data_offsets": [0, length]}}, b""))
        file.truncate(file.tell() + length)
    (tmp_path / "w.pth").symlink_to(tmp_path / "w.safetensors")
    (tmp_path / "w.index.json").write_text('{"weight_map": {"a": "w.safetensors"}}')
    for name in ("w.safetensors", "w.pth", "w.index.json"):
        with pytest.raises(UserError, match=rf"{name}: holds 100 GiB of tensors, and this machine has 3 GiB of memory"):
            read_tensors(tmp_path / name)


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth: is no regular file"):
        read_tensors(tmp_path / "w.pth")


def file_of(header, data=b"\0" * 8):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWICE = b'{"a":%s,"a":%s}' % (json.dumps(ENTRY).encode(), json.dumps(ENTRY).encode())
HUGE = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
OVERLAPPING = {"a": ENTRY, "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}
BAD = {
    "text": (b"These are no weights, though the name says so.", "is no safetensors file, or cut off"),
    "html": (b"<!doctype html>" + b" " * 500, "is no safetensors file, or cut off"),
    "empty": (b"", "is no safetensors file, or cut off"),
    "cut header": (file_of({"a": ENTRY})[:20], "is no safetensors file, or cut off"),
    "cut data": (file_of({"a": ENTRY})[:-3], "its header tells of 8 bytes of tensors, there are 5"),
    "more data": (file_of({"a": ENTRY}) + b"\0", "its header tells of 8 bytes of tensors, there are 9"),
    "header of terabytes": (struct.pack("<Q", 2**42) + b"{}", "is no safetensors file, or cut off"),
    "tensor of terabytes": (file_of(HUGE), "its header tells of 4,398,046,511,104 bytes of tensors, there are 8"),
    "no JSON": (file_of(b"{'a': 1}"), "its header is no JSON: Expecting"),
    "other JSON": (file_of([1, 2]), "its header is no safetensors header"),
    "deep JSON": (file_of(b"[" * 100_000), "its header is nested more than 32 deep"),
    "no entry": (file_of({"a": 3}), "its header is no safetensors header"),
    "not text": (file_of(b"\xff\xfe\x00"), "its header is no UTF-8"),
    "metadata of another kind": (file_of({"a": ENTRY, "__metadata__": [1]}), "its header is no safetensors header"),
    "metadata of numbers": (file_of({"a": ENTRY, "__metadata__": {"x": 1}}), "its header has metadata that is no text"),
    "offsets of another kind": (file_of({"a": ENTRY | {"data_offsets": ["0", "8"]}}), "its header is no safetensors"),
    "offsets that are none": (file_of({"a": ENTRY | {"data_offsets": [0, None]}}), "its header is no safetensors"),
    "NaN": (file_of(b'{"a": NaN}'), "its header has the number NaN"),
    "long header": (file_of(b"{" + b" " * 32_000_000 + b"}"), "its header is longer than 32,000,000 bytes"),
    "twice": (file_of(TWICE), "its header has a twice"),
    "wrong shape": (file_of({"a": ENTRY | {"shape": [3]}}), "is damaged: .*"),
    "overlapping": (file_of(OVERLAPPING), "is damaged: .*"),
    "type": (
        file_of({"a": ENTRY | {"dtype": "F8_E4M3", "shape": [8]}}),
        "a is of type F8_E4M3, which is not read; write",
    ),
}


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_damaged_files_are_told_in_one_line(tmp_path, content, message):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=rf"w\.safetensors: {message}") as error:
        read_tensors(tmp_path / "w.safetensors")
    assert "\n" not in str(error.value)


def test_files_that_are_not_there_or_have_no_known_name(tmp_path):
    with pytest.raises(UserError, match=r"w\.safetensors: cannot be read: No such file"):
        read_tensors(tmp_path / "w.safetensors")
    (tmp_path / "d.safetensors").mkdir()
    with pytest.raises(UserError, match=r"d\.safetensors: cannot be read: Is a directory"):
        read_tensors(tmp_path / "d.safetensors")
    with pytest.raises(UserError, match=r"w\.npz: its name ends in none of \.safetensors, \.pth"):
        read_tensors(tmp_path / "w.npz")


def test_there_is_no_average_in_safetensors(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", TENSORS.items(), {})
    with pytest.raises(UserError, match="one set of weights, no moving average"):
        read_tensors(tmp_path / "w.safetensors", ema=True)


def test_without_torch_a_pickle_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "w.pth").touch()
    real = builtins.__import__

    def without_torch(name, *rest, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return real(name, *rest, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(UserError, match=r"w\.pth: takes torch to read: pip install 'deit_jax\[torch\]'"):
        read_tensors(tmp_path / "w.pth")


# Several files and an index


A, B, C = (np.full(3, value, np.float32) for value in (1, 2, 3))
SPLIT = {"m-00001-of-00002.safetensors": {"a": A, "b": B}, "m-00002-of-00002.safetensors": {"c": C}}


def write_shards(folder, split=SPLIT, **places):
    for name, tensors in split.items():
        safetensors.numpy.save_file(tensors, folder / name)
    told = {tensor: name for name, tensors in split.items() for tensor in tensors} | places
    (folder / "m.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": told}))
    return folder / "m.safetensors.index.json"


def test_several_files_are_read_as_one(tmp_path):
    assert_same_arrays({"a": A, "b": B, "c": C}, read_tensors(write_shards(tmp_path))[0])


def test_several_files_in_a_bucket(tmp_path, bucket):
    index = place(f"{bucket}/w/m.safetensors.index.json", "")
    copy_whole(write_shards(tmp_path).parent, index.parent)
    found = find(str(index), "", None)
    assert_same_arrays({"a": A, "b": B, "c": C}, found.tensors)
    assert found.where == str(index)
    shard = index.with_name("m-00002-of-00002.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"^{shard}: its header tells of 12 bytes"):
        find(str(index), "", None)
    shard.unlink()
    with pytest.raises(UserError, match=f"^{index}: {shard.name} is not there beside it; fetch all of the 2 files"):
        find(str(index), "", None)


def test_what_one_may_not_read_is_told_with_its_mend(bucket, monkeypatch):
    def fail(*arguments):
        raise PermissionError(errno.EACCES, "no permission")

    monkeypatch.setattr(places, "_find", fail)
    for spec, mend in (
        (f"{bucket}/run@3", "log in .* Storage Object User on gs://tests$"),
        ("run@3", "name a place that"),
    ):
        with pytest.raises(UserError, match=f"^{spec}: cannot be read: no permission; {mend}"):
            find(spec, "", None)


def test_wrappers_and_counters_of_several_files(tmp_path):
    split = {"1.safetensors": {"module.a": A, "module.n": np.array(3)}, "2.safetensors": {"module.c": C}}
    assert_same_arrays({"a": A, "c": C}, read_tensors(write_shards(tmp_path, split))[0])


FIRST, SECOND = SPLIT
BAD_SHARDS = {
    "one not there": ({FIRST: SPLIT[FIRST]}, {"c": SECOND}, rf"json: {SECOND} is not there beside it; fetch all of"),
    "none there": ({}, {"a": FIRST, "c": SECOND}, rf"json: {FIRST} is not there beside it \(nor are 1 more\)"),
    "in two": (SPLIT | {SECOND: {"c": C, "b": A}}, {"b": FIRST}, rf"{SECOND}: is not as m.* 1 of another file: b;"),
    "in none": (SPLIT, {"d": SECOND}, rf"{SECOND}: is not as m\.safetensors\.index\.json tells: 1 missing: d; fetch"),
    "outside": (SPLIT, {"c": f"../{SECOND}"}, rf"json: names '\.\./{SECOND}', which is no weight file beside it"),
    "absolute": (SPLIT, {"c": "/etc/w.safetensors"}, "json: names '/etc/w.safetensors', which is no weight file"),
    "of another kind": (SPLIT, {"c": "m.safetensors.index.json"}, "which is no weight file beside it"),
    "no text": (SPLIT, {"c": 3}, "json: has no weight_map that says which tensor"),
    "nothing": ({}, {}, "json: has no weight_map"),
    "NUL": (SPLIT, {"c": "\0.safetensors"}, r"json: .*\.safetensors is not there beside it"),
}


@pytest.mark.parametrize(("split", "places", "message"), BAD_SHARDS.values(), ids=BAD_SHARDS)
def test_an_index_that_does_not_go_with_its_files_is_one_line(tmp_path, split, places, message):
    index = write_shards(tmp_path, split, **places)
    with pytest.raises(UserError, match=message) as error:
        read_tensors(index)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "{", '{"weight_map": []}', '{"weight_map": {"a": "x.pth", "a": "y.pth"}}'])
def test_an_index_that_is_none_is_one_line(tmp_path, text):
    (tmp_path / "m.index.json").write_text(text)
    with pytest.raises(UserError, match=r"m\.index\.json: (is no JSON|has no weight_map|has a twice).*; fetch it anew"):
        read_tensors(tmp_path / "m.index.json")
