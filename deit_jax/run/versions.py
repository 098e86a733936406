"""The versions that a run's numbers depend on, and settings of JAX that a user may have changed."""

import contextlib
from importlib import metadata
from typing import Any

from deit_jax import __version__

PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "flax", "optax", "numpy")
STORES = ("orbax-checkpoint", "tensorstore", "grain", "tensorflow-datasets", "array-record", "scikit-learn")
PIXELS = ("Pillow", "simplejpeg")
SETTINGS = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_numpy_dtype_promotion",
    "jax_threefry_partitionable",
)


def settings() -> dict[str, Any]:
    """Of JAX, by the names of their environment variables."""
    import jax  # not at the top: commands tell mistakes before

    return {name.upper(): getattr(jax.config, name, None) for name in SETTINGS}


def versions() -> dict[str, str]:
    """Of this package and of those that it computes with, by name; but for what is not there."""
    found = {"deit_jax": __version__}
    for name in (*PACKAGES, *STORES, *PIXELS):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
