"""What a run is: the fields that every config has, as frozen dataclasses.

A duration `x` stands in a config as three fields, `x_steps`, `x_epochs` and `x_examples`, of which one is positive
(0: unset); here it is one `Duration`.
"""

import dataclasses
from typing import Literal

UNITS = ("steps", "epochs", "examples")

DType = Literal["auto", "float32", "bfloat16"]
AttentionKind = Literal["auto", "einsum", "xla", "cudnn"]
PatchEmbeddingKind = Literal["auto", "conv", "linear"]


@dataclasses.dataclass(frozen=True)
class Duration:
    """A length of training in exactly one unit; all three 0 means none."""

    steps: int
    epochs: float
    examples: int

    @property
    def unit(self) -> str:
        """The unit that is set; "" where none is."""
        return next((unit for unit in UNITS if getattr(self, unit)), "")

    def in_steps(self, batch_size: int, epoch_steps: float) -> int:
        """Training steps, rounded to the nearest, at least 1 for a duration that is set."""
        exact = self.steps + self.epochs * epoch_steps + self.examples / batch_size
        return max(1, round(exact)) if exact else 0


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    num_classes: int  # -1: as many as the data has
    # 0 or "": as the named model has it
    patch_size: int
    width: int
    depth: int
    heads: int
    global_pool: Literal["", "token", "avg"]
    stem: Literal["", "imagenet", "cifar"]  # of convolutional networks: cifar, for small images, keeps their size
    drop_path: float
    dtype: DType
    attention: AttentionKind
    patch_embedding: PatchEmbeddingKind
    remat: bool


@dataclasses.dataclass(frozen=True)
class Data:
    name: str
    dir: str
    train_split: str
    eval_split: str
    image_size: int  # of the network and its evaluation
    image_size_schedule: str  # training sizes, each from an epoch on: 128@0,160@90,224@180; "": image_size
    crop: Literal["random_resized", "simple", "pad"]  # simple, pad: a random part of the image with a border
    crop_scale: tuple[float, float]  # area of the random_resized crop, as shares of the image
    crop_aspect: tuple[float, float]  # its width over its height
    interpolation: Literal["bicubic", "bilinear", "random"]  # of training crops and warps; evaluation's is bicubic
    crop_ratio: float  # side of the evaluation's centre crop over the resized short side
    flip: float
    augment: str  # timm's names: rand-m9-mstd0.5-inc1, 3a, original, v0, ...; "": none
    color_jitter: float  # strength in brightness, contrast and saturation; 0: none
    repeats: int  # copies of an image in a row, for repeated augmentation
    exif: bool  # turn photos as their EXIF orientation says, which torchvision does not
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    threads: int
    prefetch: int  # batches decoded ahead
    max_corrupt: float  # share of a split's images that may fail to decode


@dataclasses.dataclass(frozen=True)
class Erasing:
    probability: float
    mode: Literal["pixel", "rand", "const"]
    min_count: int
    max_count: int
    area: tuple[float, float]  # of all boxes together, as shares of the image
    aspect: tuple[float, float]  # height over width of a box


@dataclasses.dataclass(frozen=True)
class Mixing:
    mixup: float
    cutmix: float
    probability: float
    switch_probability: float
    label_smoothing: float
    group: int
    mode: Literal["batch", "pair", "elem"]  # who has a lambda of its own: a group, each pair in it, or each image
    cutmix_minmax: tuple[float, float]  # sides of cutmix's box, as shares of the image's; (0, 0): by its lambda
    off: Duration  # after so long nothing is mixed; none: never


@dataclasses.dataclass(frozen=True)
class Loss:
    kind: Literal["cross_entropy", "binary_cross_entropy"]
    binarize: bool  # of binary cross-entropy: targets above `threshold` count as 1, others as 0
    threshold: float


@dataclasses.dataclass(frozen=True)
class Cosub:
    weight: float  # of what the copies of an image learn from one another; 0: there is one copy


@dataclasses.dataclass(frozen=True)
class Teacher:
    name: str  # a model of the registry, `package.module:build`, or a file of `deit_jax.export`
    weights: str  # of a model of the registry, as in init_from
    image_size: int  # 0: the one that it was trained with
    evaluate: bool  # tell its accuracy on the evaluation split before training


@dataclasses.dataclass(frozen=True)
class Distillation:
    kind: Literal["none", "soft", "hard"]
    token: bool  # the head of the distillation token learns from the teacher; else the class head does
    alpha: float  # weight of the teacher's term; 1 - alpha is that of the labels'
    tau: float  # temperature of a soft teacher
    kl_reduction: Literal["numel", "batchmean"]
    teacher: Teacher
    top_k: int  # logits that deit_jax.precompute keeps of a soft teacher; -1: all
    store: str  # folder that deit_jax.precompute recorded the teacher in; "": the teacher runs beside the student


@dataclasses.dataclass(frozen=True)
class Optim:
    name: Literal["adamw", "lamb", "sgd", "muon"]
    learning_rate: float
    scale_by_batch: bool  # learning_rate is for a batch of 512, and is scaled linearly
    warmup_learning_rate: float
    min_learning_rate: float
    schedule: Literal["cosine", "wsd", "step", "constant"]
    warmup: Duration
    cooldown: Duration  # of the run's end, at min_learning_rate
    decay: Duration  # of wsd: what falls before the cool-down; of step: from one fall to the next
    decay_rate: float  # of step: factor of a fall
    warmup_prefix: bool  # cosine and step begin after the warm-up, not with it
    schedule_per_epoch: bool
    weight_decay: float
    b1: float
    b2: float
    eps: float
    momentum: float  # of sgd and muon
    clip_norm: float  # 0: no clipping
    accumulation: int
    gradient_dtype: Literal["float32", "bfloat16"]  # that devices exchange gradients of bfloat16 layers in
    layer_decay: float  # factor of the learning rate from a block to the one below it; 1: the same for all
    trainable: Literal["all", "attention", "head"]


@dataclasses.dataclass(frozen=True)
class Ema:
    decay: float  # 0: no average is kept
    warmup: bool  # smaller at first, so that the initial weights are soon forgotten


@dataclasses.dataclass(frozen=True)
class Guard:
    max_skipped: int  # non-finite updates in a row before a rollback
    max_rollbacks: int


@dataclasses.dataclass(frozen=True)
class Log:
    every: Duration
    progress: bool
    tensorboard: bool
    wandb: bool
    utilisation: Literal["auto", "on", "off"]  # the share of the devices' matrix products; auto: not on CPU


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    every: Duration
    keep: int


@dataclasses.dataclass(frozen=True)
class Eval:
    every: Duration
    batch_size: int
    published_curve: str  # drawn behind the run's own in curves.png: deit3_small, ... (config/curves.py); "": none


@dataclasses.dataclass(frozen=True)
class Mesh:
    data: int  # -1: all devices that the other axes leave
    fsdp: int
    tensor: int  # attention by heads, MLPs by their wide axis
    slices: (
        int  # of TPUs that only data goes over; of other devices: processes, where fsdp and tensor shall stay in one
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. `recipes.py` makes complete ConfigDicts of this shape."""

    seed: int
    batch_size: int
    total: Duration
    init_from: str  # weights to begin with, "pretrained" for the published ones; "": fresh ones
    model: Model
    data: Data
    erasing: Erasing
    mixing: Mixing
    loss: Loss
    cosub: Cosub
    distillation: Distillation
    optim: Optim
    ema: Ema
    guard: Guard
    log: Log
    checkpoint: Checkpoint
    eval: Eval
    mesh: Mesh
