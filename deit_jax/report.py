"""Makes one page of a run: its curves, where it is wrong, how sure it is, and the photos that it gets most wrong.

    python -m deit_jax.report RUN [--output=FILE.html] [--images=24]

The page, RUN/report.html, is one file that opens anywhere, without a network. It has the curves and the confusion
matrix of the run, its classes from the worst to the best, its calibration, and a gallery of its worst mistakes: the
true class and the one that was told with their probabilities, and where the network looked. Photos of the evaluation
split that look like one that was trained on are pointed out. It tells of the last evaluation, RUN/predictions.csv,
whose photos have to be where they were. The last line of stdout is a JSON object: images, mistakes, doubles, and bytes.

Exit status: 0 when done; 2 for a mistake in what was given, told in one line.
"""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from deit_jax import cli
from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.base.forms import read_json, read_regular
from deit_jax.base.storage import Place, place, told
from deit_jax.base.text import printable
from deit_jax.classifier import Classifier, rollout
from deit_jax.classifier import open as open_classifier
from deit_jax.config.given import load_config
from deit_jax.config.resolve import resolve
from deit_jax.config.schema import Config
from deit_jax.data import Source, describe_data
from deit_jax.data.decode import CorruptImage, decode
from deit_jax.models import VisionTransformer, flatten
from deit_jax.run.duplicates import nearly_the_same, thumbnails
from deit_jax.run.evaluate import PREDICTIONS
from deit_jax.run.page import Contents, Mistake, render
from deit_jax.run.stream import eval_source, train_source
from deit_jax.weights.imagenet import words

COMPARED = 60_000  # photos up to which all are compared, which takes a millisecond each
PICTURES = {"Curves": "curves.png", "Confusion": "confusion.png"}


def main(argv: Sequence[str]) -> int:
    """Parses the command line and writes the page; returns the exit status."""
    given, runs = cli.parse(__doc__ or "", _define, argv)
    if len(runs) != 1:
        raise UserError(f"{' '.join(runs) or 'RUN'}: name one run, such as runs/transfer")
    root = place(runs[0], "RUN")
    output = cli.local_path(given.output, "--output") if given.output else root / "report.html"
    config = resolve(load_config(f"{root}/config.json"))
    rows = _rows(root)
    cli.start_jax()
    classifier = open_classifier(str(root))
    held_out = eval_source(config, classifier.names)
    contents = _contents(root, config, classifier, held_out, rows, given.images)
    page = render(contents).encode()
    try:
        with replacing(output) as fresh:
            fresh.write_bytes(page)
    except OSError as error:
        raise UserError(
            f"--output: cannot write {output}: {told(error, output, 'name a place that is yours')}"
        ) from error
    print(printable(str(output)))
    facts = {"images": len(rows), "mistakes": contents.mistaken, "doubles": len(contents.doubles), "bytes": len(page)}
    print(json.dumps(facts))
    return 0


def _contents(
    root: Place, config: Config, classifier: Classifier, held_out: Source, rows: Sequence[dict[str, Any]], images: int
) -> Contents:
    source, notes = train_source(config), []
    indices = {_escaped(held_out.name(i)): i for i in range(len(held_out))}
    if unknown := [row["image"] for row in rows if row["image"] not in indices]:
        raise UserError(
            f"{root / PREDICTIONS}: {len(unknown)} of its photos, such as {unknown[0]}, are not in "
            f"config.data.eval_split; evaluate the run again"
        )
    doubles: dict[int, int] = {}
    if len(source) + len(held_out) <= COMPARED:
        threads = config.data.threads
        doubles = nearly_the_same(thumbnails(held_out, threads), thumbnails(source, threads))
    else:
        notes.append(f"Of more than {COMPARED:,} photos it was not looked which ones look the same.")
    wrong = sorted((row for row in rows if not row["right"]), key=lambda row: row["of_class"])
    mistakes = []
    for row in wrong[:images]:
        index = indices[row["image"]]
        double = _named(source, doubles[index]) if index in doubles else ""
        mistakes.append(
            Mistake(
                name=row["image"],
                true=words(row["class"]),
                said=words(row["predicted"]),
                of_true=row["of_class"],
                of_said=row["probability"],
                pictures=_pictures(classifier, held_out, index, exif=config.data.exif),
                double=double,
            )
        )
    of_class: dict[str, list[bool]] = {}
    for row in rows:
        of_class.setdefault(row["class"], []).append(row["right"])
    return Contents(
        title=f"{root.name}: {_share(rows):.2%} of {len(rows):,} photos are told right",
        facts=_facts(root, config, classifier, source, held_out),
        files={what: read_regular(root / name) for what, name in PICTURES.items() if (root / name).exists()},
        per_class=[(words(name), len(right), sum(right) / len(right)) for name, right in of_class.items()],
        sure=(np.array([row["probability"] for row in rows]), np.array([row["right"] for row in rows])),
        mistakes=mistakes,
        mistaken=len(wrong),
        doubles=[(_named(held_out, ours), _named(source, theirs)) for ours, theirs in doubles.items()],
        notes=notes,
    )


