"""Geometric transforms of uint8 images, on the host, with torchvision's arithmetic and Pillow's bicubic filter."""

import math

import numpy as np
from PIL import Image

from deit_jax.data.decode import CorruptImage

MAX_PIXELS = 2**27  # of a resized image: 400 MB


def random_resized_crop(
    image: np.ndarray,
    generator: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:
    """A random part of the image resized to a square (Inception's augmentation, arXiv:1409.4842, section 6).

    Args:
        image: uint8 `[height, width, 3]`.
        generator: source of the randomness.
        size: side of the result in pixels.
        scale: bounds of the part's area, as fractions of the image's.
        ratio: bounds of its width / height, drawn log-uniformly.

    Returns:
        uint8 `[size, size, 3]`.
    """
    top, left, height, width = random_box(image.shape[0], image.shape[1], generator, scale, ratio)
    # Cut before resizing, so that the filter sees no pixel outside the box.
    return _resize(image[top : top + height, left : left + width], size, size)


def random_flip(image: np.ndarray, generator: np.random.Generator, *, probability: float) -> np.ndarray:
    """Mirrors left and right with a probability in `0..1`."""
    return image[:, ::-1] if generator.random() < probability else image


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
    height, width = image.shape[:2]
    short = int(size / crop_ratio)
    long = int(short * max(height, width) / min(height, width))
    if short * long > MAX_PIXELS:
        raise CorruptImage(f"{width} x {height} pixels: too thin to be resized to {short} on the short side; cut it")
    resized = _resize(image, short, long) if height <= width else _resize(image, long, short)
    return _centre_crop(resized, size)


def random_box(
    height: int, width: int, generator: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of the part: ten tries, then the largest centred one of an allowed shape."""
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = generator.integers(height - box_height + 1), generator.integers(width - box_width + 1)
            return int(top), int(left), box_height, box_width
    box_height, box_width = height, width
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """The centre `[size, size]`: smaller sides are padded with black first, halves of a pixel round to even."""
    missing = [max(0, size - side) for side in image.shape[:2]]
    image = np.pad(image, [(pixels // 2, pixels - pixels // 2) for pixels in missing] + [(0, 0)])
    top, left = (round((side - size) / 2) for side in image.shape[:2])
    return image[top : top + size, left : left + size]
