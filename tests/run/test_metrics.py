"""What a run tells: its rows, TensorBoard, the progress bar, images per second and data wait, its pictures."""

import json
import math
import re
import struct
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.parallel import Exchange
from deit_jax.run import metrics, plots
from deit_jax.run import monitor as monitoring
from deit_jax.run.interrupt import Interrupt
from deit_jax.run.metrics import Progress, Writer, read_rows
from deit_jax.run.monitor import Monitor
from deit_jax.run.workdir import Workdir


def writer(workdir: Path, step: int = 0, **settings: Any) -> Writer:
    return Writer(Workdir(workdir), **{"step": step, "tensorboard": False, "wandb": False, "config": {}} | settings)


def rows(workdir: Path) -> list[dict[str, Any]]:
    """Every line of the file, each of which must be JSON by the book."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is no JSON")

    text = (workdir / "metrics.jsonl").read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events(workdir: Path) -> list[Event]:
    """TensorBoard's records: length, checksum, event, checksum."""
    found = []
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


# Rows.


def test_rows_are_written_one_a_line_and_at_once(tmp_path):
    out = writer(tmp_path)
    out.write({"step": 1, "train/loss": 0.1})
    assert rows(tmp_path) == [{"step": 1, "train/loss": 0.1}]  # before it is closed
    out.write({"step": 2, "train/loss": 1 / 3, "eval/examples": 360})
    out.close()
    assert rows(tmp_path) == [
        {"step": 1, "train/loss": 0.1},
        {"step": 2, "train/loss": 1 / 3, "eval/examples": 360},
    ]


def test_what_is_not_finite_becomes_null(tmp_path):
    out = writer(tmp_path, tensorboard=True)
    out.write({"step": 3, "train/loss": math.nan, "a": math.inf, "b": -math.inf, "c": np.float32("nan"), "d": 1.5})
    out.close()
    assert rows(tmp_path) == [{"step": 3, "train/loss": None, "a": None, "b": None, "c": None, "d": 1.5}]
    assert [value.tag for event in events(tmp_path) for value in event.summary.value] == ["d"]


def test_a_resume_drops_the_rows_after_its_step(tmp_path):
    out = writer(tmp_path)
    for step in range(1, 12):
        out.write({"step": step, "train/loss": 1 / step})
    out.close()
    resumed = writer(tmp_path, step=7)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    for step in range(8, 14):
        resumed.write({"step": step, "train/loss": 1 / step})
    resumed.close()
    assert rows(tmp_path) == [{"step": step, "train/loss": 1 / step} for step in range(1, 14)]


@pytest.mark.parametrize("torn", ['{"step": 3, "train/lo', '{"step": 3', "{", '{"step": 3, "train/loss": 0.25'])
def test_a_resume_drops_a_torn_last_line(tmp_path, torn):
    whole = [{"step": 1, "train/loss": 1.5}, {"step": 2, "train/loss": None}]
    lines = "".join(json.dumps(row) + "\n" for row in whole)
    (tmp_path / "metrics.jsonl").write_text(lines + torn)
    resumed = writer(tmp_path, step=5)
    resumed.write({"step": 6, "train/loss": 0.5})
    resumed.close()
    assert rows(tmp_path) == [*whole, {"step": 6, "train/loss": 0.5}]


