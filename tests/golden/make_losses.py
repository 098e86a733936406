"""Makes losses.npz: distillation losses by torch's own functions, put together as facebook's losses.py puts them.

    pip install torch==2.13.0 numpy && python tests/golden/make_losses.py

`cls`, `dist`, `teacher` [5, 7] are logits, `smoothed` and `mixed` targets. `terms` [3, 2, 2, 3, 4, 2, 2] are the
weighted terms (base, distillation) for each choice of `AXES`, computed in float64.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

AXES = (
    ("soft/numel", "soft/batchmean", "hard/-"),
    ("cls", "dist"),
    ("smoothed", "mixed"),
    ("ce", "bce", "bce_binarized"),
    (0.0, 0.1, 0.5, 1.0),  # alpha
    (1.0, 3.0),  # tau
)


def base_loss(kind: str, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if kind == "ce":
        return F.cross_entropy(logits, targets)
    return F.binary_cross_entropy_with_logits(logits, (targets > 0).double() if kind == "bce_binarized" else targets)


def distillation(kind: str, reduction: str, student: torch.Tensor, teacher: torch.Tensor, tau: float) -> torch.Tensor:
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    student, teacher = F.log_softmax(student / tau, dim=1), F.log_softmax(teacher / tau, dim=1)
    if reduction == "batchmean":
        return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * tau**2
    return F.kl_div(student, teacher, reduction="sum", log_target=True) * tau**2 / student.numel()


def main() -> None:
    torch.manual_seed(0)
    logits = {name: (3 * torch.randn(5, 7)).double() for name in ("cls", "dist", "teacher")}
    labels = torch.tensor([0, 6, 2, 2, 5])
    smoothed = 0.9 * F.one_hot(labels, 7).double() + 0.1 / 7
    mixed = 0.3 * F.one_hot(labels, 7).double() + 0.7 * F.one_hot(labels.flip(0), 7).double()
    targets = {"smoothed": smoothed.float().double(), "mixed": mixed.float().double()}
    arrays = {name: value.float().numpy() for name, value in (logits | targets).items()}
    terms = []
    for how, head, target, base, alpha, tau in itertools.product(*AXES):
        terms += [
            (1 - alpha) * base_loss(base, logits["cls"], targets[target]),
            alpha * distillation(*how.split("/"), logits[head], logits["teacher"], tau),
        ]
    arrays["terms"] = torch.stack(terms).numpy().reshape(*map(len, AXES), 2)
    np.savez_compressed(Path(__file__).with_name("losses.npz"), **arrays)


main()
