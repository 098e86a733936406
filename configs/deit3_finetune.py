"""DeiT-III of configs/deit3.py fine-tuned on ImageNet-1k for 20 epochs: base, large and huge at 224 px, small at 384.

    python -m deit_jax.main --config=configs/deit3_finetune.py:model=base --config.init_from=runs/deit3

facebook reports 83.8 (base), 84.9 (large), 85.2 (huge) and 83.4 % top-1 (small). Commands for base and large at 384 px
are not published. Medium takes the settings of base.
"""

from ml_collections import ConfigDict

from deit_jax import recipes

# model -> (name, stochastic depth, images a GPU)
MODELS = {
    "small": ("deit3_small_patch16_384", 0.0, 64),
    "medium": ("deit3_medium_patch16_224", 0.2, 64),
    "base": ("deit3_base_patch16_224", 0.2, 64),
    "large": ("deit3_large_patch16_224", 0.45, 64),
    "huge": ("deit3_huge_patch14_224", 0.55, 32),
}


def get_config(argument: str | None = None) -> ConfigDict:
    arguments = recipes.arguments(argument, hardware="auto", dataset="imagenet2012", model="base")
    name, drop_path, group = recipes.choose(MODELS, arguments.pop("model"), "model")
    config = recipes.deit(name, **arguments)
    config.init_from = "runs/deit3"
    config.batch_size = 512
    recipes.set_duration(config, "total", epochs=20)
    config.model.drop_path = drop_path
    config.data.repeats = 1
    config.erasing.probability = 0.0
    config.mixing.group = group
    config.optim.update(learning_rate=1e-5, scale_by_batch=False, weight_decay=0.1)
    return config
