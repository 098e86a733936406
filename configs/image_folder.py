"""A DeiT-Ti on your own photos, from scratch, at 224 px.

    python -m deit_jax.main --config=configs/image_folder.py --config.data.dir=photos

`photos` has a folder a class, of which about a tenth is held out, or `train` and `validation` (or `test`) folders that
have. With a few thousand photos learning from scratch is slow work: expect far less than fine-tuning would give.
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    config = recipes.deit("deit_tiny_patch16_224", dataset="folder", **recipes.arguments(argument, hardware="auto"))
    recipes.crop_and_flip(config)
    config.batch_size = 64
    recipes.set_duration(config, "total", epochs=100)
    config.data.update(crop_scale=(0.5, 1.0), threads=4, max_corrupt=0.1)
    config.mixing.update(mixup=0.2, cutmix=0.5, probability=0.5, label_smoothing=0.0)
    config.optim.update(learning_rate=4e-3, schedule_per_epoch=False)
    config.ema.decay = 0.99
    recipes.set_duration(config.log, "every", steps=5)
    return config
