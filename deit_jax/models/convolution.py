"""What convolutional networks share: convolution, batch normalisation, squeeze-excitation, the way to the logits."""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from deit_jax.models.inputs import check_images
from deit_jax.models.layers import DType, drop_path_rates, drop_path_scales

Images = Float[Array | np.ndarray, "batch height width channels"]
Features = Float[Array, "batch height width channels"]
Output = Float[Array, "batch rows columns outputs"]  # of a layer that changes the size
Kernel = Float[Array, "size size inputs outputs"]
Padding = tuple[tuple[int, int], ...]  # before and after, of the height and the width
Pooled = Float[Array, "batch features"]
Logits = Float[Array, "batch outputs"]
Scale = Float[Array, " batch"] | None


class Convolution(nnx.Module):
    """A square convolution; initial weights N(0, 2 / fan_out) (arXiv:1502.01852), where a group counts its own outputs.

    Args:
        same: pads as TensorFlow does, which depends on the image's size and is uneven; else by `size // 2` all around.
        bias: adds a bias, 0 at first.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        same: bool = False,
        bias: bool = False,
        dtype: DType,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.normal(math.sqrt(2 * groups / (size**2 * outputs)))
        self.kernel = nnx.Param(init(rngs.params(), (size, size, inputs // groups, outputs), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if bias else None
        self.stride = stride
        self.groups = groups
        self.same = same
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Features) -> Output:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        size = len(kernel)
        padding: Padding = ((size // 2, size // 2),) * 2
        if self.same:
            padding = tuple(jax.lax.padtype_to_pads(x.shape[1:3], (size, size), (self.stride,) * 2, "SAME"))
        if self.groups > 1:
            out = grouped_convolve(x, kernel, self.stride, padding, self.groups)
        elif size == 1:
            out = pointwise(x[:, :: self.stride, :: self.stride], kernel)
        else:
            out = convolve(x, kernel, self.stride, padding, 1)
        return out if self.bias is None else out + self.bias[...].astype(self.dtype)


def pointwise(x: Features, kernel: Kernel) -> Output:
    """A 1 x 1 convolution, as one matrix product: otherwise a small ResNet takes 1.6 times as long a step on CPU."""
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def convolve(x: Features, kernel: Kernel, stride: int, padding: Padding, groups: int) -> Output:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# XLA's CPU backend has no fast path for the kernel's gradient of a grouped convolution: a training step of a small
# RegNetY took 7 times as long.
@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def grouped_convolve(x: Features, kernel: Kernel, stride: int, padding: Padding, groups: int) -> Output:
    """`convolve`, with a gradient that is fast on CPU too."""
    return convolve(x, kernel, stride, padding, groups)


def _forward(
    x: Features, kernel: Kernel, stride: int, padding: Padding, groups: int
) -> tuple[Output, tuple[Features, Kernel]]:
    return convolve(x, kernel, stride, padding, groups), (x, kernel)


def _backward(
    stride: int, padding: Padding, groups: int, kept: tuple[Features, Kernel], gradient: Output
) -> tuple[Features, Kernel]:
    x, kernel = kept
    _, to_input = jax.vjp(lambda x: convolve(x, kernel, stride, padding, groups), x)

    def native(x: Features, gradient: Output) -> Kernel:
        return jax.vjp(lambda kernel: convolve(x, kernel, stride, padding, groups), kernel)[1](gradient)[0]

    def by_taps(x: Features, gradient: Output) -> Kernel:
        """For each place in the kernel, one matrix product for each group: of the pixels it saw and the gradient."""
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        rows, columns = gradient.shape[1:3]
        gradient = gradient.reshape(-1, groups, gradient.shape[-1] // groups)
        places = itertools.product(range(kernel.shape[0]), range(kernel.shape[1]))
        seen = (x[:, i : i + stride * rows : stride, j : j + stride * columns : stride] for i, j in places)
        taps = [
            jnp.einsum("ngi,ngo->igo", pixels[:, :rows, :columns].reshape(len(gradient), groups, -1), gradient)
            for pixels in seen
        ]
        return jnp.stack(taps).reshape(kernel.shape)

    return *to_input(gradient), jax.lax.platform_dependent(x, gradient, cpu=by_taps, default=native)


grouped_convolve.defvjp(_forward, _backward)


class BatchNorm(nnx.Module):
    """Batch normalisation (arXiv:1502.03167) over all axes but the last, in float32.

    In training, the batch's mean and (biased) variance normalise, and the stored ones move towards the batch's by
    `momentum`. As in torch, which the published weights come from, it is the unbiased variance that is stored. Under
    `jax.jit` the batch is the global one, whatever the mesh.

    Args:
        initial_scale: 0 makes a residual branch that ends here start as nothing (arXiv:1706.02677, section 5.1).
    """

    def __init__(
        self,
        channels: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        initial_scale: float = 1.0,
        dtype: DType = jnp.float32,
    ):
        self.scale = nnx.Param(jnp.full(channels, initial_scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))
        self.eps = eps
        self.momentum = momentum
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Features, *, train: bool) -> Features:
        """With `train`, also moves the stored statistics."""
        centre, variance = self.mean[...], self.var[...]
        x = x.astype(jnp.float32)
        if train:
            centre = x.mean(axis=(0, 1, 2))
            variance = jnp.square(x - centre).mean(axis=(0, 1, 2))
            count = x.size // x.shape[-1]
            self._store(centre, variance * (count / max(count - 1, 1)))
        factor = self.scale[...] * jax.lax.rsqrt(variance + self.eps)
        return ((x - centre) * factor + self.bias[...]).astype(self.dtype)

    def _store(self, mean: Float[Array, " channels"], var: Float[Array, " channels"]) -> None:
        self.mean[...] = (1 - self.momentum) * self.mean[...] + self.momentum * mean
        self.var[...] = (1 - self.momentum) * self.var[...] + self.momentum * var


class ConvNorm(nnx.Module):
    """A convolution without bias, batch normalisation, and a ReLU unless `activate` is false."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activate: bool = True,
        initial_scale: float = 1.0,
        dtype: DType,
        rngs: nnx.Rngs,
    ):
        self.conv = Convolution(inputs, outputs, size, stride=stride, groups=groups, dtype=dtype, rngs=rngs)
        self.bn = BatchNorm(outputs, initial_scale=initial_scale, dtype=dtype)
        self.activate = activate

    def __call__(self, x: Features, *, train: bool) -> Output:
        out = self.bn(self.conv(x), train=train)
        return jax.nn.relu(out) if self.activate else out


