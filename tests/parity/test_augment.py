"""The whole training transform against timm's and torchvision's, which draw: `make parity`.

`DEIT_JAX_PHOTOS=FOLDER` takes the photos of a folder and the folders in it; without, pictures are made.
"""

import importlib.util
import os
import random
from pathlib import Path

import numpy as np
import pytest

from deit_jax.data.decode import SUFFIXES, decode
from deit_jax.data.operations import Operation
from deit_jax.data.train_transform import TrainTransform, View

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytestmark = pytest.mark.parity

PICTURES, SIZE = 200, 224
CASES = {
    "DeiT": {"augment": "rand-m9-mstd0.5-inc1", "interpolation": "bicubic"},
    "DeiT by timm's script": {"augment": "rand-m9-mstd0.5-inc1", "interpolation": "random"},
    "DeiT-III": {"augment": "3a", "interpolation": "bicubic", "color_jitter": 0.3},
    "DeiT-III's crop": {"crop": "simple"},
}


@pytest.fixture(scope="module")
def reference():
    """The script of the golden file, which can listen to timm."""
    golden = Path(__file__).parents[1] / "golden" / "make_augment.py"
    spec = importlib.util.spec_from_file_location(golden.stem, golden)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pictures(reference) -> list[np.ndarray]:
    if folder := os.environ.get("DEIT_JAX_PHOTOS"):
        files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
        chosen = random.Random(0).sample(files, PICTURES)
        return [decode(path.read_bytes(), exif=False) for path in chosen]
    sides = np.random.default_rng(0).integers(90, 400, (PICTURES, 2)).tolist()
    return [reference.draw(*shape, seed) for seed, shape in enumerate(sides)]


@pytest.mark.parametrize("case", CASES)
def test_what_the_reference_drew_gives_its_picture(case, reference, pictures):
    settings = CASES[case]
    if "crop" in settings:
        theirs = reference.torchvisions(settings["crop"], SIZE)
    else:
        theirs = reference.timms(settings["augment"], settings["interpolation"], settings.get("color_jitter"), SIZE)
    transform = TrainTransform(SIZE, **settings)
    reference.seed_all(0)
    flips = 0
    for image in pictures:
        told, expected = reference.whole(image, theirs)
        operations = tuple(Operation(*operation) for operation in told["operations"])
        view = View(tuple(told["box"]), told["flip"], told["interpolation"], operations)
        np.testing.assert_array_equal(transform.apply(image, view), expected)
        flips += told["flip"]
    assert PICTURES / 3 < flips < 2 * PICTURES / 3