def test_a_run_from_the_start_forgets_what_was_there(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    writer(tmp_path, step=0).close()
    assert rows(tmp_path) == []


def test_a_resume_keeps_rows_bit_for_bit(tmp_path):
    line = json.dumps({"step": 1, "train/loss": 0.1 + 0.2, "train/learning_rate": 1e-300, "eval/top1": None}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(line)
    writer(tmp_path, step=1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == line
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]  # nothing half-written beside it


def test_reading_a_file_that_is_not_there_gives_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_tensorboard_shows_the_rows_of_all_parts_of_a_run(tmp_path):
    first = writer(tmp_path, tensorboard=True)
    for step in (2, 4, 6):
        first.write({"step": step, "train/loss": 1 / step, "eval/top1": 10.0 * step})
    first.close()
    second = writer(tmp_path, step=4, tensorboard=True)
    second.write({"step": 6, "train/loss": 7.0})
    second.close()
    found = events(tmp_path)
    scalars = [(event.step, value.tag, value.simple_value) for event in found for value in event.summary.value]
    wanted = [(step, tag, x) for step in (2, 4, 6) for tag, x in (("train/loss", 1 / step), ("eval/top1", 10.0 * step))]
    wanted = [(step, tag, pytest.approx(x)) for step, tag, x in [*wanted, (6, "train/loss", 7.0)]]
    assert scalars == wanted
    # What the second part writes over: TensorBoard drops the first part's scalars from this step on.
    assert 5 in [event.step for event in found if event.HasField("session_log")]


def test_without_tensorboard_there_is_no_folder_of_it(tmp_path):
    writer(tmp_path).close()
    assert not (tmp_path / "tensorboard").exists()


@pytest.fixture
def fake_wandb(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Stands in for Weights & Biases and lists the calls that it gets."""
    calls: list[tuple] = []
    module: Any = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.init = lambda **settings: (
        calls.append(("init", settings))
        or SimpleNamespace(
            log=lambda values, step: calls.append(("log", values, step)), finish=lambda: calls.append(("finish",))
        )
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return calls


def test_weights_and_biases_gets_the_config_and_the_rows(tmp_path, fake_wandb):
    out = writer(tmp_path, wandb=True, config={"seed": 3})
    out.write({"step": 5, "train/loss": 0.5, "train/grad_norm": math.inf})
    out.close()
    assert [call[0] for call in fake_wandb] == ["init", "log", "finish"]
    assert fake_wandb[0][1]["config"] == {"seed": 3}
    assert fake_wandb[0][1]["name"] == tmp_path.name
    again = writer(tmp_path, wandb=True)
    elsewhere = writer(tmp_path / "another" / tmp_path.name, wandb=True)
    for out in (again, elsewhere):
        out.close()
    first, resumed, other = (call[1]["id"] for call in fake_wandb if call[0] == "init")
    assert first == resumed != other  # though both workdirs are called the same
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert fake_wandb[1][1:] == ({"train/loss": 0.5}, 5)


@pytest.mark.parametrize(
    "strange", [{30: [100_000]}, {0: [59]}, {0: [7, 8, 9], 12: [50], 13: [2], 60: [3, 4]}, {20: [20], 59: [999, 61]}]
)
def test_a_row_that_is_out_of_place_costs_no_other(tmp_path, strange, caplog):
    good = [{"step": step, "train/loss": 0.5} for step in range(1, 61)]
    lines = []
    for at in range(61):
        lines += [{"step": step, "train/loss": 9.0} for step in strange.get(at, [])] + good[at : at + 1]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    assert read_rows(tmp_path / "metrics.jsonl") == good
    assert f"{sum(map(len, strange.values()))} lines are no rows" in caplog.text


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "full"), ValueError("closed file")])
def test_a_screen_that_is_gone_costs_no_run(tmp_path, monkeypatch, error):
    def fail(*given):
        raise error

    watch = monitor(tmp_path, show=True)
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(write=fail, flush=fail, isatty=lambda: True))
    watch._bar.mininterval = 0
    for step in range(1, 8):
        watch.add(step, values(1))
    watch.settle()
    watch.close()
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, 8))


def test_weights_and_biases_that_is_asked_for_but_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^config\.log\.wandb: .*pip install wandb"):
        writer(tmp_path, wandb=True)


def test_foreign_lines_are_left_out_with_one_word(tmp_path, caplog):
    good = [json.dumps({"step": step, "train/loss": 0.5}) for step in (1, 2, 3)]
    strange = [
        '{"note": "x"}',
        "5",
        "[1]",
        "NaN",
        '{"step": 2.5}',
        '{"step": true}',
        '{"step": 9, "x": NaN}',
        "[" * 9999,
    ]
    strange += ['{"step": 2}', '{"step": -1}', '{"step": 3, "x": "text"}', '{"step": 1' + "0" * 30 + "}", "", "{"]
    lines = [good[0], good[1], *strange, good[2]]
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    assert read_rows(tmp_path / "metrics.jsonl") == [json.loads(line) for line in good]
    assert f"{len(strange)} lines are no rows of a run" in caplog.text
    assert len(caplog.records) == 1
    resumed = writer(tmp_path, step=2)
    resumed.write({"step": 4, "train/loss": 0.25})
    resumed.close()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 4]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere/at/all")])
def test_a_file_that_cannot_be_is_one_line(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    if (tmp_path / "metrics.jsonl").is_dir():
        with pytest.raises(UserError, match=r"cannot write .*metrics\.jsonl"):
            writer(tmp_path)
    else:  # the link gives way
        writer(tmp_path).close()
        assert (tmp_path / "metrics.jsonl").is_file()
        assert not (tmp_path / "metrics.jsonl").is_symlink()


def test_rows_wait_until_there_is_room(tmp_path, monkeypatch, caplog):
    out, full = writer(tmp_path), [False]
    fsync = metrics.os.fsync

    def on_a_full_disk(file):
        if full[0]:
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(metrics.os, "fsync", on_a_full_disk)
    for step in range(1, 6):
        full[0] = step in (2, 3)
        out.write({"step": step})
        assert [row["step"] for row in rows(tmp_path)] == ([1] if full[0] else list(range(1, step + 1)))
    out.close()
    assert caplog.text.count("No space left on device; its rows wait") == 1
    full[0] = True
    lost = writer(tmp_path, step=5)
    lost.write({"step": 6})
    lost.close()
    assert "its last 1 rows are lost" in caplog.text


# The monitor.


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(monitoring, "time", clock)
    return clock


def monitor(workdir: Path | None, **settings: Any) -> Monitor:
    defaults: dict[str, Any] = {"start": 0, "total": 11, "log_every": 1, "batch_size": 13}
    return Monitor(
        writer(workdir) if workdir else None, Exchange(parallel.make_mesh()), Interrupt(), **defaults | settings
    )


def values(loss: float, burst: int = 0) -> dict[str, Any]:
    """A step's metrics as they come from the device."""
    return {"loss": jnp.float32(loss), "skipped_in_a_row": jnp.int32(burst)}


def losses(workdir: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["train/loss"]) for row in rows(workdir)]


def test_metrics_are_read_one_step_late(tmp_path):
    """A step's metrics are looked at when the next step has been asked for: until then they may be computing."""
    watch = monitor(tmp_path)
    watch.add(1, values(0.5))
    assert losses(tmp_path) == []
    watch.add(2, values(0.25))
    assert losses(tmp_path) == [(1, 0.5)]
    watch.settle()
    watch.settle()
    assert losses(tmp_path) == [(1, 0.5), (2, 0.25)]
    watch.add(3, values(0.125))
    watch.close()
    assert losses(tmp_path) == [(1, 0.5), (2, 0.25)]


def test_utilisation_stands_beside_the_speed(tmp_path, clock):
    """Of step 2 and of step 3, whose images are other ones; steps are counted from 0 where batches are."""
    watch = monitor(tmp_path, image_seconds=lambda step: (0, 0.25, 0.5)[step] / 13)
    for step in (1, 2, 3):
        watch.add(step, values(1))
        clock.now += 0.5
    watch.settle()
    watch.close()
    for row, seconds in zip(rows(tmp_path)[1:], (0.25, 0.5), strict=True):
        assert row["train/utilisation"] == pytest.approx(row["train/images_per_second"] * seconds / 13)


def test_what_is_pending_is_not_touched_before_its_turn():
    class Pending:
        read = False

        def __array__(self, dtype=None, copy=None):
            self.read = True
            return np.float32(1)

    pending, watch = Pending(), monitor(None)
    watch.add(1, values(1) | {"loss": pending})
    assert not pending.read
    watch.add(2, values(1))
    assert pending.read


def test_bursts_of_skipped_updates_are_kept_until_dealt_with():
    """The longest burst counts, also when the step after it was read in the same breath."""
    watch = monitor(None)
    assert (watch.burst, watch.healthy) == (0, True)
    seen = []
    for step, burst in enumerate((0, 1, 2, 3, 0, 1), 1):
        watch.add(step, values(1, burst))
        watch.settle()
        seen.append((watch.burst, watch.healthy))
    assert seen == [(0, True), (1, False), (2, False), (3, False), (3, True), (3, False)]
    watch.burst = 0
    watch.add(7, values(1))
    watch.settle()
    assert (watch.burst, watch.healthy) == (0, True)


@pytest.mark.parametrize(("log_every", "wanted"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6]), (7, [7]), (8, [])])
def test_a_row_stands_for_every_so_manieth_step(tmp_path, log_every, wanted):
    watch = monitor(tmp_path, log_every=log_every)
    for step in range(1, 8):
        watch.add(step, values(step))
    watch.settle()
    watch.close()
    assert [(row["step"], row["train/loss"]) for row in rows(tmp_path)] == [(step, step) for step in wanted]


