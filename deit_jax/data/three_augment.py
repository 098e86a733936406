"""3-Augment (DeiT III, arXiv:2204.07118, section 3.3): one of grey, solarize and blur."""

import dataclasses

import numpy as np

from deit_jax.data.operations import Operation

RADIUS = (0.1, 2.0)  # of the blur, in pixels


@dataclasses.dataclass(frozen=True)
class ThreeAugment:
    """Exactly one of the three, drawn evenly. The paper's colour jitter comes after it, see `color_jitter`."""

    def draw(self, generator: np.random.Generator, interpolation: str) -> tuple[Operation, ...]:
        """What is done to an image; none of the three interpolates."""
        match generator.integers(3):
            case 0:
                return (Operation("Desaturate"),)
            case 1:
                return (Operation("Solarize", 128),)
            case _:
                return (Operation("GaussianBlur", generator.uniform(*RADIUS)),)
