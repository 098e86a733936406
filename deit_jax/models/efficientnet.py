"""EfficientNet-Lite (arXiv:1905.11946 without squeeze-excitation, with ReLU6), every parameter by timm's name."""

from collections.abc import Callable, Sequence
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

# Of each stage, as in the paper's table 1: kernel size, and the stride of its first block.
KERNELS = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
EXPANSION = 6

relu6 = jax.nn.relu6


class SeparableBlock(nnx.Module):
    """Depthwise and pointwise convolution: the block of the first stage, which does not expand."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, dtype: DType, rngs: nnx.Rngs):
        conv, norm = _parts(dtype, rngs)
        self.conv_dw = conv(inputs, inputs, size, stride=stride, groups=inputs)
        self.bn1 = norm(inputs)
        self.conv_pw = conv(inputs, outputs, 1)
        self.bn2 = norm(outputs)
        self.skip = stride == 1 and inputs == outputs

    def __call__(self, x: Features, scale: Scale = None, *, train: bool) -> Output:
        branch = relu6(self.bn1(self.conv_dw(x), train=train))
        branch = self.bn2(self.conv_pw(branch), train=train)
        return residual(x, branch, scale) if self.skip else branch


class InvertedResidual(nnx.Module):
    """Expansion, depthwise convolution and linear projection (arXiv:1801.04381), added to an input that fits."""

    def __init__(self, inputs: int, outputs: int, size: int, *, stride: int, dtype: DType, rngs: nnx.Rngs):
        conv, norm = _parts(dtype, rngs)
        width = EXPANSION * inputs
        self.conv_pw = conv(inputs, width, 1)
        self.bn1 = norm(width)
        self.conv_dw = conv(width, width, size, stride=stride, groups=width)
        self.bn2 = norm(width)
        self.conv_pwl = conv(width, outputs, 1)
        self.bn3 = norm(outputs)
        self.skip = stride == 1 and inputs == outputs

    def __call__(self, x: Features, scale: Scale = None, *, train: bool) -> Output:
        branch = relu6(self.bn1(self.conv_pw(x), train=train))
        branch = relu6(self.bn2(self.conv_dw(branch), train=train))
        branch = self.bn3(self.conv_pwl(branch), train=train)
        return residual(x, branch, scale) if self.skip else branch


def _parts(dtype: DType, rngs: nnx.Rngs) -> tuple[Callable[..., Convolution], Callable[..., BatchNorm]]:
    """Convolution and batch normalisation as TensorFlow's models have them, which the published weights come from."""
    return partial(Convolution, same=True, dtype=dtype, rngs=rngs), partial(BatchNorm, eps=1e-3, dtype=dtype)


class EfficientNetLite(ConvolutionalNetwork):
    """EfficientNet-Lite on normalised NHWC images; without the dropout before the classifier.

    Args:
        image_size, num_classes, dtype: see `ConvolutionalNetwork`.
        depths, widths: blocks and output channels of each of the seven stages.
        stem_width: channels of the first convolution.
        head_width: channels of the last one.
        drop_path: stochastic depth rate of the last block; the others' grow linearly from 0 at the first. It acts
            where a block adds its input.

    Raises:
        ValueError: not seven stages, or `drop_path` is not in [0, 1).
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        num_classes: int = 1000,
        depths: Sequence[int] = (1, 2, 2, 3, 3, 4, 1),
        widths: Sequence[int] = (16, 24, 40, 80, 112, 192, 320),
        stem_width: int = 32,
        head_width: int = 1280,
        drop_path: float = 0.0,
        dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not len(depths) == len(widths) == len(KERNELS):
            raise ValueError(f"{len(depths)} depths and {len(widths)} widths: there are {len(KERNELS)} stages")
        super().__init__(image_size, num_classes, depths, drop_path, dtype)
        conv, norm = _parts(dtype, rngs)
        self.conv_stem = conv(3, stem_width, 3, stride=2)
        self.bn1 = norm(stem_width)
        self.blocks: nnx.List[nnx.List] = nnx.List()
        inputs = stem_width
        for i, (depth, outputs, size, stride) in enumerate(zip(depths, widths, KERNELS, STRIDES, strict=True)):
            block = partial(InvertedResidual if i else SeparableBlock, dtype=dtype, rngs=rngs)
            stage: nnx.List[SeparableBlock | InvertedResidual] = nnx.List()
            for j in range(depth):
                stage.append(block(inputs, outputs, size, stride=1 if j else stride))
                inputs = outputs
            self.blocks.append(stage)
        self.conv_head = conv(inputs, head_width, 1)
        self.bn2 = norm(head_width)
        uniform = nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")  # U(-b, b), b = 1 / sqrt(num_classes)
        self.classifier = nnx.Linear(head_width, num_classes, kernel_init=uniform, rngs=rngs) if num_classes else None

    def features(self, x: Features, scales: Sequence[Scale], *, train: bool) -> Output:
        x = relu6(self.bn1(self.conv_stem(x), train=train))
        blocks = (block for stage in self.blocks for block in stage)
        for block, scale in zip(blocks, scales, strict=True):
            x = block(x, scale, train=train)
        return relu6(self.bn2(self.conv_head(x), train=train))

    @property
    def classifier_layer(self) -> nnx.Linear | None:
        return self.classifier