@pytest.mark.parametrize("log_every", [1, 3, 5])
def test_an_evaluation_joins_the_row_of_its_step(tmp_path, log_every):
    """Each step stands once, whether or not a row was due at the evaluated one."""
    watch = monitor(tmp_path, log_every=log_every)
    for step in range(1, 6):
        watch.add(step, values(step))
    watch.settle(due=True)
    assert watch.progress.row["train/loss"] == 5.0  # for a checkpoint: the row is not written before it is whole
    assert 5 not in [row["step"] for row in rows(tmp_path)]
    watch.add_evaluation({"eval/top1": 50.0, "eval/examples": 7})
    assert watch.progress.row is None
    watch.add(6, values(6))
    watch.settle()
    watch.close()
    written = rows(tmp_path)
    steps = [row["step"] for row in written]
    assert steps == sorted(set(steps))
    assert [row["step"] for row in written if "eval/top1" in row] == [5]
    row = written[steps.index(5)]
    assert (row["train/loss"], row["eval/top1"], row["eval/examples"]) == (5.0, 50.0, 7)


def test_the_first_skipped_update_is_told(caplog):
    watch = monitor(None)
    for step, burst in enumerate((0, 1, 2, 0, 1), 1):
        watch.add(step, values(1, burst))
    watch.settle()
    assert [record.getMessage() for record in caplog.records] == [
        "step 2: its loss or gradient is not finite; updates like this are skipped"
    ]


