"""DeiT-B on ImageNet-1k at 224 px for 300 epochs: 86.6 M parameters.

    python -m deit_jax.main --config=configs/deit_base.py

The paper reports 81.8 % top-1 (arXiv:2012.12877, table 5); docs/recipes.md has what differs.
`:dataset=cifar10` or `dataset=folder` trains on other data.
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    arguments = recipes.arguments(argument, hardware="auto", dataset="imagenet2012")
    config = recipes.deit("deit_base_patch16_224", **arguments)
    config.mixing.group = 64  # the paper trains it with 64 images a GPU, the smaller models with 256
    return config
