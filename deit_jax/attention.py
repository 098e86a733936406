"""Shows what a trained model attends to in photos.

    python -m deit_jax.attention [--model=NAME] --output=DIR WEIGHTS IMAGE...

WEIGHTS may stand before the images or be given as --weights.

An IMAGE is a file, a folder (its images, and those of its subfolders) or a quoted pattern such as 'photos/*.jpg'.
Writes one PNG an image, DIR/<name>_attention.png, with what the model says of it: the photo as the model sees it, and
over it, for the class token and where there is one the distillation token, the attention rollout through all blocks
(arXiv:2005.00928), and the attention of the heads of a block (--block) to the patches, their mean and each. Prints the
files, and last a JSON object: images drawn, and images that failed.

An image that cannot be read, or whose picture cannot be written, is reported on stderr and left out. Exit status: 0
when at least one was drawn; 2 when none was, or for a mistake in what was given, told in one line.
"""

import functools
import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Array, Float, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from deit_jax import cli
from deit_jax.base.errors import UserError
from deit_jax.base.text import printable
from deit_jax.classifier import Classifier, block_of, rollout
from deit_jax.data.decode import CorruptImage
from deit_jax.data.files import find_images
from deit_jax.models import VisionTransformer, bind, flatten
from deit_jax.run.plots import save_figure
from deit_jax.trained import define_flags, open_trained, report_unreadable, take_weights
from deit_jax.weights.imagenet import words

COLUMNS = (4, 5, 6)  # that the panels may stand in
TITLE = 80  # characters of a name that fit over four columns, with the class behind them
SUFFIX = "_attention.png"
NAME = 255 - 10  # bytes of a file's name that file systems hold, without what a temporary name has more


def main(argv: Sequence[str]) -> int:
    """Parses the command line and draws; returns the exit status."""
    given, arguments = cli.parse(__doc__ or "", _define, argv)
    paths = find_images(take_weights(given, arguments))
    if not given.output:
        raise UserError("--output: missing; name the folder for the pictures")
    output = cli.local_path(given.output, "--output")
    cli.start_jax()
    trained = open_trained(given, classifies=False)
    model = trained.model
    if not isinstance(model, VisionTransformer):
        raise UserError(f"--weights: {given.weights} is of {trained.name}, which has no attention; name a ViT's")
    block = block_of(model, given.block, "--block")
    if not model.num_prefix_tokens:
        raise UserError("--weights: this model has no class token whose attention could be shown; take one that has")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: cannot make the folder {output}: {error.strerror}") from error
    variables = flatten(model)
    look = jax.jit(functools.partial(_looks, trained))
    errors, unwritten = {}, []
    names = _picture_names(paths)
    for path in paths:
        try:
            photo = trained.read(path)
        except CorruptImage as error:
            errors[path] = str(error)
            continue
        maps, probabilities = jax.device_get(look(variables, photo))
        title = _title(trained, path, probabilities, block, len(maps))
        try:
            save_figure(draw(photo, maps, tokens_of(model), block, title), output / names[path], dpi=100)
        except OSError as error:
            errors[path] = f"cannot write {output / names[path]}: {error.strerror}"
            unwritten.append(errors[path])
            continue
        print(printable(str(output / names[path])), flush=True)
    if len(unwritten) == len(paths):
        raise UserError(f"--output: {printable(unwritten[0])}")
    report_unreadable(errors, len(paths))
    print(json.dumps({"images": len(paths) - len(errors), "failed": len(errors)}))
    return 0


def tokens_of(model: VisionTransformer) -> tuple[str, ...]:
    """The names of the tokens in front of the patches, in their order."""
    tokens = {"class token": model.cls_token, "distillation token": model.dist_token}
    return tuple(name for name, token in tokens.items() if token is not None)


