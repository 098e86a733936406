"""ViT-S/16 on ImageNet-1k for 90 epochs, the baseline of "Better plain ViT baselines" (arXiv:2205.01580).

    python -m deit_jax.main --config=configs/vit_s16_90ep.py

The paper reports 76.5 % top-1, and 80 % for 300 epochs (`--config.total_epochs=300`). The network is the authors'
but for its exact GELU, `vit_small_patch16_gap_224`; docs/recipes.md tells where the training differs.
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    arguments = recipes.arguments(argument, hardware="auto", dataset="imagenet2012")
    config = recipes.deit("vit_small_patch16_gap_224", **arguments)
    recipes.set_duration(config, "total", epochs=90)
    config.model.drop_path = 0.0
    if arguments["dataset"] == "imagenet2012":
        config.data.train_split = "train[:99%]"  # the paper chose its settings on the rest
    config.data.update(augment="rand-m10-n2-p1", repeats=1, interpolation="bilinear")
    config.data.update(crop_scale=(0.05, 1.0), crop_aspect=(0.75, 1.33))
    config.erasing.probability = 0.0
    config.mixing.update(mixup=0.2, cutmix=0.0, label_smoothing=0.0, group=1024)
    config.optim.update(learning_rate=1e-3, scale_by_batch=False, weight_decay=0.1, clip_norm=1.0)
    config.optim.update(warmup_learning_rate=0.0, min_learning_rate=0.0)
    config.optim.update(warmup_prefix=True, schedule_per_epoch=False)
    recipes.set_duration(config.optim, "warmup", steps=10_000)
    config.ema.decay = 0.0
    return config
