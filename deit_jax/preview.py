"""Draws what a run's model sees in training: a sheet of augmented, erased and mixed images, and what was drawn of them.

    python -m deit_jax.preview --config=FILE[:ARGUMENT] [--steps=0,1000] [--images=16] [--output=preview.png]
        [--config.section.field=value ...]

Shows the first images of the batch of each step, pixel by pixel as the train step is fed with them, normalisation
undone (erased noise is cut off at black and white). Each tells its labels and their weights, before smoothing; its
file and row in the batch; its crop, as width x height at its left and top; its flip; the operations and their
arguments, colour jitter among them; the erased boxes; and how it was mixed with which row, and what that went through.

Trains nothing, and needs no weights; of the data the training split alone is opened. The last line of stdout is a JSON
object: `output`, the `steps`, and the number of `images`.

Exit status: 0 when done; 2 for a mistake in what was given, told in one line; 75 when the data are out of reach.
"""

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, UInt8
from matplotlib.figure import Figure

from deit_jax import cli, parallel
from deit_jax.base.errors import UserError
from deit_jax.base.text import printable, shortened
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.run.build import Run, build
from deit_jax.run.plots import save_figure
from deit_jax.run.stream import drawn_example, train_source
from deit_jax.step import mixing
from deit_jax.step.step import Batch, student_images
from deit_jax.weights.imagenet import words

COLUMNS = 8
PANEL = 224  # pixels that small images are enlarged to, by a whole number, and that captions have at least
GAP, LINE, LETTER = 12, 13, 5.9  # pixels: between panels, of a line, and of a letter of 7 points
DPI = 100
HIGHEST = 2**16 - 1  # pixels of a picture that are drawn


class Panel(NamedTuple):
    """One image, and the lines below it."""

    pixels: UInt8[np.ndarray, "size size 3"]
    lines: list[str]


class Section(NamedTuple):
    """The images of one step."""

    title: str
    panels: list[Panel]


def main(argv: Sequence[str]) -> int:
    """Parses the command line and draws; returns the exit status."""
    given, tree, _ = cli.parse_with_config(__doc__ or "", _define, argv)
    steps, output = _steps(given.steps), _output(given.output)
    config = for_platform(resolve(tree), cli.start_jax())
    # Batches do not depend on the mesh, so that a laptop shows what a pod will see.
    run = build(config, parallel.make_mesh(devices=jax.devices()[:1]), train_source(config))
    for step in steps:
        if step >= run.total:
            raise UserError(f"--steps: {step} is not in this run, whose steps are 0 to {run.total - 1}")
    sections = [look(run, step, given.images) for step in steps]
    try:
        save_figure(draw(sections), output, dpi=DPI)
    except OSError as error:
        raise UserError(f"--output: cannot write {output}: {error.strerror}") from error
    images = sum(len(section.panels) for section in sections)
    print(json.dumps({"output": str(output), "steps": steps, "images": images}))
    return 0


def look(run: Run, step: int, images: int) -> Section:
    """The first images of the batch of a step, as the train step is fed with them."""
    batch_size, classes = run.config.batch_size, run.source.class_names
    count = min(images, batch_size)

    def seen(batch: Batch) -> tuple[Array, Array, Array]:
        shown = run.normalize.undo(student_images(batch, run.normalize)[:count])
        targets = mixing.mix_targets(batch["label"], batch["mix"], num_classes=len(classes), smoothing=0.0)
        partners = mixing.partners(jnp.arange(batch_size), batch["mix"])
        return jnp.rint(255 * jnp.clip(shown, 0, 1)).astype(jnp.uint8), targets[:count], partners[:count]

    ((batch, _),) = run.batches(step, step + 1)
    pixels, targets, partners = jax.device_get(jax.jit(seen)(batch))
    drawn = jax.device_get({"mix": batch["mix"], "erasing": batch.get("erasing", {})})
    panels = []
    for row, partner in enumerate(partners):
        history, how = _history(run, step, row, drawn["erasing"]), _mixed(row, batch_size, drawn["mix"])
        if how:
            history += [f"{how} with", *_history(run, step, int(partner), drawn["erasing"])]
        panels.append(Panel(pixels[row], [_labels(targets[row], classes), *history]))
    title = (
        f"step {step:,}: the first {count} of {batch_size:,} images, {run.size_at(step)} pixels; "
        f"labels before smoothing by {run.config.mixing.label_smoothing:g}"
    )
    return Section(title, panels)


