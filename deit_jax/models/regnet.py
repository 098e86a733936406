"""RegNetY (arXiv:2003.13678), every parameter by timm's name."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from deit_jax.models.convolution import (
    ConvNorm,
    ConvolutionalNetwork,
    Features,
    Output,
    Scale,
    SqueezeExcitation,
    residual,
)
from deit_jax.models.layers import DType


class Block(nnx.Module):
    """The Y block: 1 x 1, grouped 3 x 3, squeeze-excitation, 1 x 1, added to its input, which is projected to fit.

    The squeeze-excitation's width is `se_ratio` of the block's input, not of what it weighs.
    """

    def __init__(
        self, inputs: int, width: int, *, stride: int, group_width: int, se_ratio: float, dtype: DType, rngs: nnx.Rngs
    ):
        conv_norm = partial(ConvNorm, dtype=dtype, rngs=rngs)
        self.conv1 = conv_norm(inputs, width, 1)
        self.conv2 = conv_norm(width, width, 3, stride=stride, groups=width // group_width)
        self.se = SqueezeExcitation(width, round(inputs * se_ratio), dtype=dtype, rngs=rngs)
        self.conv3 = conv_norm(width, width, 1, activate=False, initial_scale=0)
        projected = inputs != width or stride != 1
        self.downsample = conv_norm(inputs, width, 1, stride=stride, activate=False) if projected else None

    def __call__(self, x: Features, scale: Scale = None, *, train: bool) -> Output:
        branch = self.se(self.conv2(self.conv1(x, train=train), train=train))
        branch = self.conv3(branch, train=train)
        shortcut = x if self.downsample is None else self.downsample(x, train=train)
        return jax.nn.relu(residual(shortcut, branch, scale))


class Stage(nnx.Module):
    """The blocks of one width, as attributes b1, b2, ...; the first halves the image."""

    def __init__(self, depth: int, inputs: int, width: int, *, block: Callable[..., Block]):
        self.depth = depth
        for i in range(depth):
            setattr(self, f"b{i + 1}", block(width if i else inputs, width, stride=1 if i else 2))

    def __iter__(self) -> Iterator[Block]:
        return (getattr(self, f"b{i + 1}") for i in range(self.depth))


class Head(nnx.Module):
    """The classifier; without one for `classes=0`."""

    def __init__(self, features: int, classes: int, *, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.01)
        self.fc = nnx.Linear(features, classes, kernel_init=init, rngs=rngs) if classes else None


class RegNet(ConvolutionalNetwork):
    """RegNetY on normalised NHWC images.

    Args:
        image_size, num_classes, drop_path, dtype: see `ConvolutionalNetwork`.
        depths, widths: blocks and channels of each stage; the widths divisible by `group_width`.
        group_width: channels of a group of the 3 x 3 convolutions; a narrower stage is one group.
        se_ratio: width of the squeeze-excitation over the channels of its block's input.
        stem_width: channels of the first convolution.
        stem: "imagenet" halves the image, "cifar" keeps its size, for images of 32 pixels or so.

    Raises:
        ValueError: the arguments contradict each other.
    """

    def __init__(
        self,
        *,
        image_size: int | tuple[int, int] = 224,
        num_classes: int = 1000,
        depths: Sequence[int],
        widths: Sequence[int],
        group_width: int,
        se_ratio: float = 0.25,
        drop_path: float = 0.0,
        stem: str = "imagenet",
        stem_width: int = 32,
        dtype: DType = jnp.float32,
        rngs: nnx.Rngs,
    ):
        groups = [min(group_width, width) for width in widths]
        for width, group in zip(widths, groups, strict=True):
            if width % group:
                raise ValueError(f"width {width} is not divisible by group_width {group_width}")
        super().__init__(image_size, num_classes, depths, drop_path, dtype, stem)
        self.stem = ConvNorm(3, stem_width, 3, stride=2 if stem == "imagenet" else 1, dtype=dtype, rngs=rngs)
        self.stages = len(depths)
        inputs = stem_width
        for i, (depth, width, group) in enumerate(zip(depths, widths, groups, strict=True)):
            block = partial(Block, group_width=group, se_ratio=se_ratio, dtype=dtype, rngs=rngs)
            setattr(self, f"s{i + 1}", Stage(depth, inputs, width, block=block))
            inputs = width
        self.head = Head(inputs, num_classes, rngs=rngs)

    def features(self, x: Features, scales: Sequence[Scale], *, train: bool) -> Output:
        x = self.stem(x, train=train)
        blocks = (block for i in range(self.stages) for block in getattr(self, f"s{i + 1}"))
        for block, scale in zip(blocks, scales, strict=True):
            x = block(x, scale, train=train)
        return x

    @property
    def classifier_layer(self) -> nnx.Linear | None:
        return self.head.fc