def test_progress_comes_back_from_a_checkpoint_or_not_at_all():
    progress = Progress(corrupt=3, row={"step": 7, "train/loss": math.nan})
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == Progress(
        3, {"step": 7, "train/loss": None}
    )
    assert Progress.from_json({"card": {}}) == Progress()  # of before there was one
    again = Progress(3, {"step": 7, "train/loss": None})
    assert again.to_json() == progress.to_json()  # a row that was read back is written like any other
    for strange in (5, None, [], {}, {"corrupt": -1, "row": None}, {"corrupt": 0, "row": {"note": "x"}}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            Progress.from_json({"progress": strange})


def batches(clock: Clock, *waits: float, corrupt: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    for wait in waits:
        clock.now += wait
        yield {"image": wait}, corrupt


def test_images_per_second_and_data_wait(tmp_path, clock):
    """Three steps of a second each, a quarter of it spent waiting for data; the first step, compiling, is left out."""
    stream, watch = batches(clock, 10.0, 0.25, 0.25, 0.25, corrupt=2), monitor(tmp_path, log_every=3)
    for step in range(1, 5):
        assert watch.wait_for(stream).keys() == {"image"}
        clock.now += 0.75 if step > 1 else 90.0
        watch.add(step, values(1))
    clock.now += 1000.0  # after the row
    watch.close()
    # Step 1 is read during step 2, step 3 during step 4: between the two lie two seconds and two steps read.
    assert rows(tmp_path) == [
        {
            "step": 3,
            "train/loss": 1.0,
            "train/skipped_in_a_row": 0.0,
            "train/images_per_second": 13.0,
            "train/data_wait": 0.25,
            "train/corrupt": 6,
        }
    ]


def test_the_data_wait_of_each_process(tmp_path, clock, monkeypatch):
    """The second one has waited for half a second more at each step, of which the first one hears with its metrics."""

    class Two(Exchange):
        def read(self, told):
            return np.array([told[0], told[0] + [0.0, 1.0, 0.5]])

    exchange = Two(parallel.make_mesh())
    monkeypatch.setattr("jax.process_count", lambda: 2)
    settings = {"start": 0, "total": 11, "log_every": 2, "batch_size": 13}
    watch = Monitor(writer(tmp_path), exchange, Interrupt(), **settings)
    stream = batches(clock, 0.25, 0.25, 0.25, 0.25, corrupt=2)
    for step in range(1, 5):
        watch.wait_for(stream)
        clock.now += 0.75
        watch.add(step, values(1))
    watch.close()
    (row,) = rows(tmp_path)
    assert {name: value for name, value in row.items() if "wait" in name} == {
        "train/data_wait": 0.75,
        "train/data_wait_process": 1,
        "train/data_wait/0": 0.25,
        "train/data_wait/1": 0.75,
    }
    assert row["train/corrupt"] == 10  # two and three in each of two steps


def test_evaluations_count_as_neither_training_nor_waiting(tmp_path, clock):
    """A device that computes a second a step beside the host, which waits for it only where it reads a loss."""
    idle_from = clock.now

    class Loss:
        def __init__(self):
            nonlocal idle_from
            self.done = idle_from = max(idle_from, clock.now) + 1.0

        def __array__(self, dtype=None, copy=None):
            clock.now = max(clock.now, self.done)
            return np.float32(1)

    stream, watch = batches(clock, *[0.5] * 6), monitor(tmp_path, log_every=2)
    for step in range(1, 7):
        watch.wait_for(stream)
        watch.add(step, values(1) | {"loss": Loss()})
        if step == 3:
            watch.settle(due=True)
            clock.now += 300.0
            watch.add_evaluation({"eval/top1": 1.0})
    watch.settle()
    watch.close()
    told = {row["step"]: (row["train/images_per_second"], row["train/data_wait"]) for row in rows(tmp_path)}
    assert told == {
        2: (pytest.approx(13.0), pytest.approx(0.5)),  # from asking for batch 2 to asking for batch 3: a second
        3: (pytest.approx(13.0), pytest.approx(0.25)),  # two seconds: nothing more was asked for
        4: (pytest.approx(13 / 1.5), pytest.approx(1.0)),  # the device stood idle for the first half second
        6: (pytest.approx(13.0), pytest.approx(1 / 3)),
    }


def test_other_processes_write_nothing_but_see_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    watch = monitor(None, show=True)
    watch.add(1, values(2, burst=3))
    watch.settle(due=True)
    watch.add_evaluation({"eval/top1": 1.0})
    watch.close()
    assert watch.burst == 3  # all processes roll back
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_the_bar_shows_loss_speed_and_data_wait(tmp_path, capsys, clock):
    watch = monitor(tmp_path, start=4, total=11, show=True)
    for step, loss in ((5, 0.5), (6, 0.125)):
        watch.add(step, values(loss))
        clock.now += 0.5
    watch.settle()
    watch.close()
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert "6/11" in last
    assert "loss 0.125, 26 images/s, data wait 0%" in last
    assert "<" in last  # what has passed < what is left


def test_a_quiet_run_shows_no_bar(tmp_path, capsys):
    watch = monitor(tmp_path, show=False)
    watch.add(1, values(1))
    watch.settle()
    watch.close()
    assert capsys.readouterr().err == ""


# Pictures.


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def colours(image: np.ndarray) -> int:
    """Pixels that are neither grey, as axes and text are, nor white."""
    return int((np.ptp(image, axis=-1) > 40).sum())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("train/loss", True),
        ("eval/loss", True),
        ("eval_ema/loss", True),
        ("eval/top1", False),
        ("eval_ema/top1", False),
    ],
)
@pytest.mark.pictures
def test_each_curve_is_drawn_losses_left_and_accuracies_right(tmp_path, name, left):
    path = tmp_path / "curves.png"
    steps = range(1, 11)
    plots.save_curves(
        [{"step": step} | ({name: 2 / step} if step % 3 == 0 else {"other": 1.0}) for step in steps], path
    )
    height, width = pixels(path).shape[:2]
    assert height > 300
    assert width > 700
    halves = colours(pixels(path)[:, : width // 2]), colours(pixels(path)[:, width // 2 :])
    drawn, empty = halves if left else halves[::-1]
    assert drawn > 100
    assert empty == 0


@pytest.mark.pictures
def test_curves_of_a_run_without_rows_and_of_one_that_was_not_finite(tmp_path):
    path = tmp_path / "curves.png"
    plots.save_curves([], path)
    assert colours(pixels(path)) == 0
    plots.save_curves(
        [{"step": 1, "train/loss": None}, {"step": 2, "train/loss": 1.0}, {"step": 3, "train/loss": 2.0}], path
    )
    assert colours(pixels(path)) > 100


@pytest.mark.pictures
def test_confusion_shows_true_classes_as_rows_and_predicted_ones_as_columns(tmp_path):
    """All cats taken for dogs: the dark cell is top right; and bottom left for dogs taken for cats."""
    confusion = np.array([[0, 5], [0, 0]])
    plots.save_confusion(confusion, ["cat", "dog"], tmp_path / "cats.png")
    plots.save_confusion(confusion.T, ["cat", "dog"], tmp_path / "dogs.png")

    def dark(path: Path) -> tuple[float, float]:
        """Where the darkest of the blues is on average, as row and column."""
        row, column = np.nonzero((np.abs(pixels(path) - [8, 48, 107]) < 3).all(axis=-1))
        assert len(row) > 1000
        return row.mean(), column.mean()

    (cats_row, cats_column), (dogs_row, dogs_column) = dark(tmp_path / "cats.png"), dark(tmp_path / "dogs.png")
    assert cats_row < dogs_row - 20
    assert cats_column > dogs_column + 20


@pytest.mark.parametrize("classes", [1, 40, 211])
@pytest.mark.pictures
def test_confusion_of_few_and_of_many_classes(tmp_path, classes):
    names = [f"class {i}" for i in range(classes)]
    plots.save_confusion(np.diag(np.arange(1, classes + 1)), names, tmp_path / "confusion.png")
    assert colours(pixels(tmp_path / "confusion.png")) > 1000
    assert min(pixels(tmp_path / "confusion.png").shape[:2]) > 200


@pytest.mark.pictures
def test_confusion_of_a_class_without_examples(tmp_path):
    plots.save_confusion(np.array([[3, 1], [0, 0]]), ["a", "b"], tmp_path / "confusion.png")
    assert colours(pixels(tmp_path / "confusion.png")) > 1000
