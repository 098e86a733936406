"""Makes resnet.npz: a small ResNet by transformers, its logits in evaluation and training, and what it then stores.

    pip install torch==2.13.0 transformers==5.23.0 numpy && python tests/golden/make_resnet.py

The arrays are as in make_regnet.py, under the names that timm gives a ResNet; `images` [2, 39, 45, 3], so that the
pooling sees an even height and an odd width.
"""

import re

import torch
from make_regnet import write
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


def main() -> None:
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=5, hidden_sizes=[12, 20, 28, 44], depths=[1, 2, 3, 1], layer_type="bottleneck", num_labels=13
    )
    write("resnet.npz", ResNetForImageClassification(config), our_name, height=39, width=45)


if __name__ == "__main__":
    main()
