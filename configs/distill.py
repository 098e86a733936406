"""A distilled DeiT on your own photos: published weights, fine-tuned at 224 px with the teacher of configs/teacher.py.

    python -m deit_jax.main --config=configs/distill.py --config.data.dir=photos

The teacher runs beside the student. To ask it once instead of in every run, record it first:

    python -m deit_jax.precompute --config=configs/distill.py --config.data.dir=photos --output=runs/store
    python -m deit_jax.main --config=configs/distill.py --config.data.dir=photos --config.distillation.store=runs/store

Another teacher: `--config.distillation.teacher.name` and `.weights`. From scratch: `--config.init_from=` (nothing).
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    arguments = recipes.arguments(argument, hardware="auto", dataset="folder", model="deit_small_distilled_patch16_224")
    config = recipes.finetune(arguments.pop("model"), **arguments)
    config.distillation.kind = "hard"
    config.distillation.teacher.update(name="regnety_016", weights="runs/teacher")
    return config
