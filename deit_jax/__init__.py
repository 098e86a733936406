"""DeiT in pure JAX / Flax NNX: data-efficient image Transformers."""

from deit_jax.models import list_models
from deit_jax.weights import create_model, load_weights

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "list_models", "load_weights"]
