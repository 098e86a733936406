"""Accuracies on the way that the authors of a recipe published, by name: `published_curves.json`.

They are those of DeiT-III (arXiv:2204.07118) in facebook's README_revenge.md, whose address is in the file: top-1 of
the raw weights on ImageNet-1k's validation images, during the pretraining on ImageNet-21k as well (the authors in
facebookresearch/deit, issues 203 and 167).

The readme calls the points epoch 0, 5, ..., 800. facebook's `main.py` counts epochs from 0 and evaluates after each:
point `e` is taken for `e + 1` epochs of training. An epoch 800 of 800 there is not: the last point is that of the end.
"""

import dataclasses
import functools
import json
from importlib import resources
from typing import Any

from deit_jax.base.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Curve:
    """The accuracies of a published run.

    Attributes:
        run: which one, in words.
        points: epochs of training, and top-1 in percent after them, in order.
    """

    run: str = ""
    points: tuple[tuple[int, float], ...] = ()


def published_curve(name: str) -> Curve:
    """The curve that a config names; one without points for "".

    Raises:
        UserError: there is none of this name; the message shows the nearest.
    """
    if not name:
        return Curve()
    file = _file()
    if name not in file["curves"]:
        raise UserError(f"config.eval.published_curve: unknown curve {name!r}{nearest(name, file['curves'])}")
    curve, every = file["curves"][name], file["epochs_a_point"]
    length = every * (len(curve["top1"]) - 1)
    points = ((min(every * i + 1, length), top1) for i, top1 in enumerate(curve["top1"]))
    return Curve(curve["run"], tuple(points))


@functools.cache
def _file() -> Any:
    return json.loads(resources.files("deit_jax.config").joinpath("published_curves.json").read_bytes())
