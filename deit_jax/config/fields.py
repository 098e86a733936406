"""The fields of a config by their dotted paths, and by the names that people know from elsewhere."""

import dataclasses
import re
import typing
from collections.abc import Iterator

from deit_jax.base.errors import nearest
from deit_jax.config.schema import UNITS, Config, Duration

# What timm, facebook's DeiT, big_vision and transformers call them.
_SYNONYMS = {
    "optim.learning_rate": "lr base_lr blr max_lr peak_lr",
    "optim.min_learning_rate": "min_lr end_lr",
    "optim.warmup_learning_rate": "warmup_lr",
    "optim.weight_decay": "wd l2",
    "optim.name": "opt optimizer optimiser",
    "optim.schedule": "sched scheduler lr_scheduler lr_scheduler_type",
    "optim.clip_norm": "clip clip_grad grad_clip grad_clip_norm max_grad_norm",
    "optim.accumulation": "grad_accum grad_accum_steps gradient_accumulation_steps accum_iter accum_steps update_freq",
    "optim.b1": "beta1 adam_beta1",
    "optim.b2": "beta2 adam_beta2",
    "optim.eps": "opt_eps adam_epsilon epsilon",
    "optim.trainable": "freeze frozen linear_probe attn_only head_only",
    "total_epochs": "epochs epoch num_epochs n_epochs max_epochs num_train_epochs duration",
    "total_steps": "steps num_steps max_steps iterations iters training_steps",
    "batch_size": "bs batch per_device_train_batch_size",
    "data.image_size": "img_size imgsz size resolution res input_size image_resolution",
    "data.name": "dataset data_set",
    "data.dir": "data_path data_dir path root imagefolder",
    "data.crop_ratio": "crop_pct eval_crop_ratio",
    "data.flip": "hflip",
    "data.augment": "aa auto_augment autoaugment randaug randaugment rand_aug three_augment threeaugment",
    "data.repeats": "repeated_aug repeat_aug aug_repeats repeated_augmentation",
    "data.threads": "workers num_workers dataloader_num_workers",
    "data.crop_scale": "scale",
    "data.crop_aspect": "ratio",
    "data.interpolation": "train_interpolation",
    "erasing.probability": "reprob random_erasing erase_prob",
    "erasing.area": "scale",
    "erasing.aspect": "ratio",
    "mixing.mixup": "mixup_alpha",
    "mixing.cutmix": "cutmix_alpha",
    "mixing.probability": "mixup_prob",
    "mixing.label_smoothing": "smoothing label_smoothing_factor",
    "model.name": "arch architecture model_name variant backbone",
    "model.num_classes": "nb_classes n_classes classes num_labels",
    "model.drop_path": "drop_path_rate stochastic_depth sd dpr",
    "model.dtype": "amp fp16 bf16 half precision mixed_precision compute_dtype",
    "model.remat": "grad_checkpointing gradient_checkpointing use_checkpoint checkpointing",
    "model.heads": "num_heads num_attention_heads",
    "model.depth": "num_layers layers blocks num_hidden_layers",
    "model.width": "embed_dim hidden_size dim",
    "ema.decay": "model_ema model_ema_decay ema_decay",
    "init_from": "pretrained finetune fine_tune checkpoint initial_checkpoint model_name_or_path",
    "distillation.kind": "distillation_type distill",
    "distillation.alpha": "distillation_alpha",
    "distillation.tau": "distillation_tau temperature temp",
    "distillation.teacher.name": "teacher teacher_model",
    "distillation.teacher.weights": "teacher_path",
    "seed": "random_seed rng_seed",
    "log.wandb": "use_wandb",
    "log.every_steps": "log_every log_interval logging_steps",
    "checkpoint.every_steps": "save_every save_interval save_steps ckpt_every checkpoint_steps",
    "checkpoint.keep": "save_total_limit checkpoint_hist keep_checkpoints",
    "eval.every_steps": "eval_every val_every eval_steps",
    "eval.batch_size": "eval_batch_size val_batch_size validation_batch_size per_device_eval_batch_size",
}


def field_paths(cls: type = Config, prefix: str = "") -> Iterator[str]:
    """Every leaf that a complete config has, as a dotted path."""
    for name, kind in typing.get_type_hints(cls).items():
        if kind is Duration:
            yield from (f"{prefix}{name}_{unit}" for unit in UNITS)
        elif dataclasses.is_dataclass(kind):
            yield from field_paths(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            yield prefix + name


def known_as(wrong: str) -> list[str]:
    """The fields that a path, or its last name alone, stands for, here or in other projects; at most three, or none.

    Those of its own group before others, and names of here before others'.
    """
    whole = re.sub(r"[-. ]", "_", wrong.lower())
    group, _, leaf = wrong.lower().replace("-", "_").rpartition(".")
    paths = list(field_paths())
    of_time = {f"{leaf}_{unit}" for unit in UNITS}
    durations = [path for path in paths if path.rpartition(".")[2] in of_time]
    here = [path for path in paths if leaf == path.rpartition(".")[2] or whole == path.replace(".", "_")]
    theirs = [path for path, names in _SYNONYMS.items() if {leaf, whole} & set(names.split())]
    mine = [[path for path in found if path.startswith(f"{group}.")] for found in (durations, here, theirs)]
    return next((found for found in (*mine, here, theirs, durations) if 0 < len(found) <= 3), [])


def nearest_field(wrong: str) -> str:
    """`; did you mean a or b?` for a path that no config has: by what it is called elsewhere, else by its spelling."""
    meant = known_as(wrong)
    return f"; did you mean {' or '.join(meant)}?" if meant else nearest(wrong, field_paths())
