"""A small model with random weights in place of the weights that commands open, and photos for it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from deit_jax import classifier
from deit_jax.models import Preprocessing, bind, create_model, flatten
from deit_jax.weights import Card

CONVNET = "regnety_002"
SIZE, PATCH, WIDTH, DEPTH, HEADS, CLASSES = 35, 7, 22, 3, 2, 11
IMAGES_AND_CLASSES = {"image_size": SIZE, "num_classes": CLASSES}
NAMES = ("n01440764", "dress", "ein Schuh", *(f"class {i}" for i in range(3, CLASSES)))
PREPROCESSING = Preprocessing((0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 0.875)


def small_model(name: str = "deit_tiny_patch16_224", **overrides: Any) -> nnx.Module:
    """Every axis of another size; weights so large that attention and classes differ clearly."""
    sizes = {"patch_size": PATCH, "width": WIDTH, "depth": DEPTH, "heads": HEADS}
    return _disturbed(create_model(name, rngs=nnx.Rngs(3), **IMAGES_AND_CLASSES | sizes | overrides))


def small_convnet() -> nnx.Module:
    """A RegNetY with statistics that are not those of the beginning."""
    sizes = {"depths": (1, 2), "widths": (8, WIDTH), "group_width": 2, "stem_width": 6}
    return _disturbed(create_model(CONVNET, rngs=nnx.Rngs(3), **IMAGES_AND_CLASSES | sizes))


def _disturbed(model: nnx.Module) -> nnx.Module:
    random = np.random.default_rng(5)
    noise = {name: 0.3 * random.normal(size=value.shape) for name, value in flatten(model).items()}
    return bind(model, {name: value + noise[name].astype(np.float32) for name, value in flatten(model).items()})


def stand_in(monkeypatch: pytest.MonkeyPatch, model: nnx.Module, card: Card) -> list[dict[str, Any]]:
    """`--weights=anything` opens the model; returns what was asked for, call by call."""
    calls: list[dict[str, Any]] = []

    def open_model(spec: str, **options: Any) -> tuple[nnx.Module, Card]:
        calls.append({"spec": spec, **options})
        return model, card

    monkeypatch.setattr(classifier, "open_model", open_model)
    return calls


def photo(height: int, width: int, seed: int) -> np.ndarray:
    """uint8 [height, width, 3] with smooth parts, edges and noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = 127 + 100 * np.sin(x[..., None] / random.uniform(2, 9, 3) + y[..., None] / random.uniform(2, 9, 3))
    return np.clip(waves + random.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)


def write_photos(folder: Path, names: list[str]) -> list[str]:
    """A different photo, of a different size, at each of the names."""
    paths = []
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(37 + 3 * seed, 61 - 2 * seed, seed)).save(path)
        paths.append(str(path))
    return paths
