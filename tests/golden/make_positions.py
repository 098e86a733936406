"""Makes positions.npz: position embeddings resized by torch, as facebook's main.py does before fine-tuning.

    pip install torch==2.13.0 numpy && python tests/golden/make_positions.py

Each case `N` has `before_N` [1, prefix + rows * columns, width], `grids_N` (prefix, rows, columns, new rows, new
columns) and `after_N`.
"""

from pathlib import Path

import numpy as np
import torch

CASES = [  # prefix, grid before, grid after
    (1, (7, 7), (12, 12)),  # 224 -> 384 with patches of 32
    (2, (5, 5), (3, 3)),
    (0, (3, 5), (7, 4)),
    (2, (2, 3), (5, 11)),
]


def resized(positions: torch.Tensor, prefix: int, before: tuple[int, int], after: tuple[int, int]) -> torch.Tensor:
    width = positions.shape[-1]
    grid = positions[:, prefix:].reshape(1, *before, width).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=after, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


arrays = {}
generator = torch.Generator().manual_seed(0)
for case, (prefix, before, after) in enumerate(CASES):
    positions = torch.randn(1, prefix + before[0] * before[1], 3, generator=generator)
    arrays[f"before_{case}"] = positions.numpy()
    arrays[f"grids_{case}"] = np.array([prefix, *before, *after])
    arrays[f"after_{case}"] = resized(positions, prefix, before, after).numpy()
np.savez_compressed(Path(__file__).with_name("positions.npz"), **arrays)
