"""Pictures of a run: its curves and the confusion matrix of an evaluation."""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Int

from deit_jax.base.atomic import replacing
from deit_jax.base.storage import Place
from deit_jax.base.text import printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 40  # classes up to which their names and counts are legible
ROWS = 500  # of the drawn confusion matrix: more would be less than two pixels each
FEW = 20  # points of a curve that are marked: one alone makes no line
LETTERS = 40  # of a class name, so that it leaves room for the picture


def classes_a_row(classes: int) -> int:
    """How many neighbouring classes share a row of the drawn confusion matrix, and a column."""
    return -(-classes // ROWS)


def save_figure(figure: "Figure", path: Place, **options: Any) -> None:
    """Writes a PNG, whole or not at all; options as `Figure.savefig` takes them."""
    with replacing(path) as fresh, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # what no font has is drawn as boxes
        figure.savefig(fresh, format="png", **options)


def save_curves(
    rows: Sequence[Any], path: Place, *, published: Sequence[tuple[float, float]] = (), label: str = ""
) -> None:
    """Draws the losses and the top-1 accuracies over the steps from the rows of a `metrics.jsonl`.

    Behind the losses is the learning rate, dotted; on the accuracies a star marks the best of the weights that are
    handed on, of equals the newest. Only what is a number and finite is drawn, whatever else the rows hold.

    Args:
        published: steps and top-1 (percent) of another run, in order. They are drawn in grey, up to the first that lies
            where the rows end or beyond: the axes are those of the rows, however long the other run was.
        label: of the other run.
    """
    figure = _figure(9, 3.5)
    loss, accuracy = figure.subplots(1, 2)
    curves = [
        (loss, "train/loss", "training (mixed images)"),
        (loss, "eval/loss", "evaluation"),
        (loss, "eval_ema/loss", "evaluation, EMA"),
        (accuracy, "eval/top1", "raw weights"),
        (accuracy, "eval_ema/top1", "EMA"),
    ]
    for axes, metric, name in curves:
        _draw(axes, _points(rows, metric), name)
    _draw_rate(loss, _points(rows, "train/learning_rate"))
    if judged := _points(rows, "eval_ema/top1") or _points(rows, "eval/top1"):
        top1, step = max((top1, step) for step, top1 in judged)
        best = f"best: {top1:.2f} at step {step}"
        accuracy.plot(step, top1, "*", color="black", markersize=9, label=best, zorder=3)
    steps: list[Any] = [row.get("step") for row in rows if isinstance(row, Mapping)]
    reached = max(filter(_drawable, steps), default=0)
    before = [-1, *(step for step, _ in published)]
    shown = [point for point, last in zip(published, before, strict=False) if last < reached]
    _draw(accuracy, shown, label, color="0.65", zorder=1)  # lines are at 2
    for axes, title in ((loss, "loss (nats)"), (accuracy, "top-1 (%)")):
        axes.set(xlabel="step", title=title)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    save_figure(figure, path, dpi=120)


def save_confusion(confusion: Int[np.ndarray, "rows rows"], class_names: Sequence[str], path: Place) -> None:
    """Draws a confusion matrix, rows true classes and columns predicted ones, each row as shares of its sum.

    Args:
        confusion: counts; a row `classes_a_row` neighbouring classes.
        class_names: drawn as they are, where they are few.
        path: of the PNG.
    """
    classes, together = len(class_names), classes_a_row(len(class_names))
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    names = [shortened(printable(name), LETTERS) for name in class_names] if classes <= NAMED else []
    side = 2.5 + 0.28 * classes if names else 10
    figure = _figure(side + 1, side, layout=None)
    axes = figure.subplots()
    end = len(confusion) * together - 0.5
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", extent=(-0.5, end, end, -0.5))
    of = "each true class" if together == 1 else f"each row, {together} neighbouring classes"
    axes.set(xlabel="predicted", ylabel="true", title=f"confusion matrix (shares of {of})")
    figure.colorbar(picture, shrink=0.8)
    if names:
        axes.set_xticks(range(classes), names, rotation=90, parse_math=False)
        axes.set_yticks(range(classes), names, parse_math=False)
        for row, column in np.argwhere(confusion):
            shade = "white" if shares[row, column] > 0.5 else "black"
            count = str(confusion[row, column])
            axes.text(column, row, count, ha="center", va="center", fontsize=7, color=shade)
    save_figure(figure, path, dpi=120, bbox_inches="tight")  # however much room the names take beside the matrix


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    from matplotlib.figure import Figure  # half a second, which no run waits for at its start

    return Figure(figsize=(width, height), layout=layout)


def _points(rows: Sequence[Any], metric: str) -> list[tuple[Any, Any]]:
    """(step, value) of the rows that have a metric."""
    points = [(row.get("step"), row.get(metric)) for row in rows if isinstance(row, Mapping)]
    return [point for point in points if all(map(_drawable, point))]


def _draw_rate(axes: "Axes", points: Sequence[tuple[Any, Any]]) -> None:
    """With a scale of its own, on the right."""
    if points:
        right = axes.twinx()
        right.plot(*zip(*points, strict=True), color="0.65", linewidth=1, linestyle=":")
        right.set(ylim=(0, None))
        right.tick_params(axis="y", labelsize="x-small", colors="0.5")
        right.set_ylabel("learning rate (dotted)", fontsize="x-small", color="0.5")


def _draw(axes: "Axes", points: Sequence[tuple[Any, Any]], label: str, **look: Any) -> None:
    if points:
        marker = "." if len(points) < FEW else None
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2, marker=marker, **look)


def _drawable(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e99  # beyond, axes have no room; neither is NaN below
