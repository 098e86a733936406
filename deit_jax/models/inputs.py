"""What a network may be given: mistakes that would be answered wrongly are refused."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

LARGEST = 30.0  # of a normalised image, by far: (1 - 0.4) / 0.2 is 3


def check_images(images: Array | np.ndarray, size: tuple[int, ...]) -> None:
    """Raises `ValueError` unless these are normalised images of a height and width.

    Values from 0 to 255 are known by their type, and where they are floats by those of the first image, which inside of
    a jitted function nobody knows.
    """
    height, width = size
    if images.ndim != 4 or images.shape[1:] != (height, width, 3):
        raise ValueError(f"images of shape {images.shape}: this model takes (batch, {height}, {width}, 3)")
    known = images.size and not isinstance(images, jax.core.Tracer) and getattr(images, "is_fully_addressable", True)
    least = most = 0.0
    if known:
        with jax.ensure_compile_time_eval():  # within a function that is traced constants would be, too
            first = jnp.asarray(images[0])
            least, most = float(first.min()), float(first.max())
    if not jnp.issubdtype(images.dtype, jnp.floating) or (most > LARGEST and least >= 0):
        raise ValueError(
            f"images of {images.dtype}{f', up to {most:g}' if known else ''}: this model takes normalised ones, "
            f"(pixel / 255 - mean) / std; deit_jax.open(...) prepares photos itself"
        )