def _rows(root: Place) -> list[dict[str, Any]]:
    """Of `predictions.csv`; `UserError` where it is not there, or not of the form."""
    path = root / PREDICTIONS
    mend = f"evaluate the run, deit_jax evaluate {root}"
    try:
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(read_regular(path).decode(), newline="")))
        for row in rows:
            row["probability"], row["of_class"] = float(row["probability"]), float(row["probability_of_class"])
            row["right"] = row["class"] == row["predicted"]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {mend}") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: is not what an evaluation writes; {mend}") from error
    if not rows:
        raise UserError(f"{path}: has no photos; {mend}")
    return rows


def _facts(root: Place, config: Config, classifier: Classifier, source: Source, held_out: Source) -> dict[str, str]:
    facts = {"run": str(root), "data": describe_data(source, held_out)}
    parameters = sum(leaf.size for leaf in flatten(classifier.model).values())
    facts["model"] = f"{classifier.name}, {parameters:,} parameters, {classifier.image_size} px"
    total = config.total
    facts["training"] = (
        f"{getattr(total, total.unit):,} {total.unit}, {config.batch_size} images a step, {config.optim.name}, "
        f"learning rate {config.optim.learning_rate:g}, from {config.init_from or 'new weights'}"
    )
    with_versions = read_json(root / "run.json", dict) if (root / "run.json").exists() else {}
    versions = with_versions.get("versions", {})
    facts["versions"] = ", ".join(f"{name} {versions[name]}" for name in ("deit_jax", "jax") if name in versions)
    return {name: value for name, value in facts.items() if value}


def _pictures(classifier: Classifier, source: Source, index: int, *, exif: bool) -> list[np.ndarray]:
    """The photo as the network sees it, and bright where the rollout of its attention is."""
    try:
        pixels = decode(source[index].image, exif=exif)
    except (CorruptImage, OSError):
        return []
    photo = classifier.preprocess(pixels)
    model = classifier.model
    if not isinstance(model, VisionTransformer) or not model.num_prefix_tokens:
        return [photo]
    prefix = model.num_prefix_tokens
    flow = rollout(classifier.attention(pixels))[:prefix, prefix:].mean(axis=0)
    side = int(len(flow) ** 0.5)
    heat = Image.fromarray((flow / flow.max()).astype(np.float32).reshape(side, side))
    light = np.asarray(heat.resize(photo.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    return [photo, (photo * (0.15 + 0.85 * light)).astype(np.uint8)]


def _named(source: Source, index: int) -> str:
    return f"{_escaped(source.name(index))} ({words(source.class_names[source[index].label])})"


def _escaped(name: str) -> str:
    """As `predictions.csv` has it."""
    return name.encode("utf-8", "backslashreplace").decode()


def _share(rows: Sequence[dict[str, Any]]) -> float:
    return sum(row["right"] for row in rows) / len(rows)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("output", "", "FILE.html (default: report.html in the run)", flag_values=values)
    flags.DEFINE_integer("images", 24, "mistakes to show", lower_bound=0, flag_values=values)


if __name__ == "__main__":
    cli.run(main)
