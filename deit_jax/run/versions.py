"""The versions that a run's numbers depend on."""

from importlib import metadata

from deit_jax import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")


def versions() -> dict[str, str]:
    """Of this package and of those that it computes with, by name."""
    return {"deit_jax": __version__} | {name: metadata.version(name) for name in PACKAGES}
