"""What augmentation does to an image's pixels: an operation, its argument, and Pillow, which carries it out.

Names are timm's. Nothing is drawn here: equal operations make equal pixels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

# What comes into view from outside the image: ImageNet's mean colour, round(255 * mean), whatever a network's own mean.
FILL = (124, 116, 104)
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Operation(NamedTuple):
    """An operation as it was drawn."""

    name: str
    """One of `OPERATIONS`, or of the geometric ones, `WARPS`."""
    argument: float | None = None
    """See there; None where there is none."""
    interpolation: str = ""
    """Of `WARPS`: "bilinear" or "bicubic"."""


def operate(image: Image.Image, operation: Operation) -> Image.Image:
    """The RGB image, of the same size, after an operation."""
    name, argument, interpolation = operation
    if name in WARPS:
        return WARPS[name](image, argument, RESAMPLING[interpolation])
    return OPERATIONS[name](image, argument)


def _posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keeps so many of the highest bits: of 0 or fewer black, which Pillow refuses, of 8 the image."""
    kept = min(max(bits, 0), 8)
    return image.point([value & ~(255 >> kept) for value in range(256)] * 3)


def _solarize_add(image: Image.Image, add: int) -> Image.Image:
    """Adds to what is below 128."""
    return image.point([min(255, value + add) if value < 128 else value for value in range(256)] * 3)


def _affine(image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=FILL)


# Arguments: of the four enhancers a factor, 1 changing nothing; of Posterize the bits kept; of Solarize the first value
# that is inverted, 0 to 256; of SolarizeAdd what is added; of GaussianBlur the radius in pixels.
OPERATIONS: dict[str, Callable[[Image.Image, Any], Image.Image]] = {
    "AutoContrast": lambda image, _: ImageOps.autocontrast(image),
    "Equalize": lambda image, _: ImageOps.equalize(image),
    "Invert": lambda image, _: ImageOps.invert(image),
    "Posterize": _posterize,
    "Solarize": lambda image, threshold: ImageOps.solarize(image, threshold),
    "SolarizeAdd": _solarize_add,
    "Color": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "Brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "Sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "Desaturate": lambda image, _: image.convert("L").convert("RGB"),
    "GaussianBlur": lambda image, radius: image.filter(ImageFilter.GaussianBlur(radius)),
}
# Arguments: degrees counter-clockwise about the centre; a slope about the top left corner; a share of the side, where
# fractions of a pixel count. Each pixel is looked up at the place that the matrix maps it to.
WARPS: dict[str, Callable[[Image.Image, Any, Image.Resampling], Image.Image]] = {
    "Rotate": lambda image, degrees, resample: image.rotate(degrees, resample, fillcolor=FILL),
    "ShearX": lambda image, slope, resample: _affine(image, (1, slope, 0, 0, 1, 0), resample),
    "ShearY": lambda image, slope, resample: _affine(image, (1, 0, 0, slope, 1, 0), resample),
    "TranslateXRel": lambda image, share, resample: _affine(image, (1, 0, share * image.width, 0, 1, 0), resample),
    "TranslateYRel": lambda image, share, resample: _affine(image, (1, 0, 0, 0, 1, share * image.height), resample),
}
