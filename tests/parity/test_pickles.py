"""torch's pickles, with torch itself."""

import argparse
import collections
import os
import pathlib

import ml_dtypes
import numpy as np
import pytest

from deit_jax.base.errors import UserError
from deit_jax.weights.files import read_tensors
from deit_jax.weights.places import find

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

RAW = collections.OrderedDict(w=torch.arange(6.0).reshape(2, 3), b=torch.tensor([1.5, 2.5]))
AVERAGE = {name: value + 100 for name, value in RAW.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "w.pth"


def assert_is(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value.numpy(), strict=True)


@pytest.mark.parametrize(("raw", "average"), [("model", "model_ema"), ("state_dict", "state_dict_ema")])
def test_checkpoints_of_training_scripts(path, raw, average):
    arguments = argparse.Namespace(lr=np.float64(0.1), output_dir=pathlib.Path("x"))
    best = {"top1": np.float64(81.5), "epoch": np.int64(3), "loss": np.float32(0.5)}
    torch.save({raw: RAW, average: AVERAGE, "optimizer": {"state": {}}, "best": best, "args": arguments}, path)
    assert_is(read_tensors(path)[0], RAW)
    assert_is(read_tensors(path, ema=False)[0], RAW)
    assert_is(read_tensors(path, ema=True)[0], AVERAGE)


@pytest.mark.parametrize("zipped", [True, False])
def test_bare_state_dicts(path, zipped):
    torch.save(RAW, path, _use_new_zipfile_serialization=zipped)
    assert_is(read_tensors(path)[0], RAW)
    with pytest.raises(UserError, match=r"has no moving average \(model_ema, .* or ema\)"):
        read_tensors(path, ema=True)


def test_bfloat16_keeps_its_bits(path):
    torch.save({"x": torch.tensor([[1.5, 3e38], [2.5, 0]]).bfloat16().T}, path)
    x = read_tensors(path)[0]["x"]
    assert x.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(x, np.array([[1.5, 2.5], [3e38, 0]], ml_dtypes.bfloat16))


def test_counters_are_left_out(path):
    torch.save(torch.nn.BatchNorm2d(3).state_dict(prefix="bn."), path)
    assert read_tensors(path)[0].keys() == {"bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"}


def test_data_parallel_prefix(path):
    torch.save({"model": {f"module.{name}": value for name, value in RAW.items()}}, path)
    assert_is(read_tensors(path)[0], RAW)
    torch.save({"model": {**RAW, "module.b": RAW["b"]}}, path)
    with pytest.raises(UserError, match=r"a tensor is duplicated: b is there as module\.b too"):
        read_tensors(path)
    torch.save({"model": {f"module._orig_mod.{name}": value for name, value in RAW.items()}}, path)
    assert_is(read_tensors(path)[0], RAW)


def test_checkpoints_of_timm(tmp_path):
    """By their own file name, with the architecture's, and with plain data of more kinds."""
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": RAW, "arch": "deit_tiny_patch16_224", "history": {"loss": np.ones(3)}}, path)
    tensors, metadata = read_tensors(path)
    assert_is(tensors, RAW)
    assert metadata == {"arch": "deit_tiny_patch16_224"}
    assert find(str(path), "", None).card.model == "deit_tiny_patch16_224"
    torch.save({"state_dict": RAW, "arch": "my_own"}, path)
    assert find(str(path), "", None).card.model == ""


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused(path, tmp_path, zipped):
    torch.save({"model": RAW, "x": Hostile(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"w\.pth: refused: holds posix\.mkdir, which is no plain data") as error:
        read_tensors(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_damage_is_told(path):
    torch.save(RAW, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"These are no weights.", b"hello", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"w\.pth: is damaged or no file of torch's(: .*)?; fetch it anew") as error:
            read_tensors(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds list"),
        ({}, "holds dict"),
        ({"epoch": 3}, "epoch is no tensor"),
        ({3: torch.zeros(2)}, "3 is no name; save"),
        ({"a": torch.zeros(2).to(torch.float8_e4m3fn)}, "a is of type float8_e4m3fn; save it as plain float32"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "a is of type complex64"),
        ({"a": torch.eye(2).to_sparse()}, "a is of type sparse float32; save it as plain"),
        ({"a": torch.zeros(2, device="meta")}, "a is on the device meta, without its numbers; save the weights"),
    ],
)
def test_what_is_no_state_dict(path, content, message):
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read_tensors(path)


@pytest.mark.parametrize(
    "content",
    [
        {"model_state_dict": RAW, "optimizer_state_dict": {}, "epoch": 1, "loss": torch.tensor(0.5)},
        {"net": {f"module.{name}": value for name, value in RAW.items()}, "acc": 90.1},
        {
            "state_dict": RAW,
            "pytorch-lightning_version": "2.2",
            "loops": {"fit": {}},
            "optimizer_states": [{"state": {}}],
        },
        {"params": RAW, "params_ema": AVERAGE},
        {"model": RAW, "optimizer": {"exp_avg": torch.zeros(3)}},
        {"mine": RAW, "epoch": 3},
        {**RAW, "n_averaged": torch.tensor(7), "begun": torch.tensor(True)},
    ],
)
def test_what_scripts_put_around_the_weights(path, content):
    torch.save(content, path)
    assert_is(read_tensors(path)[0], RAW)


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema"])
def test_an_average_alone_is_taken_and_that_is_said(path, caplog, key):
    torch.save({key: AVERAGE, "epoch": 3}, path)
    assert_is(read_tensors(path)[0], AVERAGE)
    assert caplog.messages == [f"{path}: has no weights but the moving average ({key}), which is taken"]
    assert_is(read_tensors(path, ema=True)[0], AVERAGE)
    assert len(caplog.messages) == 1
    with pytest.raises(UserError, match=rf"has the moving average \({key}\) alone, no raw weights; leave out"):
        read_tensors(path, ema=False)


def test_several_kinds_of_weights_are_not_guessed_at(path):
    torch.save({"student": RAW, "teacher": AVERAGE}, path)
    with pytest.raises(UserError, match="has weights of several kinds, student, teacher; save one state_dict"):
        read_tensors(path)


def test_a_small_file_cannot_tell_of_a_large_tensor(path):
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path)
    with pytest.raises(UserError, match=r"a repeats what is stored once; save it as a\.contiguous\(\)"):
        read_tensors(path)
