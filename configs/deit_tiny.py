"""DeiT-Ti on ImageNet-1k at 224 px for 300 epochs: 5.7 M parameters.

    python -m deit_jax.main --config=configs/deit_tiny.py

The paper reports 72.2 % top-1 (arXiv:2012.12877, table 5); docs/recipes.md has what differs.
`:dataset=cifar10` or `dataset=folder` trains on other data.
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    arguments = recipes.arguments(argument, hardware="auto", dataset="imagenet2012")
    return recipes.deit("deit_tiny_patch16_224", **arguments)
