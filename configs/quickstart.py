"""A small DeiT on scikit-learn's 8x8 digits, enlarged to 32 px: the whole program in minutes on two CPU cores.

    python -m deit_jax.main --config=configs/quickstart.py

1,437 digits to learn from, 360 held out; top-1 on these is about 98.6 %.
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    config = recipes.deit("deit_tiny_patch16_224", dataset="digits", **recipes.arguments(argument, hardware="auto"))
    config.batch_size = 64
    recipes.set_duration(config, "total", epochs=80)
    config.model.update(patch_size=8, width=96, depth=6, heads=3, drop_path=0.0)
    config.data.update(image_size=32, crop_scale=(0.8, 1.0), crop_ratio=1.0, flip=0.0, threads=2)
    config.mixing.update(mixup=0.1, cutmix=0.0, group=8)
    config.optim.update(learning_rate=1.6e-2, schedule_per_epoch=False)
    config.ema.decay = 0.99
    recipes.set_duration(config.log, "every", steps=20)
    recipes.set_duration(config.eval, "every", epochs=10)
    recipes.set_duration(config.checkpoint, "every", epochs=10)
    return config
