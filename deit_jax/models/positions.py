"""Position embeddings for other grids of patches than they were learnt on."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_positions(
    positions: Float[Array | np.ndarray, "1 tokens dim"], prefix: int, before: tuple[int, int], after: tuple[int, int]
) -> Float[Array, "1 new_tokens dim"]:
    """A position embedding for another grid of patches, as facebook's main.py resizes it; differentiable.

    Args:
        prefix: leading tokens that are no patches (class, distillation): kept as they are.
        before, after: rows and columns of patches.

    Returns:
        float32; the patches' part interpolated as by torch's bicubic (a = -0.75, corners not aligned, no antialiasing).
    """
    positions = jnp.asarray(positions, jnp.float32)
    width = positions.shape[-1]
    grid = positions[:, prefix:].reshape(1, *before, width)
    resized = jax.image.resize(grid, (1, *after, width), "cubic-pytorch", antialias=False)
    return jnp.concatenate([positions[:, :prefix], resized.reshape(1, -1, width)], axis=1)
