"""Makes resnet.npz: a small ResNet by transformers, its logits in evaluation and training, and what it then stores.

    pip install torch==2.13.0 transformers==5.23.0 numpy && python tests/golden/make_resnet.py

The arrays are as in make_regnet.py, under the names that timm gives a ResNet; `images` [2, 39, 45, 3], so that the
pooling sees an even height and an odd width.
"""

import re
from pathlib import Path

import numpy as np
import torch
from transformers import ResNetConfig, ResNetForImageClassification

LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def our_name(name: str) -> str:
    """Ours for theirs: `resnet.encoder.stages.0.layers.1.layer.2.convolution.weight` is `layer1.1.conv3.kernel`."""
    if name.startswith("classifier.1."):
        return "fc." + {"weight": "kernel", "bias": "bias"}[name.split(".")[-1]]
    owner, part, leaf = name.rsplit(".", 2)
    convolution = part == "convolution"
    leaf = "kernel" if convolution else LEAVES[leaf]
    if owner == "resnet.embedder.embedder":
        return f"conv1.{leaf}" if convolution else f"bn1.{leaf}"
    match = re.fullmatch(r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d)|shortcut)", owner)
    stage, block, layer = match.groups()
    if layer is None:
        return f"layer{int(stage) + 1}.{block}.downsample.{0 if convolution else 1}.{leaf}"
    return f"layer{int(stage) + 1}.{block}.{'conv' if convolution else 'bn'}{int(layer) + 1}.{leaf}"


def ours(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Our variables of a state dict, in our layouts: dense [inputs, outputs], convolutions [height, width, in, out]."""
    arrays = {our_name(name): tensor.numpy() for name, tensor in state.items() if "num_batches" not in name}
    layout = {2: (1, 0), 4: (2, 3, 1, 0)}
    return {
        name: np.ascontiguousarray(array.transpose(layout[array.ndim])) if name.endswith("kernel") else array.copy()
        for name, array in arrays.items()
    }


def main() -> None:
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=5, hidden_sizes=[12, 20, 28, 44], depths=[1, 2, 3, 1], layer_type="bottleneck", num_labels=13
    )
    model = ResNetForImageClassification(config).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.3)
        if name.endswith(("running_var", "normalization.weight")):
            tensor.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, 39, 45).half().float()
    arrays = ours(model.state_dict())
    with torch.no_grad():
        arrays["logits"] = model(images).logits.numpy()
        arrays["train_logits"] = model.train()(images).logits.numpy()
    stored = {
        f"stored.{name}": value for name, value in ours(model.state_dict()).items() if name[-4:] in ("mean", ".var")
    }
    arrays["images"] = images.half().numpy().transpose(0, 2, 3, 1)
    np.savez_compressed(Path(__file__).with_name("resnet.npz"), **arrays, **stored)


if __name__ == "__main__":
    main()
