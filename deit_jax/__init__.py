"""DeiT in pure JAX / Flax NNX: data-efficient image Transformers."""

from deit_jax.models import create_model, list_models

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "list_models"]
