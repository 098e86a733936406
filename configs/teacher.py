"""A convolutional teacher for your own photos: the published RegNetY-1.6GF, fine-tuned at 224 px.

    python -m deit_jax.main --config=configs/teacher.py --config.data.dir=photos

`:model=regnety_160` is the paper's teacher, `regnety_002` the smallest; `--config.init_from=` (nothing) trains from
scratch. `configs/distill.py` distils it; docs/distillation.md has the whole way.
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    arguments = recipes.arguments(argument, hardware="auto", dataset="folder", model="regnety_016")
    config = recipes.finetune(arguments.pop("model"), **arguments)
    config.model.drop_path = 0.0
    config.optim.learning_rate = 4e-3
    return config
