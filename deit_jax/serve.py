"""Classifies photos with what `python -m deit_jax.export` wrote: python serve.py DIR IMAGE..."""

import json
import sys
from pathlib import Path

from jax import __version__, export, nn
from numpy import argsort, asarray
from PIL import Image, ImageOps


def main(directory: str, *paths: str) -> None:
    about = json.loads(Path(directory, "preprocessing.json").read_text())
    try:
        model = export.deserialize(bytearray(Path(directory, "model.jaxexport").read_bytes()))
        model.mlir_module()  # what a newer jax has written fails here, as late
    except Exception as error:  # StableHLO's is a long one
        wrote = about.get("jax", "an unknown version")
        sys.exit(f"{directory}: jax {__version__} cannot read what jax {wrote} wrote, or it is damaged: {error!r:.99}")
    short, size = about["resize_short_side"], about["crop_size"]
    for path in paths:
        photo = ImageOps.exif_transpose(Image.open(path))
        if photo.mode.startswith("I"):  # 16-bit grey, which convert would clip
            photo = Image.fromarray((asarray(photo) // 256).clip(0, 255).astype("uint8"))
        width, height = (int(short * side / min(photo.size)) for side in photo.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        photo = photo.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        photo = photo.crop((left, top, left + size, top + size))
        probabilities = asarray(nn.softmax(model.call(asarray(photo)[None])[0]))  # uint8 [any, size, size, 3]
        print(path, *(f"{probabilities[i]:8.2%}  {about['names'][i]}" for i in argsort(-probabilities)[:5]), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
