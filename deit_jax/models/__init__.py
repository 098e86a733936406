"""The networks, built by name, and their parameters as one flat dict."""

from deit_jax.models.convolution import ConvolutionalNetwork
from deit_jax.models.flops import forward_flops, product_flops, training_flops
from deit_jax.models.keys import Keys
from deit_jax.models.params import abstract_model, bind, check_fit, flatten, retype
from deit_jax.models.positions import resize_positions, sincos_positions
from deit_jax.models.registry import (
    Entry,
    Preprocessing,
    Pretrained,
    create_model,
    entry,
    list_models,
    resolve,
    untagged,
)
from deit_jax.models.vit import VisionTransformer

Network = VisionTransformer | ConvolutionalNetwork

__all__ = [
    "ConvolutionalNetwork",
    "Entry",
    "Keys",
    "Network",
    "Preprocessing",
    "Pretrained",
    "VisionTransformer",
    "abstract_model",
    "bind",
    "check_fit",
    "create_model",
    "entry",
    "flatten",
    "forward_flops",
    "list_models",
    "product_flops",
    "resize_positions",
    "resolve",
    "retype",
    "sincos_positions",
    "training_flops",
    "untagged",
]
