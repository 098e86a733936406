"""DeiT-III (arXiv:2204.07118) pretrained on ImageNet-21k, a folder of your own, and fine-tuned on ImageNet-1k.

    python -m deit_jax.main --config=configs/deit3_21k.py:model=base --config.data.dir=imagenet21k --workdir=runs/21k
    python -m deit_jax.main --config=configs/deit3_21k.py:model=base,stage=finetune --config.init_from=runs/21k

At 224 px facebook reports 83.1 (small), 85.7 (base), 87.0 (large) and 87.2 % top-1 (huge) on ImageNet-1k. Medium is not
among its commands. `curves.png` has the published accuracies on the way behind those of the run. During pretraining
they are of ImageNet-1k's validation images: have these, a folder a WordNet identifier, as `validation` beside `train`.
"""

from ml_collections import ConfigDict

from deit_jax import recipes

# model -> (name, stochastic depth of pretraining and of fine-tuning, images a GPU)
MODELS = {
    "small": ("deit3_small_patch16_224", (0.05, 0.05), 128),
    "base": ("deit3_base_patch16_224", (0.1, 0.15), 64),
    "large": ("deit3_large_patch16_224", (0.3, 0.4), 64),
    "huge": ("deit3_huge_patch14_224", (0.5, 0.45), 64),
}
# stage -> (data set, epochs, learning rate)
STAGES = {"pretrain": ("folder", 240, 1e-3), "finetune": ("imagenet2012", 50, 3e-4)}


def get_config(argument: str | None = None) -> ConfigDict:
    arguments = recipes.arguments(argument, hardware="auto", model="base", stage="pretrain")
    stage, model = arguments["stage"], arguments["model"]
    dataset, epochs, rate = recipes.choose(STAGES, stage, "stage")
    name, drop_path, group = recipes.choose(MODELS, model, "model")
    config = recipes.deit3(name, hardware=arguments["hardware"], dataset=dataset)
    config.init_from = "runs/21k" if stage == "finetune" else ""
    config.model.drop_path = drop_path[stage == "finetune"]
    config.data.update(crop="simple", repeats=1)
    config.mixing.update(mixup=0.0, label_smoothing=0.1, group=group)
    config.loss.update(kind="cross_entropy", binarize=False)
    config.optim.update(learning_rate=rate, weight_decay=0.02)
    if (stage, model) == ("pretrain", "huge"):
        epochs, config.data.image_size = 90, 126  # 128 there, of which patches of 14 cover 126
    recipes.set_duration(config, "total", epochs=epochs)
    config.eval.published_curve = f"deit3_{model}_21k_{stage}"
    return config
