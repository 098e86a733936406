"""Random erasing (arXiv:1708.04896): boxes of a normalised image filled with noise, one colour, or the mean colour.

The host draws where (`draw`), and what a noise is made of; the device fills (`erase`), after normalisation and before
mixing, as facebook's DeiT has it: a mixed image shows the erased boxes of both.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from deit_jax.base import rng

TRIES = 10  # for a box that fits; then there is none


def draw(
    seed: int,
    step: int,
    *,
    batch_size: int,
    image_size: int,
    mode: str,
    probability: float,
    min_count: int,
    max_count: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> dict[str, np.ndarray]:
    """The random numbers that erase in one global batch, a pure function of (seed, step), as timm's RandomErasing has.

    Args:
        image_size: side of the square images in pixels.
        mode: what fills a box: "pixel", normal noise a value; "rand", one normal colour; "const", 0, the mean colour.
        probability: share of the images that are erased in.
        min_count, max_count: of boxes in such an image, uniform.
        area: of an image's boxes together, uniform between these shares of the image.
        aspect: height over width of a box, log-uniform between these.

    Returns:
        `box` int32 [batch, max_count, 4]: y0, y1, x0, x1, empty where nothing is erased; for "pixel" `key` uint32
        [batch, 2], of an image's noise; for "rand" `fill` float32 [batch, max_count, 3].
    """
    random = rng.generator(seed, "erasing", step)
    erased = random.random((batch_size, 1)) < probability
    count = random.integers(min_count, max_count + 1, size=(batch_size, 1))
    tried = (batch_size, max_count, TRIES)
    pixels = random.uniform(*area, size=tried) * (image_size**2 / count[..., None])
    ratio = np.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1]), size=tried))
    sides = np.stack([np.rint(np.sqrt(pixels * ratio)), np.rint(np.sqrt(pixels / ratio))]).astype(np.int32)
    fits = (sides < image_size).all(axis=0)
    first = fits.argmax(axis=-1)[None, ..., None]
    sides = np.take_along_axis(sides, first, axis=-1)[..., 0]  # [2, batch, max_count]
    corner = random.integers(np.maximum(image_size - sides, 0) + 1)
    (y0, x0), (y1, x1) = corner, corner + sides
    box = np.stack([y0, y1, x0, x1], axis=-1)
    there = erased & (np.arange(max_count) < count) & fits.any(axis=-1)
    drawn: dict[str, np.ndarray] = {"box": np.where(there[..., None], box, 0).astype(np.int32)}
    if mode == "pixel":
        drawn["key"] = random.integers(2**32, size=(batch_size, 2), dtype=np.uint32)
    elif mode == "rand":
        drawn["fill"] = random.standard_normal((batch_size, max_count, 3), np.float32)
    return drawn


def erase(
    images: Float[Array, "batch height width channels"], drawn: Mapping[str, Array]
) -> Float[Array, "batch height width channels"]:
    """Fills the boxes of normalised images as drawn."""
    _, height, width, channels = images.shape
    y, x = jnp.arange(height)[:, None], jnp.arange(width)

    def fill_boxes() -> Array:
        noise = rng.noise(drawn["key"], (height, width, channels)) if "key" in drawn else None
        filled = images
        for i in range(drawn["box"].shape[1]):
            y0, y1, x0, x1 = drawn["box"][:, i].T[..., None, None]
            inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
            colour = drawn["fill"][:, i, None, None] if "fill" in drawn else 0.0
            filled = jnp.where(inside[..., None], colour if noise is None else noise, filled)
        return filled

    # A branch is a program of its own: fused with the mixing of two erased images, XLA's loops on CPU would take ten
    # times as long.
    return jax.lax.cond(jnp.any(drawn["box"]), fill_boxes, lambda: images)
