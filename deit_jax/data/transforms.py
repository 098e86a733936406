"""Cutting and resizing of uint8 images, on the host, with torchvision's arithmetic and Pillow's filters."""

import math

import numpy as np
from PIL import Image

from deit_jax.data.decode import CorruptImage
from deit_jax.data.operations import RESAMPLING

MAX_PIXELS = 2**27  # of a resized image: 400 MB


def eval_transform(image: np.ndarray, *, size: int, crop_ratio: float) -> np.ndarray:
    """Short side to `int(size / crop_ratio)`, then the centre square, as facebook's DeiT evaluates.

    Args:
        image: uint8 `[height, width, 3]`.
        size: side of the result in pixels.
        crop_ratio: side of the square over the resized short side; above 1 the border is black.

    Returns:
        uint8 `[size, size, 3]`.

    Raises:
        CorruptImage: the image is so long and thin that resized it would not fit into memory.
    """
    resized = resize(image, *short_side_shape(*image.shape[:2], short=int(size / crop_ratio)), "bicubic")
    return _centre_crop(np.asarray(resized), size)


def short_side_shape(height: int, width: int, *, short: int) -> tuple[int, int]:
    """Height and width of an image whose short side is made `short` pixels, the long one truncated as torchvision's.

    Raises:
        CorruptImage: the image is so long and thin that it would not fit into memory.
    """
    long = int(short * max(height, width) / min(height, width))
    if short * long > MAX_PIXELS:
        raise CorruptImage(f"{width} x {height} pixels: too thin to be resized to {short} on the short side; cut it")
    return (short, long) if height <= width else (long, short)


def random_box(
    height: int, width: int, generator: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """A random part of an image (Inception's augmentation, arXiv:1409.4842, section 6).

    Ten tries, then the largest centred part of an allowed shape.

    Args:
        height, width: of the image in pixels.
        generator: source of the randomness.
        scale: bounds of the part's area, as fractions of the image's.
        ratio: bounds of its width / height, drawn log-uniformly.

    Returns:
        Its top, left, height and width.
    """
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = generator.integers(height - box_height + 1), generator.integers(width - box_width + 1)
            return int(top), int(left), box_height, box_width
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def resize(image: np.ndarray, height: int, width: int, interpolation: str) -> Image.Image:
    """A uint8 `[height, width, 3]` image in another size; `interpolation` is "bilinear" or "bicubic", antialiased."""
    return Image.fromarray(image).resize((width, height), RESAMPLING[interpolation])


def _centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centre `[size, size]`: smaller sides are padded with black first, halves of a pixel round to even."""
    missing = [max(0, size - side) for side in image.shape[:2]]
    image = np.pad(image, [(pixels // 2, pixels - pixels // 2) for pixels in missing] + [(0, 0)])
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]
