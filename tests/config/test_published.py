"""The other configs that name a published number against what their authors told of it, setting by setting."""

import pytest
from test_deit3 import load

from deit_jax.config.resolve import flatten, to_dict

# What facebook's main.py (DeiT) does where a command is silent.
MAIN = {
    "seed": 0,
    "total_epochs": 300.0,
    "model.drop_path": 0.1,
    "data.crop": "random_resized",
    "data.crop_scale": (0.08, 1.0),
    "data.interpolation": "bicubic",
    "data.flip": 0.5,
    "data.augment": "rand-m9-mstd0.5-inc1",
    "data.color_jitter": 0.0,  # beside RandAugment timm leaves its 0.4 out
    "data.repeats": 3,
    "erasing.probability": 0.25,
    "erasing.mode": "pixel",
    "erasing.max_count": 1,
    "mixing.mixup": 0.8,
    "mixing.cutmix": 1.0,
    "mixing.probability": 1.0,
    "mixing.switch_probability": 0.5,
    "mixing.mode": "batch",
    "mixing.label_smoothing": 0.1,
    "loss.kind": "cross_entropy",
    "distillation.kind": "none",
    "optim.name": "adamw",
    "optim.eps": 1e-8,
    "optim.momentum": 0.9,
    "optim.learning_rate": 5e-4,
    "optim.scale_by_batch": True,
    "optim.weight_decay": 0.05,
    "optim.schedule": "cosine",
    "optim.warmup_epochs": 5.0,
    "optim.warmup_learning_rate": 1e-6,
    "optim.min_learning_rate": 1e-5,
    "optim.schedule_per_epoch": True,
    "optim.clip_norm": 0.0,
    "ema.decay": 0.99996,
}
RAW = {"ema.decay": 0.0}  # kept there, and not evaluated
TAUGHT = {"distillation.kind": "hard", "distillation.alpha": 0.5, "distillation.teacher.name": "regnety_160"}
# facebookresearch/deit issue 45, where erasing and stochastic depth are taken out, and issue 105.
CIFAR = {
    "batch_size": 768,
    "total_epochs": 1000.0,
    "data.image_size": 224,
    "optim.name": "sgd",
    "optim.learning_rate": 0.01,
    "optim.scale_by_batch": False,
    "optim.weight_decay": 1e-4,
    "erasing.probability": 0.0,
    "model.drop_path": 0.0,
}
INAT = {
    "batch_size": 768,
    "total_epochs": 360.0,
    "optim.learning_rate": 7.5e-5,
    "optim.scale_by_batch": False,
    "erasing.probability": 0.1,
}
# README_deit.md's command: 2 nodes of 8 GPUs.
AT_384 = {
    "batch_size": 512,
    "mixing.group": 32,
    "total_epochs": 30.0,
    "data.image_size": 384,
    "optim.learning_rate": 5e-6,
    "optim.min_learning_rate": 5e-6,
    "optim.weight_decay": 1e-8,
}
# big_vision's configs/vit_s16_i1k.py; its decay, 1e-4, is not multiplied by the rate.
VIT = {
    "batch_size": 1024,
    "total_epochs": 90.0,
    "model.drop_path": 0.0,
    "data.train_split": "train[:99%]",
    "data.crop_scale": (0.05, 1.0),
    "data.interpolation": "bilinear",
    "data.crop_ratio": 0.875,
    "data.augment": "rand-m10-n2-p1",
    "data.repeats": 1,
    "erasing.probability": 0.0,
    "mixing.mixup": 0.2,
    "mixing.cutmix": 0.0,
    "mixing.group": 1024,
    "mixing.label_smoothing": 0.0,
    "optim.learning_rate": 1e-3,
    "optim.scale_by_batch": False,
    "optim.weight_decay": 0.1,
    "optim.warmup_epochs": 0.0,
    "optim.warmup_steps": 10_000,
    "optim.warmup_learning_rate": 0.0,
    "optim.warmup_prefix": True,
    "optim.min_learning_rate": 0.0,
    "optim.schedule_per_epoch": False,
    "optim.clip_norm": 1.0,
}
PUBLISHED = {
    "deit_tiny": {"batch_size": 1024, "mixing.group": 256, "data.crop_ratio": 0.875},
    "deit_small": {"batch_size": 1024, "mixing.group": 256},
    "deit_base": {"batch_size": 1024, "mixing.group": 64},
    "deit_distilled": {"batch_size": 1024, "mixing.group": 64, **TAUGHT},
    "deit_distilled:epochs=1000": {"total_epochs": 1000.0, **TAUGHT},
    "deit_distilled:model=deit_tiny_distilled_patch16_224": {"mixing.group": 256, **TAUGHT},
    "vit_s16_90ep": VIT | RAW,
    "finetune_384": AT_384 | RAW,
    "finetune_384:model=deit_base_distilled_patch16_224": AT_384 | RAW | TAUGHT,
    **{f"transfer_published:target={name}": CIFAR | RAW for name in ("cifar10", "cifar100", "flowers", "cars")},
    **{f"transfer_published:target={name}": INAT | RAW for name in ("inat18", "inat19")},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_are_the_authors(name):
    config, _, argument = name.partition(":")
    fields = dict(flatten(to_dict(load(config, argument))))
    wanted = MAIN | PUBLISHED[name]
    assert {path: fields[path] for path in wanted} == wanted


# naver-ai/rope-vit, "exactly the same as 400 epochs training recipe of DeiT-III" (its issue 21).
@pytest.mark.parametrize(("model", "drop_path"), [("small", 0.0), ("base", 0.1), ("large", 0.4)])
def test_400_epochs_have_less_regularisation(model, drop_path):
    config, longer = load("deit3", f"model={model},epochs=400"), load("deit3", f"model={model}")
    assert (config.total.epochs, config.model.drop_path, config.optim.weight_decay) == (400.0, drop_path, 0.03)
    assert config.optim.learning_rate == longer.optim.learning_rate
    assert config.eval.published_curve == ""
