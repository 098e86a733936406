"""Writes binary.npz: binary cross-entropies of mixed targets by torch. Needs torch and timm, reading does not:

    python tests/golden/make_binary.py

Keys: `logits` [2 batch, classes], the copies of an image in neighbouring rows, of which the first ones alone are used
where there are no copies; `targets` [batch, classes]; for each CASE `CASE/value` and `CASE/gradient`, by the logits.
"""

from pathlib import Path

import numpy as np
import torch
from timm.loss import BinaryCrossEntropy

BATCH, CLASSES = 5, 7


def main() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (2 * BATCH, CLASSES)).astype(np.float32)
    weight = np.array([[0.7], [0.2], [1.0], [0.55], [0.4]], np.float32)
    own, other = np.array([0, 3, 2, 5, 1]), np.array([4, 3, 6, 1, 2])
    targets = weight * np.eye(CLASSES, dtype=np.float32)[own] + (1 - weight) * np.eye(CLASSES, dtype=np.float32)[other]
    present = torch.tensor(targets).gt(0.0).float()
    mean = torch.nn.BCEWithLogitsLoss()

    def cosub(z: torch.Tensor) -> torch.Tensor:
        one, two = z[::2], z[1::2]
        learnt = mean(one, present) + mean(two, present)
        agreed = mean(one, two.detach().sigmoid()) + mean(two, one.detach().sigmoid())
        return (learnt + agreed) / 4

    cases = {
        "timm": (lambda z: BinaryCrossEntropy()(z, torch.tensor(targets)), logits[::2]),
        "timm-threshold": (lambda z: BinaryCrossEntropy(target_threshold=0.0)(z, torch.tensor(targets)), logits[::2]),
        "facebook": (lambda z: mean(z, present), logits[::2]),
        "cosub": (cosub, logits),
    }
    arrays = {"logits": logits, "targets": targets}
    for case, (loss, given) in cases.items():
        z = torch.tensor(given, requires_grad=True)
        value = loss(z)
        value.backward()
        arrays |= {f"{case}/value": value.detach().numpy(), f"{case}/gradient": z.grad.numpy()}
    np.savez_compressed(Path(__file__).with_name("binary.npz"), **arrays)


if __name__ == "__main__":
    main()
