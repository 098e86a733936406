"""The published curves against what the readme says beside them, and the door that knows their names."""

import tomllib
from pathlib import Path

import numpy as np
import pytest

from deit_jax.base.errors import UserError
from deit_jax.config.curves import _file, published_curve

# name -> (epochs, points, accuracy in the readme's tables; None: of 21k's pretraining it has none)
PUBLISHED = {
    "deit3_small": (800, 161, 81.4),
    "deit3_base": (800, 161, None),  # at 192 px, as those below: the tables are of 224 px
    "deit3_large": (800, 161, None),
    "deit3_huge": (800, 161, None),
    "deit3_base_finetune_224": (20, 5, 83.8),
    "deit3_large_finetune_224": (20, 5, 84.9),
    "deit3_huge_finetune_224": (20, 5, 85.2),
    "deit3_small_finetune_384": (20, 5, 83.4),
    "deit3_base_finetune_384": (20, 5, 85.0),
    "deit3_large_finetune_384": (20, 5, 85.8),
    "deit3_small_21k_pretrain": (240, 49, None),
    "deit3_base_21k_pretrain": (240, 49, None),
    "deit3_large_21k_pretrain": (240, 49, None),
    "deit3_huge_21k_pretrain": (90, 19, None),
    "deit3_small_21k_finetune": (50, 11, 83.1),
    "deit3_base_21k_finetune": (50, 11, 85.7),
    "deit3_large_21k_finetune": (50, 11, 87.0),
    "deit3_huge_21k_finetune": (50, 11, 87.2),
}


def test_all_curves_are_known():
    assert list(_file()["curves"]) == list(PUBLISHED)
    assert "/facebookresearch/deit/blob/b001f95deb59339126b84e752fd790c262b78579/" in _file()["source"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_curve_goes_to_the_end_of_its_run_and_to_its_accuracy(name):
    length, count, accuracy = PUBLISHED[name]
    epochs, top1 = zip(*published_curve(name).points, strict=True)
    assert len(top1) == count
    assert epochs == (*range(1, length, 5), length)
    assert accuracy is None or abs(top1[-1] - accuracy) < 0.1
    settled = np.array(top1)[np.array(epochs) > 100]
    assert (np.abs(np.diff(settled)) < 1).all()  # no digit is lost, nor do two change places
    assert min(top1) >= 0
    assert top1[-1] > max(top1) - 0.3


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("deit3_small", {1: 0.1, 6: 2.008, 101: 63.122, 796: 81.352, 800: 81.376}),
        ("deit3_base", {1: 0.1, 401: 78.004, 800: 82.82}),
        ("deit3_large", {1: 0.092, 516: 82.0, 800: 84.024}),
        ("deit3_huge", {1: 0.062, 231: 71.439, 236: 71.983, 800: 83.484}),
        ("deit3_base_finetune_384", {1: 84.296, 16: 84.986, 20: 85.076}),
        ("deit3_huge_21k_pretrain", {1: 0.0, 6: 31.292, 90: 57.952}),
        ("deit3_small_21k_finetune", {1: 0.13, 6: 79.023, 50: 83.074}),
    ],
)
def test_points_are_those_of_the_readme(name, points):
    assert points.items() <= dict(published_curve(name).points).items()


def test_what_a_curve_is_of_is_told():
    assert published_curve("deit3_small").run == "facebook's DeiT-III-S, 800 epochs at 224 px"
    assert len({published_curve(name).run for name in PUBLISHED}) == len(PUBLISHED)


def test_no_name_is_no_curve():
    assert published_curve("").points == ()


def test_a_wrong_name_gets_its_nearest():
    with pytest.raises(
        UserError, match=r"^config.eval.published_curve: unknown curve 'deit_smal'; did you mean deit3_sm"
    ):
        published_curve("deit_smal")


def test_the_file_is_packaged():
    root = Path(__file__).parents[2]
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    others = [path.name for path in (root / "deit_jax" / "config").iterdir() if path.is_file() and path.suffix != ".py"]
    assert data["deit_jax.config"] == others == ["published_curves.json"]
