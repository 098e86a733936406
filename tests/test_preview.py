"""The preview: its pixels are those that the train step is fed with, and what it tells is what was drawn."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import EVERYTHING, tiny_config

from deit_jax import parallel, preview
from deit_jax.base import rng
from deit_jax.base.errors import UserError
from deit_jax.run import stream
from deit_jax.run.build import build
from deit_jax.run.plots import save_figure
from deit_jax.step import erasing, mixing, step

CONFIG = tiny_config(model__depth=1, **EVERYTHING)
MEAN, STD = np.float32(CONFIG.data.mean), np.float32(CONFIG.data.std)


def run_of(config):
    """On one device, as the command has it: rows are in the order of the stream there."""
    return build(config, parallel.make_mesh(devices=jax.devices()[:1]), stream.train_source(config))


@pytest.fixture(scope="module")
def run():
    return run_of(CONFIG)


@pytest.fixture(scope="module")
def sections(run):
    return [preview.look(run, number, 9) for number in (0, 3)]


def test_the_pixels_are_those_that_the_train_step_is_fed_with(run, sections, monkeypatch):
    """Taken out of the jitted step itself, while it trains."""
    student_images, fed = step.student_images, []

    def tapped(*arguments):
        images = student_images(*arguments)
        jax.debug.callback(lambda value: fed.append(np.asarray(value)), images)
        return images

    monkeypatch.setattr(step, "student_images", tapped)
    state, train_step = run.first_state(), run.train_step()
    for batch, _ in run.batches(0, 4):
        state, _ = jax.block_until_ready(train_step(state, batch, np.uint32(0)))
        jax.effects_barrier()
    assert len(fed) == 4
    for number, section in zip((0, 3), sections, strict=True):
        wanted = np.rint(255 * np.clip(fed[number][:9] * STD + MEAN, 0, 1)).astype(np.uint8)
        np.testing.assert_array_equal(np.stack([panel.pixels for panel in section.panels]), wanted)
        assert wanted.std() > 20


def test_the_sheet_holds_every_pixel(sections, tmp_path):
    """8 pixels become 28 each, and nothing covers them or lies between them."""
    figure = preview.draw(sections)
    save_figure(figure, tmp_path / "sheet.png", dpi=preview.DPI)
    with Image.open(tmp_path / "sheet.png") as picture:
        sheet = np.asarray(picture.convert("RGB"))
    panels = [panel for section in sections for panel in section.panels]
    for panel, placed in zip(panels, figure.images, strict=True):
        top, left = len(sheet) - placed.oy - 224, placed.ox
        found = sheet[top : top + 224, left : left + 224]
        np.testing.assert_array_equal(found, np.kron(panel.pixels, np.ones((28, 28, 1), np.uint8)))
    texts = {text.get_text().replace("\n", " ") for text in figure.texts}
    assert {" ".join(" ".join(panel.lines).split()) for panel in panels} <= texts


def in_words(y0, y1, x0, x1):
    return f"{x1 - x0} x {y1 - y0} at {x0}, {y0}"


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_the_captions_tell_what_was_drawn(mode):
    """In each mode, by the numbers that the draws themselves give."""
    run = run_of(tiny_config(**EVERYTHING | {"mixing__mode": mode}))
    config, source, told = run.config, run.source, []
    panels = preview.look(run, 2, 32).panels
    data, options = config.data, config.mixing
    mix = mixing.draw(
        0, 2, groups=4, members=8, image_size=8, mixup=options.mixup, cutmix=options.cutmix, mode=mode,
        probability=options.probability, switch_probability=options.switch_probability,
    )  # fmt: skip
    bounds = {
        name: getattr(config.erasing, name) for name in ("probability", "min_count", "max_count", "area", "aspect")
    }
    boxes = erasing.draw(0, 2, batch_size=32, image_size=8, mode="pixel", **bounds)["box"]
    transform = stream.train_transform(data, 8)
    (batch, _), = run.batches(2, 3)  # fmt: skip
    labels = np.asarray(batch["label"])

    def history(row):
        view = transform.draw(8, 8, rng.generator(0, "augment", 64 + row))
        top, left, height, width = view.box
        flipped = ", flipped" if view.flip else ""
        lines = [f"crop {width} x {height} at {left}, {top}, {view.interpolation}{flipped}"]
        words = [
            [part for part in (o.name, o.argument, o.interpolation) if part not in (None, "")] for o in view.operations
        ]
        lines.append(", ".join(" ".join(p if isinstance(p, str) else f"{p:.3g}" for p in part) for part in words))
        return [*lines, *(f"erased {in_words(*box)}" for box in boxes[row].tolist() if any(box))]

    for row, panel in enumerate(panels):
        group, member = divmod(row, 8)
        own = {"batch": (group,), "pair": (group, member), "elem": (group, member)}[mode]
        weight, box, kept = (mix[name][own] for name in ("image_weight", "box", "label_weight"))
        partner = 8 * group + 7 - member
        how = f"cutmix {in_words(*box)} with" if box.any() else f"mixup {round(float(weight), 2):g} with"
        mixed = weight < 1 or box.any()
        expected = [*history(row), *([how, *history(partner)] if mixed else [])]
        assert [line for line in panel.lines[1:] if not line.startswith("row ")] == expected
        rows = [line.split(":")[0] for line in panel.lines if line.startswith("row ")]
        assert rows == [f"row {row}", *([f"row {partner}"] if mixed else [])]
        weights = dict.fromkeys(labels[[row, partner]], 0.0)
        weights[labels[row]] += kept
        weights[labels[partner]] += 1 - kept
        parts = panel.lines[0].split(", ")
        found = {int(name): float(share) for name, share in (part.split() for part in parts)}
        for label, share in weights.items():
            assert found.get(label, 0) == pytest.approx(share, abs=0.00501)
        told.append(how.split()[0] if mixed else "")
    assert {"cutmix", "mixup"} <= set(told)
    assert any("erased" in line for panel in panels for line in panel.lines)
    assert source.name(0).startswith("digits")


def test_labels_are_named_by_weight():
    target = np.float32([0.3, 0.001, 0.699, 0])
    assert preview._labels(target, ["dog", "ant", "cat", "cow"]) == "cat 0.7, dog 0.3"
    assert preview._labels(np.float32([0, 1]), ["n01440764", "n01443537"]) == "goldfish 1"


def test_a_sheet_that_no_picture_holds_is_refused():
    panel = preview.Panel(np.zeros((4000, 4000, 3), np.uint8), ["a 1"])
    with pytest.raises(UserError, match=r"^--steps: the sheet would be 68,\d+ pixels high, 65,535 can be; "):
        preview.draw([preview.Section("one", [panel])] * 17)


QUICK = ["--config=configs/quickstart.py", "--config.data.image_size=8", "--config.model.patch_size=4"]


@pytest.fixture
def in_root(monkeypatch, request, tmp_path):
    monkeypatch.chdir(request.config.rootpath)
    return tmp_path / "sheet.png"


def test_the_command(in_root, capsys, monkeypatch):
    opened, open_source = [], stream.open_source

    def open_and_tell(**options):
        opened.append(options["split"])
        return open_source(**options)

    monkeypatch.setattr(stream, "open_source", open_and_tell)
    drawn = preview.main([*QUICK, "--steps=1,30,1", "--images=3", f"--output={in_root}"])
    assert drawn == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {"output": str(in_root), "steps": [1, 30], "images": 6}
    assert opened == ["train"]
    with Image.open(in_root) as picture:
        assert picture.format == "PNG"
        assert picture.width > 3 * 224
    assert [path.name for path in in_root.parent.iterdir()] == ["sheet.png"]


def test_more_images_than_the_batch_has_are_its_images(run):
    assert len(preview.look(run, 0, 99).panels) == 32


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--steps=0,9999"], "--steps: 9999 is not in this run, whose steps are 0 to 1759"),
        (["--steps=a"], "--steps: 'a' is no step; give numbers from 0"),
        (["--steps=-1"], "--steps: '-1' is no step"),
        (["--steps="], "--steps: missing"),
        (["--images=0"], "flag --images=0"),
        (["--output=/nowhere/sheet.png"], "--output: /nowhere/sheet.png is no file in an existing folder"),
        (["--output=/tmp"], "--output: /tmp is no file"),
        (["--output=/tmp/photo.jpg"], "--output: /tmp/photo.jpg is no .png"),
        (["--config.data.augment=rand-x9"], "config.data.augment: 'rand-x9': unknown token 'x9'"),
    ],
)
def test_mistakes(in_root, flags, line):
    with pytest.raises(UserError) as error:
        preview.main([*QUICK, f"--output={in_root}", *flags])
    assert str(error.value).startswith(line)
    assert list(in_root.parent.iterdir()) == []


def test_a_sheet_that_cannot_be_written_leaves_the_old_one(in_root, monkeypatch):
    in_root.write_bytes(b"before")

    def full(self, *arguments, **options):
        arguments[0].write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preview.Figure, "savefig", full)
    with pytest.raises(UserError, match=f"^--output: cannot write {in_root}: No space left on device$"):
        preview.main([*QUICK, "--images=1", f"--output={in_root}"])
    assert [path.read_bytes() for path in in_root.parent.iterdir()] == [b"before"]