def draw(
    photo: UInt8[np.ndarray, "size size 3"],
    maps: Float[np.ndarray, "depth heads tokens tokens"],
    tokens: Sequence[str],
    block: int,
    title: str,
) -> Figure:
    """The figure of one image: the photo, then for each token its rollout, the mean of a block's heads, and each head.

    All maps of heads have one scale, from 0 to the largest weight, so that they compare; all rollouts another.

    Args:
        photo: as the model sees it.
        maps: attention weights of every block.
        tokens: the names of the tokens in front of the patches.
        block: whose heads are shown.
        title: of the figure.
    """
    flow, first = rollout(maps), len(tokens)
    of_heads, of_flow = maps[block, :, :first, first:], flow[:first, first:]
    panels: list[tuple[str, np.ndarray, float]] = []
    largest, most = float(of_heads.max()), float(of_flow.max())
    for i, token in enumerate(tokens):
        panels.append((f"{token}, rollout", of_flow[i], most))
        panels.append((f"{token}, mean of heads", of_heads[:, i].mean(axis=0), largest))
        panels += [(f"{token}, head {head}", heads[i], largest) for head, heads in enumerate(of_heads)]
    count = 1 + len(panels)
    columns = min(COLUMNS, key=lambda columns: (-count % columns, -columns))  # the fewest that stay empty
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(2.3 * columns, 2.55 * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=9, parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    grid[0, 0].imshow(photo)
    grid[0, 0].set_title("photo", fontsize=8)
    for axes, panel in zip(grid.flat[1:], panels, strict=False):
        _overlay(axes, photo, *panel)
    return figure


def _overlay(axes: Axes, photo: np.ndarray, title: str, weights: Float[np.ndarray, " patches"], most: float) -> None:
    """The photo in grey under a map of the weights, coloured from 0, where the photo is seen, to the `most`."""
    side, grid = len(photo), math.isqrt(len(weights))
    axes.imshow(photo.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    frame = (-0.5, side - 0.5, side - 0.5, -0.5)
    heat = weights.reshape(grid, grid)
    shade = np.sqrt(np.clip(heat / max(most, 1e-12), 0, 1))  # so that what is faint is seen
    axes.imshow(heat, cmap="inferno", alpha=0.8 * shade, vmin=0, vmax=most, extent=frame, interpolation="bilinear")
    axes.set_title(f"{title}\n{100 * weights.min():.2g} to {100 * weights.max():.2g} % a patch", fontsize=8)


def _looks(trained: Classifier, variables: dict[str, Array], photo: Array) -> tuple[Array, Array]:
    """Attention weights [depth, heads, tokens, tokens] and probabilities [classes] of one uint8 image."""
    model: Any = bind(trained.model, variables)
    maps = model.attention_maps(trained.normalize(photo[None]))[:, 0]
    return maps, trained.forward(variables, photo[None])[0][0]


def _title(trained: Classifier, path: str, probabilities: np.ndarray, block: int, depth: int) -> str:
    """The photo's name, what the model says of it, and what is shown."""
    name = printable(Path(path).name)[-TITLE:]  # what a file is called ends differently more often than it begins so
    said = ""
    if trained.names:
        best = int(np.argmax(probabilities))
        said = f": {printable(words(trained.names[best]))} {probabilities[best]:.1%}"
    return f"{name}{said}\n{trained.name}, heads of block {block} (of 0 to {depth - 1})"


def _picture_names(paths: Sequence[str]) -> dict[str, str]:
    """A file name for each image: its own without suffix, cut where it is too long, numbered where several share it."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        endings = itertools.chain([SUFFIX], (f"_{count}{SUFFIX}" for count in itertools.count(2)))
        candidates = (_cut(Path(path).stem, NAME - len(ending)) + ending for ending in endings)
        names[path] = next(name for name in candidates if name not in taken)
        taken.add(names[path])
    return names


def _cut(text: str, size: int) -> str:
    """The beginning of a name that takes at most `size` bytes, in whole characters."""
    while len(os.fsencode(text)) > size:
        text = text[:-1]
    return text


def _define(values: flags.FlagValues) -> None:
    define_flags(values)
    flags.DEFINE_string("output", "", "folder for the pictures; made where it is missing", flag_values=values)
    flags.DEFINE_integer(
        "block", -1, "whose heads are shown, counted from 0; negative: from the last", flag_values=values
    )


if __name__ == "__main__":
    cli.run(main)
