"""Writes mixing.npz: what timm's Mixup makes of a batch, and what it drew. Needs torch and timm, reading does not:

    python tests/golden/make_mixing.py

Keys: `images` [batch, height, width, 3], `labels` [batch]; for each CASE (a mode, then "alpha" or "minmax")
`CASE/mixed` and `CASE/targets`; of what draws for itself, one for "batch", three for "pair", six for "elem":
`CASE/lambda` as it was drawn, `CASE/cutmix`, `CASE/whole`, what `randint` gave for its box (centre y, x; or sides y, x
and corner y, x; -1 where it has none), `CASE/box` (y0, y1, x0, x1) and `CASE/label_weight`.
"""

from pathlib import Path

import numpy as np
import timm.data.mixup
import torch

BATCH, SIZE, CLASSES = 6, 11, 5
SMOOTHING, MINMAX = 0.1, (0.2, 0.9)
randint = np.random.randint


class Recorded(timm.data.mixup.Mixup):
    def _params_per_elem(self, batch_size):
        self.drawn = super()._params_per_elem(batch_size)
        return self.drawn[0].copy(), self.drawn[1]

    def _params_per_batch(self):
        weight, paste = super()._params_per_batch()
        self.drawn = np.array([weight]), np.array([paste])
        return weight, paste


def record(mode: str, minmax: tuple[float, float] | None, seed: int, images: np.ndarray, labels: np.ndarray) -> dict:
    whole: list[int] = []

    def kept(*arguments, **options):
        whole.append(randint(*arguments, **options))
        return whole[-1]

    np.random.seed(seed)
    mixup = Recorded(0.8, 1.0, minmax, 0.8, 0.5, mode, label_smoothing=SMOOTHING, num_classes=CLASSES)
    np.random.randint = kept
    mixed, targets = mixup(torch.tensor(images).permute(0, 3, 1, 2), torch.tensor(labels))
    np.random.randint = randint
    drawn, paste = mixup.drawn
    each = 4 if minmax else 2
    wholes = np.full((len(drawn), each), -1)
    boxed = paste & (drawn != 1)
    wholes[boxed] = np.reshape(whole, (-1, each))
    box, label_weight = np.zeros((len(drawn), 4), int), drawn.astype(np.float64)
    for i in np.flatnonzero(boxed):
        replay = iter(wholes[i].tolist())
        np.random.randint = lambda *arguments, replay=replay, **options: next(replay)
        box[i], label_weight[i] = timm.data.mixup.cutmix_bbox_and_lam((3, SIZE, SIZE), drawn[i], minmax)
    np.random.randint = randint
    return {
        "mixed": mixed.permute(0, 2, 3, 1).numpy(),
        "targets": targets.numpy(),
        "lambda": drawn.astype(np.float64),
        "cutmix": paste,
        "whole": wholes,
        "box": box,
        "label_weight": label_weight,
    }


def main() -> None:
    random = np.random.default_rng(0)
    images = random.integers(256, size=(BATCH, SIZE, SIZE, 3)).astype(np.float32)
    labels = random.integers(CLASSES, size=BATCH)
    arrays = {"images": images, "labels": labels}
    for mode, seed in (("batch", 2), ("pair", 1), ("elem", 2)):
        for name, minmax in (("alpha", None), ("minmax", MINMAX)):
            case = record(mode, minmax, seed, images.copy(), labels)
            arrays |= {f"{mode}-{name}/{key}": value for key, value in case.items()}
    np.savez_compressed(Path(__file__).with_name("mixing.npz"), **arrays)


if __name__ == "__main__":
    main()
