"""Makes gap.npz: what timm's Vision Transformer says of random images as big_vision's ViT-S/16 baseline is built.

    pip install torch==2.14.1 timm==1.0.31 numpy && python tests/golden/make_gap.py

That is without a class token, with fixed positions, the last normalisation before the mean, and a dense layer and tanh
before the head. The file has the tensors by timm's names, `images_N` [2, height, width, 3] and `logits_N` for grids of
5 x 7 and 2 x 3 patches, of the same tensors.
"""

import math
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer

PATCH, WIDTH, CLASSES = 3, 16, 5
GRIDS = [(5, 7), (2, 3)]


def fixed(rows: int, columns: int) -> torch.Tensor:
    """arXiv:2205.01580's positions, a number at a time: a quarter each of sin x, cos x, sin y, cos y."""
    quarter = WIDTH // 4
    table = torch.zeros(1, rows * columns, WIDTH)
    for patch in range(rows * columns):
        for channel in range(WIDTH):
            part, index = divmod(channel, quarter)
            place = patch // columns if part >= 2 else patch % columns
            angle = place / 10_000 ** (index / (quarter - 1))
            table[0, patch, channel] = math.cos(angle) if part % 2 else math.sin(angle)
    return table


def network(rows: int, columns: int) -> VisionTransformer:
    size = (rows * PATCH, columns * PATCH)
    sizes = {"patch_size": PATCH, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "num_classes": CLASSES}
    # As timm has its vit_base_patch16_gap_224.
    model = VisionTransformer(size, class_token=False, global_pool="avg", fc_norm=False, **sizes)
    layers = {"fc": torch.nn.Linear(WIDTH, WIDTH), "tanh": torch.nn.Tanh(), "head": model.head}
    model.head = torch.nn.Sequential(OrderedDict(layers))
    return model.eval()


def own_name(name: str) -> str:
    return name.replace("head.fc.", "pre_logits.fc.").replace("head.head.", "head.")


random = np.random.default_rng(0)
state = {
    name: torch.from_numpy(random.normal(name.endswith("norm.weight"), 0.3, value.shape).astype(np.float32))
    for name, value in network(*GRIDS[0]).state_dict().items()
    if name != "pos_embed"
}
arrays = {own_name(name): value.numpy() for name, value in state.items()}
for case, (rows, columns) in enumerate(GRIDS):
    model = network(rows, columns)
    model.load_state_dict(state | {"pos_embed": fixed(rows, columns)})
    images = random.normal(size=(2, rows * PATCH, columns * PATCH, 3)).astype(np.float32)
    with torch.no_grad():
        logits = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    arrays |= {f"images_{case}": images, f"logits_{case}": logits.numpy()}
np.savez_compressed(Path(__file__).with_name("gap.npz"), **arrays)
