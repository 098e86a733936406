"""Small networks of every family with weights that are all different: shared by the tests of weights."""

import functools
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from deit_jax.models import Preprocessing, abstract_model, flatten
from deit_jax.weights import Card, Weights, files, tables

SIZES = {"width": 6, "depth": 2, "heads": 2, "patch_size": 5, "image_size": (10, 15), "num_classes": 3}
FAMILIES: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "deit_base_distilled_patch16_384": {"dist_head": False},
    "deit3_small_patch16_224": {},
    "vit_tiny_patch16_224": {"norm_eps": 1e-12},
    "vit_small_patch16_gap_224": {"width": 8},
}
# Of which transformers has classes.
PUBLISHED = [name for name in FAMILIES if not re.search("deit3|gap", name)]
HALF = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.5)


def sample(name: str = "deit_tiny_patch16_224", *, seed: int = 0, **overrides: Any) -> Weights:
    """Float32 weights, but for one float16 and one bfloat16 tensor."""
    arguments = SIZES | FAMILIES[name] | overrides
    random = np.random.default_rng(seed)
    shapes = _shapes(name, tuple(arguments.items()))
    variables = {path: random.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    for path, dtype in (("blocks.1.mlp.fc1.kernel", np.float16), ("blocks.0.attn.qkv.bias", ml_dtypes.bfloat16)):
        variables[path] = variables[path].astype(dtype)
    names = tuple(f"class {i}" for i in range(arguments["num_classes"]))
    return Weights(variables, Card(name, arguments, names, HALF))


def convolutional(name: str, **overrides: Any) -> Weights:
    """Float32 weights and statistics of a convolutional network."""
    random = np.random.default_rng(0)
    shapes = _shapes(name, tuple(overrides.items()))
    variables = {path: random.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    return Weights(variables, Card(name, overrides, (), HALF))


def bare(path: Path, weights: Weights, scheme: tables.Scheme = tables.TIMM) -> Path:
    """Writes a file that has no card."""
    files.write_safetensors(path, tables.scatter(weights.variables, scheme), {})
    return path


@functools.cache
def _shapes(name: str, arguments: tuple[tuple[str, Any], ...]) -> dict[str, tuple[int, ...]]:
    return {path: leaf.shape for path, leaf in flatten(abstract_model(name, **dict(arguments))).items()}


def assert_same_arrays(ours, theirs):
    """Names, shapes, dtypes and every bit."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        other = np.asarray(theirs[name])
        assert (value.dtype, value.shape) == (other.dtype, other.shape), name
        assert value.tobytes() == other.tobytes(), name
