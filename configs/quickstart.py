"""A small DeiT on scikit-learn's 8x8 digits, enlarged to 32 px: the whole program in minutes on two CPU cores.

    python -m deit_jax.main --config=configs/quickstart.py

1,437 digits to learn from, 360 held out; top-1 on these is about 98.6 %.
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    return recipes.digits("deit_tiny_patch16_224", **recipes.arguments(argument, hardware="auto"))
