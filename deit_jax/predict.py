"""Classifies photos with a trained model.

    python -m deit_jax.predict [--model=NAME] WEIGHTS IMAGE...

WEIGHTS may stand before the images or be given as --weights.

An IMAGE is a file, a folder (its images, and those of its subfolders) or a quoted pattern such as 'photos/*.jpg'.
Prints the best classes of each image, and last a JSON object: images predicted, images that failed, and images per
second, decoding included, opening the weights and compiling not. With --json it prints one JSON object a line and
image instead: {"image", "predictions": [{"class", "name", "probability", "index"}, ...]} or {"image", "error"}.

An image that cannot be read is reported on stderr and left out. Exit status: 0 when at least one was predicted; 2
when none was, or for a mistake in what was given, told in one line.
"""

import dataclasses
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, UInt8

from deit_jax import cli
from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.base.text import printable
from deit_jax.classifier import Classifier
from deit_jax.config.resolve import choose
from deit_jax.data.decode import CorruptImage
from deit_jax.data.files import find_images
from deit_jax.models import flatten
from deit_jax.trained import define_flags, open_trained, report_unreadable, take_weights
from deit_jax.weights.imagenet import words

FEW = 4  # photos up to which compiling well takes longer than it saves, of DeiT-Ti, DeiT-S and DeiT-B alike

