"""Makes regnet.npz: a small RegNetY by transformers, its logits in evaluation and training, and what it then stores.

    pip install torch==2.13.0 transformers==5.23.0 numpy && OMP_NUM_THREADS=1 python tests/golden/make_regnet.py

`images` [2, 37, 45, 3]; every variable under timm's dotted path with Flax's leaf names and layouts, random statistics
included; `logits` with the stored statistics; `train_logits` with the batch's; and after that, `stored.NAME` for the
statistics. The scales are random too: the model's own start at 1, its last ones at 0 in timm. Several threads would add
up in another order.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, RegNetConfig, RegNetForImageClassification

LAYERS = {"layer.0": "conv1", "layer.1": "conv2", "layer.2": "se", "layer.3": "conv3", "shortcut": "downsample"}
LEAVES = {
    "convolution.weight": "conv.kernel",
    "normalization.weight": "bn.scale",
    "normalization.bias": "bn.bias",
    "normalization.running_mean": "bn.mean",
    "normalization.running_var": "bn.var",
    "attention.0.weight": "fc1.kernel",
    "attention.0.bias": "fc1.bias",
    "attention.2.weight": "fc2.kernel",
    "attention.2.bias": "fc2.bias",
}


def our_name(name: str) -> str:
    """Ours for theirs: `regnet.encoder.stages.0.layers.1.layer.3.convolution.weight` is `s1.b2.conv3.conv.kernel`."""
    if name.startswith("classifier.1."):
        return "head.fc." + {"weight": "kernel", "bias": "bias"}[name.split(".")[-1]]
    if name.startswith("regnet.embedder.embedder."):
        return "stem." + LEAVES[name.removeprefix("regnet.embedder.embedder.")]
    match = re.fullmatch(r"regnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(layer\.\d|shortcut)\.(.*)", name)
    stage, block, layer, leaf = match.groups()
    return f"s{int(stage) + 1}.b{int(block) + 1}.{LAYERS[layer]}.{LEAVES[leaf]}"


Named = Callable[[str], str]


def ours(state: dict[str, torch.Tensor], our_name: Named) -> dict[str, np.ndarray]:
    """Our variables of a state dict, in our layouts: dense [inputs, outputs], convolutions [height, width, in, out]."""
    arrays = {our_name(name): tensor.numpy() for name, tensor in state.items() if "num_batches" not in name}
    layout = {2: (1, 0), 4: (2, 3, 1, 0)}
    return {
        name: np.ascontiguousarray(array.transpose(layout[array.ndim])) if name.endswith("kernel") else array.copy()
        for name, array in arrays.items()
    }


def write(file: str, model: PreTrainedModel, our_name: Named, height: int, width: int) -> None:
    """The arrays of the docstring above, of a new model."""
    model.eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.3)
        if name.endswith(("running_var", "normalization.weight")):
            tensor.uniform_(0.5, 1.5)
    images = torch.randn(2, 3, height, width).half().float()
    arrays = ours(model.state_dict(), our_name)
    with torch.no_grad():
        arrays["logits"] = model(images).logits.numpy()
        arrays["train_logits"] = model.train()(images).logits.numpy()
    after = ours(model.state_dict(), our_name)
    stored = {f"stored.{name}": value for name, value in after.items() if name[-4:] in ("mean", ".var")}
    arrays["images"] = images.half().numpy().transpose(0, 2, 3, 1)
    np.savez_compressed(Path(__file__).with_name(file), **arrays, **stored)


def main() -> None:
    torch.manual_seed(0)
    config = RegNetConfig(
        embedding_size=5,
        hidden_sizes=[6, 9, 12, 21],
        depths=[1, 2, 10, 1],
        groups_width=3,
        layer_type="y",
        num_labels=13,
    )
    write("regnet.npz", RegNetForImageClassification(config), our_name, height=37, width=45)


if __name__ == "__main__":
    main()
