"""Writes schedules.npz: timm's learning rates, step by step. Needs torch and timm, reading does not:

    python tests/golden/make_schedules.py

Keys: `CASE/WARMUP` [total + 1], the rate at t = 0, 1, ..., total for a warm-up of so many steps.
"""

from pathlib import Path

import numpy as np
import torch
from timm.scheduler import create_scheduler_v2

PLACES = {"min_lr": 1e-5, "warmup_lr": 1e-6}
# What is asked of timm, and the steps that the run has with it.
CASES = {
    "cosine": ({"sched": "cosine"}, 60),
    "cooldown": ({"sched": "cosine", "cooldown_epochs": 7}, 67),
    "wsd": ({"sched": "wsd", "decay_epochs": 20}, 60),
    "step": ({"sched": "step", "decay_epochs": 13, "decay_rate": 0.3}, 60),
    "constant": ({"sched": "constant"}, 60),
}


def main() -> None:
    arrays = {}
    for case, (asked, total) in CASES.items():
        for warmup in (0, 7):
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
            scheduler, epochs = create_scheduler_v2(optimizer, num_epochs=60, warmup_epochs=warmup, **PLACES, **asked)
            assert epochs == total
            rates = []
            for t in range(total + 1):
                scheduler.step(t)
                rates.append(optimizer.param_groups[0]["lr"])
            arrays[f"{case}/{warmup}"] = np.array(rates)
    np.savez_compressed(Path(__file__).with_name("schedules.npz"), **arrays)


if __name__ == "__main__":
    main()
