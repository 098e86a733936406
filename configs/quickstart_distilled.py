"""The DeiT of configs/quickstart.py, with a distillation token and the teacher of configs/quickstart_teacher.py.

python -m deit_jax.main --config=configs/quickstart_distilled.py
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    config = recipes.digits("deit_tiny_distilled_patch16_224", **recipes.arguments(argument, hardware="auto"))
    config.distillation.kind = "hard"
    config.distillation.teacher.update(name="regnety_002", weights="runs/quickstart_teacher")
    return config
