"""The last evaluation on disk: counts by hand, others' names as they are, and no file that costs another one."""

import csv
import os
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deit_jax.data.memory import MemorySource
from deit_jax.run import plots
from deit_jax.run.evaluate import Result, report

pytestmark = pytest.mark.pictures

FILES = ["confusion.png", "per_class.csv", "predictions.csv"]


def result(labels: Sequence[int], said: Sequence[int], classes: int) -> Result:
    """Of one head, each example with that class first and five others behind; probability 0.5."""
    labels, said = np.array(labels, np.int32), np.array(said, np.int32)
    counts = Result.empty(classes, heads=1)
    for part in np.array_split(np.arange(len(labels)), 3):
        padded = np.append(part, part[:1])
        rest = (said[padded, None] + np.arange(5)) % classes
        counts.add(
            {
                "label": labels[padded],
                "top": rest.astype(np.int32),
                "heads": said[padded][None],
                "loss": np.full(len(padded), 0.25, np.float32),
                "mask": np.arange(len(padded)) < len(part),
                "corrupt": np.zeros(len(padded), bool),
                "index": padded.astype(np.int32),
                "probability": np.full(len(padded), 0.5, np.float32),
            }
        )
    return counts


class Names(MemorySource):
    """A source of which nothing is asked but names."""

    def __init__(self, class_names: Sequence[str], name: Callable[[int], str] = "{}.jpg".format):
        super().__init__(np.zeros((1, 1, 1), np.uint8), np.zeros(1, int), class_names)
        self._names = name

    def name(self, index: int) -> str:
        return self._names(index)


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


LABELS, SAID = [0, 0, 1, 1, 1, 6], [0, 1, 1, 1, 5, 0]