class SqueezeExcitation(nnx.Module):
    """Weighs the channels by what the whole image has in them (arXiv:1709.01507)."""

    def __init__(self, channels: int, reduced: int, *, dtype: DType, rngs: nnx.Rngs):
        self.fc1 = Convolution(channels, reduced, 1, bias=True, dtype=dtype, rngs=rngs)
        self.fc2 = Convolution(reduced, channels, 1, bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: Features) -> Features:
        pooled = x.mean(axis=(1, 2), keepdims=True, dtype=jnp.float32)
        return x * jax.nn.sigmoid(self.fc2(jax.nn.relu(self.fc1(pooled))))


def residual(shortcut: Features, branch: Features, scale: Scale) -> Features:
    """shortcut + branch, the branch of each example times its `scale` (None: as it is), in float32 as `drop_path`."""
    if scale is not None:
        branch = (branch.astype(jnp.float32) * scale[:, None, None, None]).astype(branch.dtype)
    return shortcut + branch


class ConvolutionalNetwork(nnx.Module):
    """Features, their mean over positions, and a dense classifier; takes normalised NHWC images.

    A subclass defines what lies before the pooling and after it.

    Args:
        image_size: height and width in pixels, or one number for both; any.
        num_classes: classes of the head; 0 leaves it out, so that the model returns pooled features.
        depths: residual blocks of each stage.
        drop_path: stochastic depth rate (arXiv:1603.09382) of the last block; the others' grow linearly from 0 at the
            first.
        dtype: of the computation; parameters, statistics, pooled features and logits are float32 always.
        stem: "imagenet" or "cifar", of networks that have a choice.

    Raises:
        ValueError: an argument is out of its range.
    """

    num_heads = 1  # classifiers, as a Vision Transformer may have two

    def __init__(
        self,
        image_size: int | tuple[int, int],
        num_classes: int,
        depths: Sequence[int],
        drop_path: float,
        dtype: DType,
        stem: str = "imagenet",
    ):
        if stem not in ("imagenet", "cifar"):
            raise ValueError(f"stem {stem!r} is none of imagenet, cifar")
        self.image_size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        self.num_classes = num_classes
        self.drop_path = drop_path_rates(drop_path, sum(depths), "linear")
        self.dtype = jnp.dtype(dtype)

    def features(self, x: Features, scales: Sequence[Scale], *, train: bool) -> Output:
        """What is pooled; `scales` multiplies each block's branch, see `residual`."""
        raise NotImplementedError

    @property
    def classifier_layer(self) -> nnx.Linear | None:
        """What gives the logits; None where `num_classes` is 0."""
        raise NotImplementedError

    def __call__(self, images: Images, *, train: bool = False, key: Array | None = None) -> Logits:
        """Logits in float32 `[batch, num_classes]`; the pooled features where `num_classes` is 0.

        Raises:
            ValueError: the images have another size, or training has no key.
        """
        if train and key is None:
            raise ValueError("training needs a key: model(images, train=True, key=key)")
        return self.head_logits(images, key=key if train else None)[0]

    def head_logits(self, images: Images, *, key: Array | None = None) -> tuple[Logits, ...]:
        """The logits of the only head; `key` as in `head_features`."""
        return self.classify(self.head_features(images, key=key))

    def classify(self, features: tuple[Pooled, ...]) -> tuple[Logits, ...]:
        """The logits of what is pooled, float32; that itself where `num_classes` is 0."""
        return features if self.classifier_layer is None else (self.classifier_layer(features[0]),)

    def head_features(self, images: Images, *, key: Array | None = None) -> tuple[Pooled]:
        """What the head classifies, in float32. A `key` means training: batch statistics, which also move the stored
        ones, and stochastic depth drawn from it."""
        check_images(images, self.image_size)
        scales: Sequence[Scale] = [None] * len(self.drop_path)
        if key is not None and any(self.drop_path):
            scales = list(drop_path_scales(self.drop_path, len(images), key, branches=1)[:, 0])
        x = self.features(jnp.asarray(images, self.dtype), scales, train=key is not None)
        return (x.mean(axis=(1, 2), dtype=jnp.float32),)

    def set_input_size(self, image_size: tuple[int, int]) -> None:
        """From now on takes images of this height and width."""
        self.image_size = image_size
