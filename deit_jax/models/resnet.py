"""ResNet with bottleneck blocks (arXiv:1512.03385), every parameter by timm's name.

The 3 x 3 convolution carries a block's stride, as in torchvision and timm ("v1.5"); in the paper, the first 1 x 1.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from deit_jax.models.convolution import (
    BatchNorm,
    Convolution,
    ConvolutionalNetwork,
    Features,
    Output,
    Scale,
    residual,
)
from deit_jax.models.layers import DType

EXPANSION = 4  # channels of a block's output over those of its 3 x 3 convolution


class Bottleneck(nnx.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions, added to the input, which is projected where it does not fit."""

    def __init__(self, inputs: int, width: int, *, stride: int, dtype: DType, rngs: nnx.Rngs):
        outputs = EXPANSION * width
        conv = partial(Convolution, dtype=dtype, rngs=rngs)
        self.conv1 = conv(inputs, width, 1)
        self.bn1 = BatchNorm(width, dtype=dtype)
        self.conv2 = conv(width, width, 3, stride=stride)
        self.bn2 = BatchNorm(width, dtype=dtype)
        self.conv3 = conv(width, outputs, 1)
        self.bn3 = BatchNorm(outputs, initial_scale=0, dtype=dtype)
        projected = inputs != outputs or stride != 1
        shortcut = [conv(inputs, outputs, 1, stride=stride), BatchNorm(outputs, dtype=dtype)] if projected else None
        self.downsample = nnx.List(shortcut) if shortcut else None

    def __call__(self, x: Features, scale: Scale = None, *, train: bool) -> Output:
        branch = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        branch = jax.nn.relu(self.bn2(self.conv2(branch), train=train))
        branch = self.bn3(self.conv3(branch), train=train)
        if self.downsample is not None:
            conv, norm = self.downsample
            x = norm(conv(x), train=train)
        return jax.nn.relu(residual(x, branch, scale))


class ResNet(ConvolutionalNetwork):
    """ResNet-50 and its like on normalised NHWC images.

    Args:
        image_size, num_classes, drop_path, dtype: see `ConvolutionalNetwork`.
        depths: blocks of each stage; every stage but the first halves the image.
        widths: channels of each stage's 3 x 3 convolutions; its output has four times as many.
        stem_width: channels of the first convolution.
        stem: "imagenet" is a 7 x 7 convolution and a max pooling that halve the image twice, "cifar" one 3 x 3
            convolution that keeps its size, for images of 32 pixels or so.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 4, 6, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        drop_path: float = 0.0,
        stem: str = "imagenet",
        stem_width: int = 64,
        dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(image_size, num_classes, depths, drop_path, dtype, stem)
        self.max_pool = stem == "imagenet"
        size, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = Convolution(3, stem_width, size, stride=stride, dtype=dtype, rngs=rngs)
        self.bn1 = BatchNorm(stem_width, dtype=dtype)
        self.stages = len(depths)
        inputs = stem_width
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks: nnx.List[Bottleneck] = nnx.List()
            for j in range(depth):
                blocks.append(Bottleneck(inputs, width, stride=2 if i and not j else 1, dtype=dtype, rngs=rngs))
                inputs = EXPANSION * width
            setattr(self, f"layer{i + 1}", blocks)
        # torch's default for a dense layer, which timm leaves untouched: U(-b, b) with b = 1 / sqrt(inputs).
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        bias = partial(jax.random.uniform, minval=-(inputs**-0.5), maxval=inputs**-0.5)
        self.fc = (
            nnx.Linear(inputs, num_classes, kernel_init=uniform, bias_init=bias, rngs=rngs) if num_classes else None
        )

    def features(self, x: Features, scales: Sequence[Scale], *, train: bool) -> Output:
        x = jax.nn.relu(self.bn1(self.conv1(x), train=train))
        if self.max_pool:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        blocks = (block for i in range(self.stages) for block in getattr(self, f"layer{i + 1}"))
        for block, scale in zip(blocks, scales, strict=True):
            x = block(x, scale, train=train)
        return x

    @property
    def classifier_layer(self) -> nnx.Linear | None:
        return self.fc
