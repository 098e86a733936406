"""What a run is: the fields that every config has, as frozen dataclasses.

A duration `x` stands in a config as three fields, `x_steps`, `x_epochs` and `x_examples`, of which one is positive
(0: unset); here it is one `Duration`.

The meaning of each field stands in the docstring of its class alone, from which `--help` and docs/config.md have it:
`reference.py`.
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
    """The network, and how it computes.

    Attributes:
        name: a model of docs/models.md; where the fields down to `stem` are 0 or "", they are as it has them.
        num_classes: classes that its heads tell apart; -1: as many as the data has.
        patch_size: side of a patch, in pixels.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads of a block.
        global_pool: what the class head sees: the class token, or the mean of all patches.
        stem: of convolutional networks: cifar, for small images, keeps their size.
        drop_path: probability with which each branch of the last block is left out for an image in training; it grows
            linearly with depth (DeiT) or is the same for all blocks (DeiT-III).
        dtype: what it computes in; parameters, softmax, logits and losses are float32. auto: float32 on CPU, else
            bfloat16.
        attention: einsum: in plain operations; xla: XLA's; cudnn: fused, on NVIDIA GPUs and in bfloat16. auto: einsum
            on CPU, else xla.
        patch_embedding: a convolution, or a matrix product with the same weights. auto: conv on TPU, else linear.
        remat: whether to compute the insides of each block again in the backward pass: less memory, about a third more
            time.
    """

    name: str
    num_classes: int
    patch_size: int
    width: int
    depth: int
    heads: int
    global_pool: Literal["", "token", "avg"]
    stem: Literal["", "imagenet", "cifar"]
    drop_path: float
    dtype: DType
    attention: AttentionKind
    patch_embedding: PatchEmbeddingKind
    remat: bool


@dataclasses.dataclass(frozen=True)
class Data:
    """The images, and what they go through one by one.

    Attributes:
        name: folder, digits (which scikit-learn has), or a data set of TFDS such as imagenet2012.
        dir: where it is: the folder of the photos; or data_dir of TFDS, "" for ~/tensorflow_datasets.
        train_split: what is trained on, such as train or train[:90%].
        eval_split: what is evaluated on.
        image_size: side of the images of the network and its evaluation, in pixels.
        image_size_schedule: sizes of training images, each from an epoch on: 128@0,160@90,224@180; "": image_size.
        crop: what is cut out of a training image: a part of random area and aspect; or, simple and pad, a random part
            of the whole image with a border.
        crop_scale: least and greatest area of the random_resized crop, as shares of the image.
        crop_aspect: least and greatest ratio of its width to its height.
        interpolation: how training crops and warps are resampled; evaluation's are bicubic.
        crop_ratio: side of evaluation's centre crop over the short side that the image is resized to.
        flip: probability of mirroring a training image from left to right.
        augment: automatic augmentation by timm's names: rand-m9-mstd0.5-inc1, 3a, original, v0, ...; "": none.
        color_jitter: strength of random changes in brightness, contrast and saturation.
        repeats: copies of an image in a row, for repeated augmentation.
        exif: whether to turn photos as their EXIF orientation says, which torchvision does not.
        mean: of red, green and blue, that is subtracted from images in [0, 1].
        std: of red, green and blue, that they are then divided by.
        threads: threads that make batches, in each process; 0: the one that trains makes them.
        prefetch: number of batches that are made ahead; at least one a thread.
        max_corrupt: share of a split's images that may fail to decode before the run ends.
    """

    name: str
    dir: str
    train_split: str
    eval_split: str
    image_size: int
    image_size_schedule: str
    crop: Literal["random_resized", "simple", "pad"]
    crop_scale: tuple[float, float]
    crop_aspect: tuple[float, float]
    interpolation: Literal["bicubic", "bilinear", "random"]
    crop_ratio: float
    flip: float
    augment: str
    color_jitter: float
    repeats: int
    exif: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    threads: int
    prefetch: int
    max_corrupt: float


@dataclasses.dataclass(frozen=True)
class Erasing:
    """Random erasing, arXiv:1708.04896.

    Attributes:
        probability: probability that boxes of a training image are erased.
        mode: what fills them: normal noise a pixel, or one colour of it, or the mean colour.
        min_count: least number of boxes in an image.
        max_count: greatest number of boxes in an image.
        area: least and greatest area of all boxes together, as shares of the image.
        aspect: least and greatest ratio of a box's height to its width.
    """

    probability: float
    mode: Literal["pixel", "rand", "const"]
    min_count: int
    max_count: int
    area: tuple[float, float]
    aspect: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Mixup (arXiv:1710.09412) and CutMix (arXiv:1905.04899) of a training batch.

    Attributes:
        mixup: alpha of the beta distribution that mixup draws lambda from; 0: no mixup.
        cutmix: alpha of the beta distribution that CutMix draws lambda from; 0: no CutMix, unless there is a
            `cutmix_minmax`.
        probability: probability that anything is mixed.
        switch_probability: probability that it is by CutMix, where both are on.
        label_smoothing: share of the target that all classes have alike; also where nothing is mixed.
        group: number of neighbours in the batch that share a draw and mix among themselves; where batch_size is no
            multiple of it, the next smaller one of which it is.
        mode: who has a lambda of its own: a group, each pair in it, or each image.
        cutmix_minmax: least and greatest sides of CutMix's box, as shares of the image's; (0, 0): by its lambda.
        off: how long the run mixes; none: to its end.
    """

    mixup: float
    cutmix: float
    probability: float
    switch_probability: float
    label_smoothing: float
    group: int
    mode: Literal["batch", "pair", "elem"]
    cutmix_minmax: tuple[float, float]
    off: Duration


