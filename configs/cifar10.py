"""A DeiT-Ti of patch 4 on CIFAR-10 at its own 32 px, from scratch, for one GPU.

Prepare the data once (needs `pip install -e '.[prepare]'`):

    python -c "import tensorflow_datasets as tfds
    tfds.builder('cifar10', file_format='array_record').download_and_prepare()"

and train:

    python -m deit_jax.main --config=configs/cifar10.py
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    config = recipes.deit("deit_tiny_patch16_224", dataset="cifar10", **recipes.arguments(argument, hardware="auto"))
    recipes.crop_and_flip(config)
    config.batch_size = 512
    config.model.patch_size = 4
    config.data.update(image_size=32, crop_scale=(0.4, 1.0), crop_ratio=1.0)
    config.optim.learning_rate = 1e-3
    config.ema.decay = 0.9998
    return config
