"""Classifies photos with what `python -m deit_jax.export` wrote. Needs jax, flatbuffers, numpy and Pillow alone.

python serve.py DIR IMAGE...
"""

import json
import sys
from pathlib import Path

import numpy as np
from jax import export
from PIL import Image, ImageOps


def prepare(path: str, *, short: int, size: int) -> np.ndarray:
    """The photo upright, its short side resized to `short`, its centre cut out: uint8 `[size, size, 3]`."""
    with Image.open(path) as photo:
        image = ImageOps.exif_transpose(photo).convert("RGB")
    width, height = (int(short * side / min(image.size)) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def main(directory: str, *paths: str) -> None:
    model = export.deserialize(bytearray(Path(directory, "model.jaxexport").read_bytes()))
    about = json.loads(Path(directory, "preprocessing.json").read_text())
    images = [prepare(path, short=about["resize_short_side"], size=about["crop_size"]) for path in paths]
    logits = np.asarray(model.call(np.stack(images)))  # any number of images at once
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    for path, probabilities in zip(paths, scores / scores.sum(axis=1, keepdims=True), strict=True):
        print(path)
        for index in np.argsort(-probabilities)[:5]:
            print(f"{probabilities[index]:8.2%}  {about['names'][index]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
