"""The versions that a run's numbers depend on."""

import contextlib
from importlib import metadata

from deit_jax import __version__

COMPUTING = ("jax", "jaxlib", "flax", "optax", "numpy", "orbax-checkpoint", "tensorstore")
IMAGES = ("grain", "tensorflow-datasets", "array-record", "scikit-learn", "Pillow", "simplejpeg")
WHERE_THERE = ("libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin")


def versions() -> dict[str, str]:
    """Of this package and of those that it computes with, by name."""
    found = {"deit_jax": __version__} | {name: metadata.version(name) for name in (*COMPUTING, *IMAGES)}
    for name in WHERE_THERE:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
