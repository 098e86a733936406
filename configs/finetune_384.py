"""DeiT-B from 224 to 384 px on ImageNet-1k in 30 epochs; the position embedding is resized.

    python -m deit_jax.main --config=configs/finetune_384.py --config.init_from=runs/deit_base

By default it starts from the published weights. The paper reports 83.1 % top-1 (arXiv:2012.12877, table 5). Learning
rate, decay and length are those of facebook's command for this model. Any other one with patches of 16 pixels works
alike; a distilled one, `:model=deit_base_distilled_patch16_224`, is taught by RegNetY-16GF at 384 px, with the same
settings, since no command is published for it. The paper's, of 1,000 epochs, reaches 85.2 %.
"""

from ml_collections import ConfigDict

from deit_jax import recipes


def get_config(argument: str | None = None) -> ConfigDict:
    arguments = recipes.arguments(argument, hardware="auto", dataset="imagenet2012", model="deit_base_patch16_224")
    name = arguments.pop("model")
    config = recipes.deit(name, **arguments)
    config.init_from = "pretrained"
    config.batch_size = 512
    recipes.set_duration(config, "total", epochs=30)
    config.data.update(image_size=384, crop_ratio=1.0)
    config.mixing.group = 32  # facebook fine-tunes with 32 images a GPU
    config.optim.update(learning_rate=5e-6, min_learning_rate=5e-6, weight_decay=1e-8)
    config.ema.decay = 0.0  # the published numbers are of the raw weights
    if "distilled" in name:
        config.distillation.kind = "hard"
        config.distillation.teacher.update(name="regnety_160", weights="pretrained", image_size=384)
    return config
