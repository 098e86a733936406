"""Pictures of a run: its curves and the confusion matrix of an evaluation."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # half a second, which no run waits for at its start

    return Figure(figsize=(width, height), layout="constrained")


def save_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws the losses and the top-1 accuracies over the steps from the rows of a `metrics.jsonl`."""
    figure = _figure(9, 3.5)
    loss, accuracy = figure.subplots(1, 2)
    curves = [
        (loss, "train/loss", "training (mixed images)"),
        (loss, "eval/loss", "evaluation"),
        (loss, "eval_ema/loss", "evaluation, EMA"),
        (accuracy, "eval/top1", "raw weights"),
        (accuracy, "eval_ema/top1", "EMA"),
    ]
    for axes, name, label in curves:
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)
    for axes, title in ((loss, "loss (nats)"), (accuracy, "top-1 (%)")):
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)


def save_confusion(confusion: Int[np.ndarray, "classes classes"], class_names: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix, rows true classes and columns predicted ones, each row as shares of its class."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    few = len(class_names) <= 40
    side = 2.5 + 0.28 * len(class_names) if few else 10
    figure = _figure(side + 1, side)
    axes = figure.subplots()
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true", title="confusion matrix (shares of each true class)")
    figure.colorbar(picture, shrink=0.8)
    if few:  # more names, or counts in the cells, would not be legible
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=90)
        axes.set_yticks(ticks, class_names)
        for (row, column), count in np.ndenumerate(confusion):
            if count:
                shade = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=shade)
    figure.savefig(path, dpi=120)
