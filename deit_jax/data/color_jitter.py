"""Colour jitter as torchvision has it: brightness, contrast and saturation, each by a factor, in any order."""

import numpy as np

from deit_jax.data.operations import Operation


def draw_jitter(generator: np.random.Generator, strength: float) -> tuple[Operation, ...]:
    """What is done to an image, in this order; nothing for a strength of 0.

    Args:
        strength: factors are uniform in `1 - strength` to `1 + strength`; in [0, 1].
    """
    if not strength:
        return ()
    names = generator.permutation(["Brightness", "Contrast", "Color"]).tolist()
    return tuple(Operation(name, generator.uniform(1 - strength, 1 + strength)) for name in names)