@dataclasses.dataclass(frozen=True)
class Loss:
    """What is minimised; beside it the teacher's term, where there is one.

    Attributes:
        kind: cross-entropy over the classes, or a binary one for each of them.
        binarize: of binary cross-entropy: targets above `threshold` count as 1, others as 0.
        threshold: above which a target counts as 1, see `binarize`.
    """

    kind: Literal["cross_entropy", "binary_cross_entropy"]
    binarize: bool
    threshold: float


@dataclasses.dataclass(frozen=True)
class Cosub:
    """Co-training of submodels, arXiv:2212.04884.

    Attributes:
        weight: weight of what the two copies of an image, each through other blocks, learn from one another; 0: there
            is one copy.
    """

    weight: float


@dataclasses.dataclass(frozen=True)
class Teacher:
    """Who teaches.

    Attributes:
        name: a model of docs/models.md, `package.module:build`, or a file of deit_jax.export.
        weights: its weights where it is a model of docs/models.md, named as in init_from.
        image_size: side of the images that it sees, in pixels; 0: the one that it was trained with.
        evaluate: whether to tell its top-1 on the evaluation split before training.
    """

    name: str
    weights: str
    image_size: int
    evaluate: bool


@dataclasses.dataclass(frozen=True)
class Distillation:
    """What is learnt from a teacher beside the labels, arXiv:2012.12877, section 4: docs/distillation.md.

    Attributes:
        kind: from its probabilities, or from its best class.
        token: whether the head of the distillation token learns from the teacher; else the class head does.
        alpha: weight of the teacher's term; 1 - alpha is that of the labels'.
        tau: temperature by which both logits are divided, of a soft teacher.
        kl_reduction: the soft term is the mean over images (batchmean, as the paper's formula) or over images and
            classes (numel, as facebook's code).
        teacher: who it is.
        top_k: number of logits that deit_jax.precompute keeps of a soft teacher; -1: all.
        store: folder that deit_jax.precompute recorded the teacher in; "": the teacher runs beside the student.
    """

    kind: Literal["none", "soft", "hard"]
    token: bool
    alpha: float
    tau: float
    kl_reduction: Literal["numel", "batchmean"]
    teacher: Teacher
    top_k: int
    store: str


@dataclasses.dataclass(frozen=True)
class Optim:
    """The optimizer and its schedule: docs/training.md.

    Attributes:
        name: adamw (arXiv:1711.05101), lamb (1904.00962), sgd with Nesterov's momentum, or muon.
        learning_rate: at its highest, of a batch of 512 images where `scale_by_batch` is on.
        scale_by_batch: whether the rate is multiplied by batch_size / 512.
        warmup_learning_rate: what the warm-up begins with; not scaled.
        min_learning_rate: what cosine, wsd and the cool-down end with; not scaled.
        schedule: after the warm-up: half a cosine; constant and then falling (wsd); falling by steps; constant.
        warmup: how long the rate rises linearly.
        cooldown: how long the end of the run is, at min_learning_rate.
        decay: how long wsd falls before the cool-down; from one fall of step to the next.
        decay_rate: factor of a fall of step.
        warmup_prefix: whether cosine and step begin after the warm-up, not with it.
        schedule_per_epoch: whether the rate changes once an epoch, as in facebook's code; else at each step.
        weight_decay: of matrices and kernels, times the learning rate; biases, norms, tokens and positions have none.
        b1: decay of the mean of gradients, in adamw, lamb and muon's other parameters.
        b2: decay of the mean of their squares.
        eps: what is added to the root of that mean.
        momentum: decay of the sum of gradients, in sgd and muon.
        clip_norm: most that the norm of all gradients together may be; 0: no clipping, but lamb's own, at 1.
        accumulation: number of micro-batches that a batch is computed in, one after the other: less memory, the same
            update, but for the statistics of batch normalisation.
        gradient_dtype: what devices exchange gradients of bfloat16 layers in.
        layer_decay: factor of the learning rate from a block to the one below it; 1: the same for all.
        trainable: which parameters learn: all; those of attention, positions and heads (arXiv:2203.09795); or of the
            heads.
    """

    name: Literal["adamw", "lamb", "sgd", "muon"]
    learning_rate: float
    scale_by_batch: bool
    warmup_learning_rate: float
    min_learning_rate: float
    schedule: Literal["cosine", "wsd", "step", "constant"]
    warmup: Duration
    cooldown: Duration
    decay: Duration
    decay_rate: float
    warmup_prefix: bool
    schedule_per_epoch: bool
    weight_decay: float
    b1: float
    b2: float
    eps: float
    momentum: float
    clip_norm: float
    accumulation: int
    gradient_dtype: Literal["float32", "bfloat16"]
    layer_decay: float
    trainable: Literal["all", "attention", "head"]