def draw(sections: Sequence[Section]) -> Figure:
    """The sheet: a grid for each step, in which no image is resampled but by whole pixels.

    Raises:
        UserError: it would be too high for a picture.
    """
    sides = [len(panel.pixels) for section in sections for panel in section.panels]
    cell = max(side * _enlarged(side) for side in [*sides, PANEL])
    columns = min(COLUMNS, max(len(section.panels) for section in sections))
    texts: list[tuple[int, int, str]] = []  # left, top, what
    pictures: list[tuple[int, int, int, np.ndarray]] = []  # left, top, factor, pixels
    top = GAP
    for section in sections:
        texts.append((GAP, top, "\n".join(_wrapped(section.title, columns * cell))))
        top += LINE * len(_wrapped(section.title, columns * cell)) + GAP // 2
        for first in range(0, len(section.panels), columns):
            row = section.panels[first : first + columns]
            captions = [[part for line in panel.lines for part in _wrapped(line, cell)] for panel in row]
            factor = _enlarged(len(row[0].pixels))
            side = factor * len(row[0].pixels)
            for i, (panel, caption) in enumerate(zip(row, captions, strict=True)):
                left = GAP + i * (cell + GAP)
                pictures.append((left, top, factor, panel.pixels))
                texts.append((left, top + side + GAP // 4, "\n".join(caption)))
            top += side + LINE * max(map(len, captions)) + GAP
    if top > HIGHEST:
        raise UserError(f"--steps: the sheet would be {top:,} pixels high, {HIGHEST:,} can be; give fewer, or --images")
    width, height = GAP + columns * (cell + GAP), top
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for left, upper, factor, pixels in pictures:
        picture = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
        figure.figimage(picture, left, height - upper - len(picture), origin="upper")
    style: dict[str, Any] = {"family": "monospace", "fontsize": 7, "verticalalignment": "top", "parse_math": False}
    for left, upper, text in texts:
        figure.text(left / width, 1 - upper / height, text, **style)
    return figure


def _history(run: Run, step: int, row: int, erased: Mapping[str, np.ndarray]) -> list[str]:
    """What the image of a row went through before it was mixed, in lines."""
    drawn = drawn_example(run.config, run.source, step * run.config.batch_size + row, run.size_at(step))
    view, name = drawn.view, printable(run.source.name(drawn.example))
    top, left, height, width = view.box
    operations = [
        " ".join([operation, *([] if argument is None else [f"{argument:.3g}"]), *filter(None, [interpolation])])
        for operation, argument, interpolation in view.operations
    ]
    return [
        f"row {row}: {name}{', for one that is no image' * drawn.replaced}",
        f"crop {width} x {height} at {left}, {top}, {view.interpolation}{', flipped' * view.flip}",
        *([", ".join(operations)] if operations else []),
        *(f"erased {_box(box)}" for box in (erased["box"][row] if erased else []) if np.any(box)),
    ]


def _mixed(row: int, batch_size: int, mix: Mapping[str, np.ndarray]) -> str:
    """How a row is mixed; "" where it is not."""
    weights, boxes = mix["image_weight"].reshape(-1), mix["box"].reshape(-1, 4)
    own = row // (batch_size // len(weights))  # neighbours share, or each row has its own
    if np.any(boxes[own]):
        return f"cutmix {_box(boxes[own])}"
    return f"mixup {round(float(weights[own]), 2):g}" if weights[own] < 1 else ""


def _box(box: np.ndarray) -> str:
    y0, y1, x0, x1 = box.tolist()
    return f"{x1 - x0} x {y1 - y0} at {x0}, {y0}"


def _labels(target: np.ndarray, class_names: Sequence[str]) -> str:
    """The classes of a target that have a hundredth of it, the heaviest first: "cat 0.7, dog 0.3"."""
    weights = [round(weight, 2) for weight in target.tolist()]
    best = [i for i in np.argsort(-target, kind="stable") if weights[i]]
    return ", ".join(f"{shortened(printable(words(class_names[i])), 24)} {weights[i]:g}" for i in best)


def _enlarged(side: int) -> int:
    """How many pixels of the sheet an image's pixel is wide and high."""
    return max(1, PANEL // side)


def _wrapped(line: str, width: int) -> list[str]:
    """A line in parts that are at most so many pixels wide."""
    return textwrap.wrap(line, int(width / LETTER)) or [""]


def _steps(given: Sequence[str]) -> list[int]:
    """The steps that `--steps` names, each once."""
    for text in given:
        if not re.fullmatch("[0-9]{1,10}", text):
            raise UserError(f"--steps: {text!r} is no step; give numbers from 0, such as --steps=0,1000")
    if not given:
        raise UserError("--steps: missing; give numbers from 0, such as --steps=0,1000")
    return list(dict.fromkeys(map(int, given)))


def _output(given: str) -> Path:
    """Where the sheet is written; `UserError` where that is no place for it."""
    path = cli.local_path(given, "--output")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"--output: {path} is no file in an existing folder; name one, such as preview.png")
    if path.suffix.lower() != ".png":
        raise UserError(f"--output: {path} is no .png; name one, such as preview.png")
    return path


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_list("steps", ["0"], "of the run, from 0, with commas between", flag_values=values)
    flags.DEFINE_integer("images", 16, "of each step, at most its batch", lower_bound=1, flag_values=values)
    flags.DEFINE_string("output", "preview.png", "the PNG; replaced where it is there", flag_values=values)


if __name__ == "__main__":
    cli.run(main)
