"""The page of `deit_jax report`: one HTML file that needs nothing else, not even a network."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

BINS = 10  # of the calibration
WIDTH = 176  # pixels of a thumbnail's side


@dataclass(frozen=True)
class Mistake:
    """A photo that was told as another class.

    Attributes:
        name: of the photo.
        true, said: class names.
        of_true, of_said: their probabilities.
        pictures: uint8 `[height, width, 3]`: the photo, and where the network looked.
        double: the photo of the training split that looks the same, with its class; "" where there is none.
    """

    name: str
    true: str
    said: str
    of_true: float
    of_said: float
    pictures: Sequence[np.ndarray]
    double: str = ""


@dataclass(frozen=True)
class Contents:
    """What the page shows.

    Attributes:
        title: of the page.
        facts: lines of the table on top.
        files: PNGs of the run, by what they show.
        per_class: class name, examples, share of them that are told right.
        sure: the probabilities of the classes that were told, and whether each was right.
        mistakes: the worst first.
        mistaken: how many there are in all.
        doubles: (evaluated photo, trained photo) that look the same, each with its class.
        notes: what else there is to say.
    """

    title: str
    facts: Mapping[str, str]
    files: Mapping[str, bytes]
    per_class: Sequence[tuple[str, int, float]]
    sure: tuple[np.ndarray, np.ndarray]
    mistakes: Sequence[Mistake]
    mistaken: int
    doubles: Sequence[tuple[str, str]]
    notes: Sequence[str] = field(default_factory=list)


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } td, th { padding: .15em .8em .15em 0; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100% } .bar { background: #eee; width: 22em; height: .9em; position: relative }
.bar i { background: #2a6fb0; position: absolute; inset: 0 auto 0 0 }
.bar b { background: #d9822b; position: absolute; top: -2px; bottom: -2px; width: 3px }
.gallery { display: flex; flex-wrap: wrap; gap: 1em } figure { margin: 0; width: 366px }
figure img { width: 176px; height: 176px } figcaption { font-size: .85em; overflow-wrap: anywhere }
.note { background: #fff6e5; padding: .5em 1em; border-left: 4px solid #d9822b } .wrong { color: #b02a2a }
"""


def render(contents: Contents) -> str:
    """The page."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(contents.title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{_text(contents.title)}</h1>",
        _facts(contents.facts),
        *(f'<p class="note">{_text(note)}</p>' for note in contents.notes),
    ]
    for what, png in contents.files.items():
        parts.append(f'<h2>{_text(what)}</h2><img alt="{_text(what)}" src="{_data(png, "png")}">')
    parts += [
        "<h2>Classes, the worst first</h2>",
        _per_class(contents.per_class),
        "<h2>Calibration</h2>",
        _calibration(*contents.sure),
        f"<h2>Mistakes: the worst {len(contents.mistakes)} of {contents.mistaken}</h2>",
        '<div class="gallery">',
        *map(_mistake, contents.mistakes),
        "</div>",
        _doubles(contents.doubles),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def calibration(
    probabilities: np.ndarray, right: np.ndarray
) -> tuple[list[tuple[float, float, int, float, float]], float]:
    """How often the model is right where it is so sure, and the expected calibration error (arXiv:1706.04599).

    Returns:
        For each tenth of probabilities that has photos (from, to, photos, their mean probability, share that is right);
        and the mean of the differences between the last two, weighted by the photos.
    """
    places = np.clip((probabilities * BINS).astype(int), 0, BINS - 1)
    rows, error = [], 0.0
    for place in range(BINS):
        there = places == place
        if not (count := int(there.sum())):
            continue
        sure, share = float(probabilities[there].mean()), float(right[there].mean())
        rows.append((place / BINS, (place + 1) / BINS, count, sure, share))
        error += count / len(probabilities) * abs(sure - share)
    return rows, error


def _facts(facts: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts.items())
    return f"<table>{rows}</table>"


def _per_class(classes: Sequence[tuple[str, int, float]]) -> str:
    rows = "".join(
        f'<tr><td>{_text(name)}</td><td class="number">{count}</td><td>{_bar(share)}</td>'
        f'<td class="number">{share:.1%}</td></tr>'
        for name, count, share in sorted(classes, key=lambda row: row[2])
    )
    return f"<table><tr><th>class</th><th>photos</th><th colspan=2>of which are told right</th></tr>{rows}</table>"


def _calibration(probabilities: np.ndarray, right: np.ndarray) -> str:
    bins, error = calibration(probabilities, right)
    rows = "".join(
        f'<tr><td>{low:.0%} to {high:.0%}</td><td class="number">{count}</td><td>{_bar(share, sure)}</td>'
        f'<td class="number">{share:.1%}</td><td class="number">{sure:.1%}</td></tr>'
        for low, high, count, sure, share in bins
    )
    return (
        f"<p>Where the model is so sure, how often it is right; the mark is how sure it is. Expected calibration error "
        f"{error:.1%}.</p><table><tr><th>probability</th><th>photos</th><th></th><th>right</th><th>sure</th></tr>"
        f"{rows}</table>"
    )


def _mistake(mistake: Mistake) -> str:
    pictures = "".join(f'<img alt="" src="{_data(_jpeg(picture), "jpeg")}">' for picture in mistake.pictures)
    double = f'<br><span class="wrong">looks like {_text(mistake.double)}, which was trained on</span>'
    return (
        f"<figure>{pictures}<figcaption><b>{_text(mistake.true)}</b> {mistake.of_true:.1%}, told as "
        f'<b class="wrong">{_text(mistake.said)}</b> {mistake.of_said:.1%}<br>{_text(mistake.name)}'
        f"{double if mistake.double else ''}</figcaption></figure>"
    )


def _doubles(doubles: Sequence[tuple[str, str]]) -> str:
    if not doubles:
        return ""
    rows = "".join(f"<tr><td>{_text(ours)}</td><td>{_text(theirs)}</td></tr>" for ours, theirs in doubles)
    return (
        f"<h2>Photos that look the same on both sides: {len(doubles)}</h2><p>What is evaluated on has nearly been "
        f"trained on, and the accuracy is higher than on new photos; of other classes, a label may be wrong.</p>"
        f"<table><tr><th>evaluated</th><th>trained on</th></tr>{rows}</table>"
    )


def _bar(share: float, mark: float | None = None) -> str:
    marked = "" if mark is None else f'<b style="left:{100 * mark:.1f}%"></b>'
    return f'<div class="bar"><i style="width:{100 * share:.1f}%"></i>{marked}</div>'


def _jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).resize((WIDTH, WIDTH), Image.Resampling.BICUBIC).save(out, "JPEG", quality=80)
    return out.getvalue()


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _text(text: str) -> str:
    return html.escape(text.encode("utf-8", "backslashreplace").decode())