@dataclasses.dataclass(frozen=True)
class Ema:
    """The moving average of the weights, which is evaluated beside them and handed on.

    Attributes:
        decay: share that it keeps of itself at a step; 0: there is none.
        warmup: whether it keeps less at first, so that the initial weights are soon forgotten.
    """

    decay: float
    warmup: bool


@dataclasses.dataclass(frozen=True)
class Guard:
    """Losses and gradients that are not finite.

    Attributes:
        max_skipped: number of updates left out in a row before the run goes back to its last checkpoint.
        max_rollbacks: how often it goes back before it gives up.
    """

    max_skipped: int
    max_rollbacks: int


@dataclasses.dataclass(frozen=True)
class Log:
    """What a run says while it trains.

    Attributes:
        every: how long from one row of metrics.jsonl to the next.
        progress: whether to show a bar.
        tensorboard: whether to write its events to the workdir.
        wandb: whether to tell Weights & Biases, too (pip install wandb).
        utilisation: whether to tell the share of the speed of large matrix products that the network reaches. auto: not
            on CPU.
    """

    every: Duration
    progress: bool
    tensorboard: bool
    wandb: bool
    utilisation: Literal["auto", "on", "off"]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is kept of the state.

    Attributes:
        every: how long from one to the next; if given in epochs, at least 10 steps.
        keep: number of the newest that are kept, beside the best.
    """

    every: Duration
    keep: int


@dataclasses.dataclass(frozen=True)
class Eval:
    """Evaluation while training.

    Attributes:
        every: how long from one to the next; if given in epochs, at least 10 steps.
        batch_size: number of images at once, on all devices together.
        published_curve: published accuracies that are drawn behind the run's own in curves.png: deit3_small, ...
            (config/curves.py); "": none.
    """

    every: Duration
    batch_size: int
    published_curve: str


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How the devices divide the work; their numbers multiply to that of all devices: docs/scaling.md.

    Attributes:
        data: number that see other images each; -1: all that the other axes leave.
        fsdp: number that see other images each, and share parameters, moments and average among them.
        tensor: number that share attention by its heads, and MLPs by their wide axis.
        slices: number of TPU slices, over which only data goes; of other devices, of processes, where fsdp and tensor
            shall stay in one.
    """

    data: int
    fsdp: int
    tensor: int
    slices: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run. `recipes.py` makes complete ConfigDicts of this shape.

    Attributes:
        seed: what all random numbers follow from.
        batch_size: number of images of a step, on all devices together.
        total: how long the run is.
        init_from: weights to begin with: pretrained for the published ones, a run, a file, hf://owner/name; "": new.
        model: the network.
        data: the images.
        erasing: of parts of them.
        mixing: of one another.
        loss: what is minimised.
        cosub: of submodels.
        distillation: from a teacher.
        optim: the optimizer.
        ema: the moving average.
        guard: against what is not finite.
        log: what is said.
        checkpoint: what is kept.
        eval: evaluation.
        mesh: the devices.
    """

    seed: int
    batch_size: int
    total: Duration
    init_from: str
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

    @property
    def mixing_group(self) -> int:
        """Neighbours that mix among themselves: the most, up to `mixing.group`, of which `batch_size` is a multiple."""
        most = min(self.mixing.group, self.batch_size)
        return next(group for group in range(most, 0, -1) if self.batch_size % group == 0)