Images = UInt8[np.ndarray, "batch height width channels"]
Forward = Callable[[Images], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        path: as it was found.
        error: why it could not be read; "" where it could.
        probabilities: of the classes; zeros where it could not be read.
        features: the vector that the head classifies, of a distilled model the mean of its two; likewise.
    """

    path: str
    error: str
    probabilities: Float[np.ndarray, " classes"]
    features: Float[np.ndarray, " width"]


def main(argv: Sequence[str]) -> int:
    """Parses the command line, predicts and prints; returns the exit status."""
    given, arguments = cli.parse(__doc__ or "", _define, argv)
    paths = find_images(take_weights(given, arguments))
    output = cli.local_path(given.features, "--features") if given.features else None
    if output and (output.is_dir() or not output.parent.is_dir()):
        raise UserError(f"--features: {output} is no file in an existing folder; name one, such as features.npz")
    if output and output.exists() and output.suffix != ".npz":  # a photo, where FILE was forgotten, or the weights
        raise UserError(f"--features: {output} is there and no .npz file; name another, such as features.npz")
    platform = cli.start_jax()
    trained = open_trained(given, classifies=not output, **choose(platform, dtype=given.dtype))
    batch_size = min(given.batch_size, len(paths))
    forward = compile_forward(trained, batch_size, in_haste=platform == "cpu" and len(paths) <= FEW)
    names, features, errors = [], [], {}
    start = time.perf_counter()
    for found in predict(trained, forward, paths, batch_size=batch_size, threads=given.threads):
        _show(found, trained.names, given.top, as_json=given.json)
        if found.error:
            errors[found.path] = found.error
            continue
        names.append(found.path)
        if output:
            features.append(found.features)
    seconds = time.perf_counter() - start
    report_unreadable(errors, len(paths))
    if output:
        _save(output, np.stack(features), np.array(names))
    if not given.json:
        rate = round(len(names) / seconds, 2)
        print(json.dumps({"images": len(names), "failed": len(errors), "images_per_second": rate}))
    return 0


def predict(
    trained: Classifier, forward: Forward, paths: Sequence[str], *, batch_size: int, threads: int
) -> Iterator[Outcome]:
    """What becomes of each image, in their order, as soon as its batch is done.

    Args:
        trained: the model that `forward` was compiled for.
        forward: what `compile_forward` gives for `batch_size`.
        paths: the images.
        batch_size: images that pass through the model together; the last batch is padded.
        threads: how many images are read and decoded at a time, ahead of the device.

    Raises:
        UserError: the model's output is not finite.
    """

    def finished(rows: Sequence[tuple[str, str]], out: tuple[Array, Array]) -> Iterator[Outcome]:
        probabilities, features = jax.device_get(out)
        for (path, error), *arrays in zip(rows, probabilities, features, strict=False):
            if not np.isfinite(arrays[0]).all():
                raise UserError(f"--weights: the model's output for {path} is not finite; the weights are damaged")
            yield Outcome(path, error, *arrays)

    waiting: tuple[Any, ...] = ()
    for rows, images in _batches(trained, paths, batch_size, threads):
        out = forward(images)  # runs on while the batch before is fetched and shown
        if waiting:
            yield from finished(*waiting)
        waiting = rows, out
    yield from finished(*waiting)


def compile_forward(trained: Classifier, batch_size: int, *, in_haste: bool = False) -> Forward:
    """The function from uint8 `[batch_size, size, size, 3]` to (probabilities, features) float32, compiled.

    Args:
        in_haste: takes half the time to compile, for CPUs, and longer to run, for a few images.
    """
    variables = flatten(trained.model)

    images = jax.ShapeDtypeStruct((batch_size, trained.image_size, trained.image_size, 3), jnp.uint8)
    options: dict[str, Any] = {"xla_backend_optimization_level": 0} if in_haste else {}
    compiled = jax.jit(trained.forward).lower(variables, images).compile(compiler_options=options)
    return lambda images: compiled(variables, images)


def _batches(
    trained: Classifier, paths: Sequence[str], batch_size: int, threads: int
) -> Iterator[tuple[list[tuple[str, str]], np.ndarray]]:
    """((path, error or "") of each row, uint8 images); rows that could not be read and padding are black."""

    def fill(images: np.ndarray, row: int, path: str) -> str:
        try:
            images[row] = trained.read(path)
        except CorruptImage as error:
            return str(error)
        return ""

    shape = (batch_size, trained.image_size, trained.image_size, 3)
    starts = iter(range(0, len(paths), batch_size))
    ahead: deque[tuple[list[tuple[str, Future[str]]], np.ndarray]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        while True:
            # Enough that all threads are busy, whatever the batch size, and one batch more to hand over meanwhile.
            while len(ahead) < 1 + -(-2 * threads // batch_size) and (start := next(starts, None)) is not None:
                images = np.zeros(shape, np.uint8)
                part = paths[start : start + batch_size]
                ahead.append(([(p, pool.submit(fill, images, i, p)) for i, p in enumerate(part)], images))
            if not ahead:
                return
            rows, images = ahead.popleft()
            yield [(path, error.result()) for path, error in rows], images


def _show(found: Outcome, class_names: Sequence[str], top: int, *, as_json: bool) -> None:
    """Prints what there is to say of an image on stdout."""
    # No class where the head tells none, and the features alone are wanted.
    best = np.argsort(-found.probabilities, kind="stable")[: min(top, len(class_names))]
    if as_json and found.error:
        print(json.dumps({"image": found.path, "error": found.error}), flush=True)
    elif as_json:
        predictions = [
            {
                "class": class_names[i],
                "name": words(class_names[i]),
                "probability": float(found.probabilities[i]),
                "index": int(i),
            }
            for i in best
        ]
        print(json.dumps({"image": found.path, "predictions": predictions}), flush=True)
    elif not found.error:
        print(printable(found.path))
        for i in best:
            name = words(class_names[i])
            code = f" ({class_names[i]})" if name != class_names[i] else ""
            print(printable(f"{found.probabilities[i]:8.2%}  {name}{code}"), flush=True)


def _save(path: Path, features: np.ndarray, paths: np.ndarray) -> None:
    """Writes an .npz file, whole or not at all."""
    try:
        with replacing(path) as fresh, fresh.open("wb") as file:
            np.savez(file, features=features, paths=paths)
    except OSError as error:
        raise UserError(f"--features: cannot write {path}: {error.strerror}") from error


def _define(values: flags.FlagValues) -> None:
    define_flags(values)
    flags.DEFINE_integer("top", 5, "classes to tell of each image", lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("json", False, "print one JSON object a line and image", flag_values=values)
    flags.DEFINE_string(
        "features",
        "",
        "FILE.npz that gets `features`, float32 [images, width], what the head classifies (of a distilled model the "
        "mean of its two tokens), and `paths`, of the images that were predicted",
        flag_values=values,
    )
    flags.DEFINE_integer("batch_size", 32, "images at a time", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("threads", os.cpu_count() or 1, "images decoded at a time", lower_bound=1, flag_values=values)
    flags.DEFINE_enum(
        "dtype",
        "auto",
        ["auto", "float32", "bfloat16"],
        "of the computation; auto: float32 on CPU, bfloat16 on accelerators",
        flag_values=values,
    )


if __name__ == "__main__":
    cli.run(main)
