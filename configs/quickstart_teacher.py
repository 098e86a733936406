"""A small RegNetY on the digits of configs/quickstart.py, for configs/quickstart_distilled.py to distil.

python -m deit_jax.main --config=configs/quickstart_teacher.py
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    config = recipes.digits("regnety_002", **recipes.arguments(argument, hardware="auto"))
    recipes.set_duration(config, "total", epochs=12)
    recipes.set_duration(config.optim, "warmup", epochs=1)
    config.ema.decay = 0.0
    return config
