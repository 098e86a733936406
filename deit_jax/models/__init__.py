"""The networks, built by name, and their parameters as one flat dict."""

from deit_jax.models.params import abstract_model, bind, flatten
from deit_jax.models.registry import create_model, list_models
from deit_jax.models.vit import VisionTransformer

__all__ = ["VisionTransformer", "abstract_model", "bind", "create_model", "flatten", "list_models"]
