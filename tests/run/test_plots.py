"""What `curves.png` draws of a published run: by matplotlib's artists."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from deit_jax.run import plots

pytestmark = pytest.mark.pictures

PUBLISHED = [(10.0, 0.1), (60.0, 2.0), (110.0, 9.3), (160.0, 16.4), (8000.0, 81.4)]
LABEL = "published, somebody's"


def accuracy(rows, monkeypatch):
    """The axes of the accuracies."""
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, **options: drawn.append(figure))
    plots.save_curves(rows, Path("curves.png"), published=PUBLISHED, label=LABEL)
    return drawn[0].axes[1]


def rows_until(step: int):
    return [
        {"step": s, "train/loss": 7.0} | ({"eval/top1": s / 50} if s % 50 == 0 else {}) for s in range(5, step + 1, 5)
    ]


@pytest.mark.parametrize(("step", "points"), [(5, 1), (10, 1), (15, 2), (110, 3), (115, 4), (9000, 5)])
def test_a_published_run_is_drawn_up_to_where_hers_is(monkeypatch, step, points):
    axes = accuracy(rows_until(step), monkeypatch)
    lines = {line.get_label(): line for line in axes.lines}
    np.testing.assert_array_equal(lines[LABEL].get_xydata(), PUBLISHED[:points])
    assert len(set(to_rgb(lines[LABEL].get_color()))) == 1  # grey
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [line.get_label() for line in axes.lines]
    if step >= 50:
        hers = lines["raw weights"]
        assert lines[LABEL].get_zorder() < hers.get_zorder()
        np.testing.assert_array_equal(hers.get_xydata()[0], [50, 1])


def test_her_first_points_have_the_axes_to_themselves(monkeypatch):
    axes = accuracy(rows_until(100), monkeypatch)
    assert axes.get_xlim()[1] < 120
    assert axes.get_ylim()[1] < 10


def test_a_single_evaluation_is_seen(monkeypatch):
    (line,) = (line for line in accuracy(rows_until(55), monkeypatch).lines if line.get_label() == "raw weights")
    assert (len(line.get_xydata()), line.get_marker()) == (1, ".")
    many = next(iter(accuracy(rows_until(5000), monkeypatch).lines))
    assert many.get_marker() == "None"