def test_counts_by_hand() -> None:
    counts = result(LABELS, SAID, classes=7)
    np.testing.assert_array_equal(counts.seen, [2, 3, 0, 0, 0, 0, 1])
    np.testing.assert_array_equal(counts.right, [1, 2, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(counts.per_class(), [50, 100 * 2 / 3, *[np.nan] * 4, 0])
    expected = np.zeros((7, 7), np.int64)
    for label, said in zip(LABELS, SAID, strict=True):
        expected[label, said] += 1
    np.testing.assert_array_equal(counts.folded(1), expected)
    np.testing.assert_array_equal(counts.folded(3), [[4, 1, 0], [0, 0, 0], [1, 0, 0]])
    # Of those told wrongly one has its class among the four that follow the best: class 1 told as 5, with 6, 0, 1, 2.
    assert counts.summary() == {"top1": 3 * (100 / 6), "top5": 4 * (100 / 6), "loss": 0.25, "examples": 6}


def test_the_average_is_what_is_reported(tmp_path) -> None:
    results = {"eval": result([0, 1], [0, 0], 2), "eval_ema": result([0, 1], [1, 1], 2)}
    report(results, Names(["cat", "dog"]), tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == FILES
    assert table(tmp_path / "new" / "per_class.csv") == [
        ["class", "examples", "top1"],
        ["cat", "1", "0.0"],
        ["dog", "1", "100.0"],
    ]
    assert table(tmp_path / "new" / "predictions.csv")[1:] == [
        ["0.jpg", "cat", "dog", "0.5000", "0.7788"],
        ["1.jpg", "dog", "dog", "0.5000", "0.7788"],
    ]


NAMES = [
    "$1_bill_$",
    "$100$",
    "^_{}\\frac",
    "熊猫",
    "x" * 200,
    "猫" * 80,
    os.fsdecode(b"Stra\xdfe"),
    "a\nb",
    "\x1b[2J",
    "\u202eabc",
    "",
]


def test_names_of_every_kind(tmp_path, caplog) -> None:
    images = [os.fsdecode(b"Stra\xdfe.jpg"), *(f"{name}.jpg" for name in NAMES[1:])]
    some = range(len(NAMES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report({"eval": result(some, some, len(NAMES))}, Names(NAMES, images.__getitem__), tmp_path)
    assert not caplog.records
    shown = [r"Stra\udcdfe" if name.startswith("Stra") else name for name in NAMES]
    assert [row[0] for row in table(tmp_path / "per_class.csv")[1:]] == shown
    rows = table(tmp_path / "predictions.csv")[1:]
    assert rows[0] == [r"Stra\udcdfe.jpg", "$1_bill_$", "$1_bill_$", "0.5000", "0.7788"]
    assert [row[1] for row in rows] == shown
    with Image.open(tmp_path / "confusion.png") as picture:  # the matrix, eleven cells of a class
        blue = np.abs(np.asarray(picture.convert("RGB")).astype(int) - [8, 48, 107]).max(axis=-1) < 3
        assert min(picture.size) > 500
    assert blue.sum() > 5000


def test_labels_are_drawn_literally(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, **options: drawn.append(figure))
    names = ["$1_bill_$", "$a$", "US$", "x" * 200, "\x1b[2J"]
    plots.save_confusion(np.eye(5, dtype=np.int64), names, tmp_path)
    for axis in (drawn[0].axes[0].xaxis, drawn[0].axes[0].yaxis):
        labels = axis.get_ticklabels()
        assert [label.get_text() for label in labels] == [*names[:3], "x" * 20 + "…" + "x" * 19, r"\x1b[2J"]
        assert not any(label.get_parse_math() for label in labels)


def test_long_names_leave_the_matrix_its_size(tmp_path) -> None:
    """And are seen beside it, which takes a wider and a higher picture."""

    def draw(names: Sequence[str]) -> tuple[int, int, int]:
        plots.save_confusion(np.eye(2, dtype=np.int64), names, tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as picture:
            blue = (np.abs(np.asarray(picture.convert("RGB")).astype(int) - [8, 48, 107]) < 3).all(axis=-1).sum()
            return int(blue), *picture.size

    (short, *size), (long, *larger) = draw(["a", "b"]), draw(["熊猫" * 99, "W" * 200])
    assert abs(long / short - 1) < 0.01
    assert larger[0] > size[0] + 300
    assert larger[1] > size[1] + 300


@pytest.mark.parametrize("broken", FILES)
@pytest.mark.parametrize("how", ["a folder", "an exception", "a full disk"])
def test_a_file_that_cannot_be_made_costs_a_warning(broken, how, tmp_path, monkeypatch, caplog) -> None:
    results, of = {"eval": result([0, 1], [0, 0], 2)}, Names(["cat", "dog"])
    if how == "a folder":
        (tmp_path / broken / "full").mkdir(parents=True)
    else:
        error = ValueError("two\nlines") if how == "an exception" else OSError(28, "No space left on device")

        def fail(*arguments: Any, **options: Any) -> None:
            raise error

        if broken == "confusion.png":
            monkeypatch.setattr(plots, "save_confusion", fail)
        elif broken == "per_class.csv":
            monkeypatch.setattr(Result, "per_class", fail)
        else:
            of._names = fail
    report(results, of, tmp_path)
    written = [path.name for path in tmp_path.iterdir() if path.is_file()]
    assert sorted(written) == [name for name in FILES if name != broken]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    reason = {"a folder": "", "an exception": "ValueError: two lines", "a full disk": "No space left"}[how]
    assert f"{tmp_path / broken} is not written: " in record.getMessage()
    assert reason in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_workdir_that_cannot_be_written_costs_warnings(tmp_path, caplog) -> None:
    (tmp_path / "file").write_text("")
    report({"eval": result([0, 1], [0, 0], 2)}, Names(["cat", "dog"]), tmp_path / "file")
    assert [record.getMessage().partition(" is not")[0] for record in caplog.records] == [
        str(tmp_path / "file" / name) for name in FILES
    ]


def test_an_interrupted_report_leaves_the_one_before(tmp_path) -> None:
    (tmp_path / "predictions.csv").write_text("before")

    def interrupted(i: int) -> str:
        if i == 1:
            raise KeyboardInterrupt
        return "a.jpg"

    with pytest.raises(KeyboardInterrupt):
        report({"eval": result([0, 1], [0, 0], 2)}, Names(["cat", "dog"], interrupted), tmp_path)
    assert (tmp_path / "predictions.csv").read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


def test_links_are_replaced_not_followed(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    for name in FILES:
        (tmp_path / name).write_text("of somebody else")
        (tmp_path / "run" / name).symlink_to(tmp_path / name)
    report({"eval": result([0, 1], [0, 0], 2)}, Names(["cat", "dog"]), tmp_path / "run")
    for name in FILES:
        assert (tmp_path / name).read_text() == "of somebody else"
        assert not (tmp_path / "run" / name).is_symlink()


@pytest.mark.long
def test_very_many_classes_take_little_memory(tmp_path) -> None:
    classes = 21_841
    generator = np.random.default_rng(0)
    counts = result(*generator.integers(0, classes, (2, 3000)), classes)
    tracemalloc.start()
    try:
        report({"eval": counts}, Names([f"class {i}" for i in range(classes)]), tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert len(table(tmp_path / "per_class.csv")) == 1 + classes
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 500


def test_a_matrix_of_many_classes_is_folded(tmp_path, monkeypatch) -> None:
    """1,501 classes are drawn four a row, the last row of one."""
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, **options: drawn.append(figure))
    generator = np.random.default_rng(0)
    labels, said = generator.integers(0, 1501, (2, 500))
    counts = result(labels, said, 1501)
    assert plots.classes_a_row(1501) == 4
    expected = np.zeros((376, 376))
    for label, prediction in zip(labels, said, strict=True):
        expected[label // 4, prediction // 4] += 1
    expected /= np.maximum(expected.sum(axis=1, keepdims=True), 1)
    plots.save_confusion(counts.folded(4), [str(i) for i in range(1501)], tmp_path)
    axes = drawn[0].axes[0]
    (picture,) = axes.get_images()
    np.testing.assert_array_equal(picture.get_array(), expected)
    assert picture.get_extent() == [-0.5, 1503.5, 1503.5, -0.5]  # in classes
    assert "4 neighbouring classes" in axes.get_title()


def test_odd_rows_do_not_disturb_the_curves(tmp_path, monkeypatch) -> None:
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, **options: drawn.append(figure))
    odd = [
        {"train/loss": 2.0},
        *(
            {"step": step, "train/loss": 2.0}
            for step in (None, "3", [3], {}, True, float("nan"), float("inf"), 10**400)
        ),
        *(
            {"step": 3, "train/loss": loss}
            for loss in (None, "2.0", [2.0], {}, True, float("nan"), -float("inf"), 1e300)
        ),
        *(None, 5, "text", [1, 2]),
    ]
    plots.save_curves([{"step": 1, "train/loss": 4}, *odd, {"step": 7, "train/loss": 3.5}], tmp_path / "curves.png")
    (line,) = drawn[0].axes[0].lines
    assert line.get_xydata().tolist() == [[1, 4], [7, 3.5]]
    assert not drawn[0].axes[1].lines
