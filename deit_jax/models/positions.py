"""Position embeddings: learnt ones for other grids of patches, and fixed ones for any."""

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


def sincos_positions(grid: tuple[int, int], width: int) -> Float[np.ndarray, "1 tokens dim"]:
    """The fixed position embedding of "Better plain ViT baselines" (arXiv:2205.01580) and MoCo v3 (arXiv:2104.02057).

    The patch in row y and column x, counted from 0, has `[sin(x w), cos(x w), sin(y w), cos(y w)]`, each for the
    `width / 4` frequencies w that fall from 1 to 1/10,000 in equal ratios.

    Args:
        grid: rows and columns of patches.
        width: of the tokens; divisible by 4, at least 8.

    Returns:
        float32, the patches in row-major order.
    """
    frequencies = 10_000.0 ** -np.linspace(0, 1, width // 4)
    y, x = np.indices(grid).reshape(2, -1, 1) * frequencies
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)[None]
