"""Classifies photos with what `python -m deit_jax.export` wrote: python serve.py DIR IMAGE..."""

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

from jax import __version__, export, nn
from numpy import argsort, asarray
from PIL import Image, ImageOps, PngImagePlugin

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # others Pillow reads in part by starting other programs
LARGE = 2**26  # pixels; the sides of larger pictures are divided by four
MOST = 2**27  # pixels that a photo is resized to


def main(directory: str, *paths: str) -> None:
    for name in ("SIGINT", "SIGPIPE"):  # Ctrl-C, and `| head`, need no traceback
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
    warnings.filterwarnings("ignore", module="PIL")  # of damaged metadata and of 90 megapixels; it refuses 180
    PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 2**26, 2**28  # bytes of metadata, of no interest
    model, about = read_model(Path(directory))
    failed = 0
    for path in paths:
        try:
            photo = read_photo(path, about["resize_short_side"], about["crop_size"])
        except Exception as error:  # Pillow's parsers raise whatever damaged data makes them run into
            print(printable(f"{path}: {error}; left out"), file=sys.stderr)
            failed += 1
            continue
        probabilities = asarray(nn.softmax(model.call(asarray(photo)[None])[0]))  # uint8 [any, size, size, 3]
        best = (f"{probabilities[i]:8.2%}  {about['names'][i]}" for i in argsort(-probabilities)[:5])
        print(*map(printable, [path, *best]), sep="\n", flush=True)
    sys.exit(2 if failed == len(paths) else 0)


def read_model(folder: Path) -> tuple[export.Exported, dict[str, Any]]:
    about = {}
    if not (folder / "preprocessing.json").is_file():
        sys.exit(f"{folder}: is no folder that deit_jax.export wrote; usage: python serve.py DIR IMAGE...")
    try:
        about = dict(json.loads((folder / "preprocessing.json").read_text(encoding="utf-8")))
        program = (folder / "model.jaxexport").read_bytes()
        if about.get("sha256") not in (None, hashlib.sha256(program).hexdigest()):  # older exports have none
            raise ValueError("model.jaxexport has not the checksum that preprocessing.json tells")
        model = export.deserialize(bytearray(program))
        model.mlir_module()  # what a newer jax has written fails here, as late
    except Exception as error:  # StableHLO's is a long one
        wrote = about.get("jax", "an unknown version")
        sys.exit(f"{folder}: jax {__version__} cannot read what jax {wrote} wrote, or it is damaged: {error!r:.99}")
    short, size, names = (about.get(name) for name in ("resize_short_side", "crop_size", "names"))
    if not isinstance(short, int) or not 0 < short <= MOST**0.5 or model.in_avals[0].shape[1:] != (size, size, 3):
        sys.exit(f"{folder}: preprocessing.json has no sizes or other sizes than the model takes; export it anew")
    if not isinstance(names, list) or model.out_avals[0].shape[1:] != (len(names),):
        sys.exit(f"{folder}: preprocessing.json has no names or other classes than the model has; export it anew")
    return model, about


def read_photo(path: str, short: int, size: int) -> Image.Image:
    if not Path(path).is_file():  # a pipe may never end
        raise ValueError("is no file")
    photo: Image.Image = Image.open(path, formats=FORMATS)
    if photo.width * photo.height > LARGE:
        photo.draft(None, (photo.width // 4, photo.height // 4))  # of a JPEG no more is decoded
    photo.load()
    with contextlib.suppress(Exception):  # many cameras and editors write damaged EXIF
        ImageOps.exif_transpose(photo, in_place=True)
    if photo.mode.startswith("I"):  # 16-bit grey, which convert would clip
        photo = Image.fromarray((asarray(photo) // 256).clip(0, 255).astype("uint8"))
    photo = photo if photo.mode == "RGB" else photo.convert("RGB")
    photo = photo.reduce(4) if photo.width * photo.height > LARGE else photo
    width, height = (int(short * side / min(photo.size)) for side in photo.size)
    if width * height > MOST:
        raise ValueError(f"{photo.width} x {photo.height} pixels: too thin")
    left, top = round((width - size) / 2), round((height - size) / 2)
    return photo.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def printable(text: str) -> str:
    """Names may hold what makes a terminal do things."""
    return re.sub("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", lambda sign: ascii(sign[0])[1:-1], text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except OSError as full:  # of the place that stdout leads to
        print(f"cannot write: {full}", file=sys.stderr, flush=True)
        os._exit(1)  # an ordinary exit would try again
