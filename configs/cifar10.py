"""A DeiT-Ti of patch 4 on CIFAR-10 at its own 32 px, from scratch, for one GPU.

Prepare the data once (needs `pip install -e '.[prepare]'`):

    python -c "import tensorflow_datasets as tfds
    tfds.builder('cifar10', file_format='array_record').download_and_prepare()"

and train:

    python -m deit_jax.main --config=configs/cifar10.py

Images are moved by up to 4 pixels, as facebook's code does at 32 px, and mirrored. `:augment=full` adds the rest of
DeiT's recipe, RandAugment, erasing and repeats, for long runs: in short ones these, together with mixing, which is on
in both, cost accuracy (benchmarks/results/augmentation.json). `--config.cosub.weight=0.5` lets submodels teach each
other.
"""

from ml_collections import ConfigDict

from deit_jax import recipes

AUGMENT = {"little": recipes.crop_and_flip, "full": lambda config: None}


def get_config(argument: str | None = None) -> ConfigDict:
    arguments = recipes.arguments(argument, hardware="auto", augment="little")
    config = recipes.deit("deit_tiny_patch16_224", dataset="cifar10", hardware=arguments["hardware"])
    recipes.choose(AUGMENT, arguments["augment"], "augment")(config)
    config.batch_size = 512
    config.mixing.group = 128
    config.model.patch_size = 4
    config.data.update(image_size=32, crop="pad", crop_ratio=1.0)
    config.optim.learning_rate = 1e-3
    config.ema.decay = 0.9998
    return config
