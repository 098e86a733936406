"""AutoAugment (arXiv:1805.09501): 25 pairs of operations that were searched for on ImageNet, of which one is drawn."""

import dataclasses

import numpy as np

from deit_jax.data.operations import Operation
from deit_jax.data.randaugment import Levels

# Each operation with its probability and level. Table 9 of the paper.
_ORIGINAL = """
Posterize 0.4 8, Rotate 0.6 9
Solarize 0.6 5, AutoContrast 0.6 5
Equalize 0.8 8, Equalize 0.6 3
Posterize 0.6 7, Posterize 0.6 6
Equalize 0.4 7, Solarize 0.2 4
Equalize 0.4 4, Rotate 0.8 8
Solarize 0.6 3, Equalize 0.6 7
Posterize 0.8 5, Equalize 1.0 2
Rotate 0.2 3, Solarize 0.6 8
Equalize 0.6 8, Posterize 0.4 6
Rotate 0.8 8, Color 0.4 0
Rotate 0.4 9, Equalize 0.6 2
Equalize 0.0 7, Equalize 0.8 8
Invert 0.6 4, Equalize 1.0 8
Color 0.6 4, Contrast 1.0 8
Rotate 0.8 8, Color 1.0 2
Color 0.8 8, Solarize 0.8 7
Sharpness 0.4 7, Invert 0.6 8
ShearX 0.6 5, Equalize 1.0 9
Color 0.4 0, Equalize 0.6 3
Equalize 0.4 7, Solarize 0.2 4
Solarize 0.6 5, AutoContrast 0.6 5
Invert 0.6 4, Equalize 1.0 8
Color 0.6 4, Contrast 1.0 8
Equalize 0.8 8, Equalize 0.6 3
"""
# That of EfficientNet's TPU code, which no paper has.
_V0 = """
Equalize 0.8 1, ShearY 0.8 4
Color 0.4 9, Equalize 0.6 3
Color 0.4 1, Rotate 0.6 8
Solarize 0.8 3, Equalize 0.4 7
Solarize 0.4 2, Solarize 0.6 2
Color 0.2 0, Equalize 0.8 8
Equalize 0.4 8, SolarizeAdd 0.8 3
ShearX 0.2 9, Rotate 0.6 8
Color 0.6 1, Equalize 1.0 2
Invert 0.4 9, Rotate 0.6 0
Equalize 1.0 9, ShearY 0.6 3
Color 0.4 7, Equalize 0.6 0
Posterize 0.4 6, AutoContrast 0.4 7
Solarize 0.6 8, Color 0.6 9
Solarize 0.2 4, Rotate 0.8 9
Rotate 1.0 7, TranslateYRel 0.8 9
ShearX 0.0 0, Solarize 0.8 4
ShearY 0.8 0, Color 0.6 4
Color 1.0 0, Rotate 0.6 2
Equalize 0.8 4, Equalize 0.0 8
Equalize 1.0 4, AutoContrast 0.6 2
ShearY 0.4 7, SolarizeAdd 0.6 7
Posterize 0.8 2, Solarize 0.6 10
Solarize 0.6 8, Equalize 0.6 1
Color 0.8 6, Rotate 0.4 5
"""
Entry = tuple[str, float, float]  # an operation, its probability, its level


def _entries(text: str) -> tuple[tuple[Entry, ...], ...]:
    rows = [[entry.split() for entry in line.split(", ")] for line in text.strip().splitlines()]
    return tuple(tuple((name, float(share), float(level)) for name, share, level in row) for row in rows)


POLICIES = {"original": _entries(_ORIGINAL), "v0": _entries(_V0)}


@dataclasses.dataclass(frozen=True)
class AutoAugment:
    """One pair of a policy's operations, drawn evenly, of which each is carried out with its own probability.

    Attributes:
        policy: of `POLICIES`.
        levels: what is drawn of the level, and means.
    """

    policy: str
    levels: Levels

    def draw(self, generator: np.random.Generator, interpolation: str) -> tuple[Operation, ...]:
        """What is done to an image, in this order."""
        pairs = POLICIES[self.policy]
        return tuple(
            self.levels.draw(name, level, generator, interpolation)
            for name, probability, level in pairs[generator.integers(len(pairs))]
            if generator.random() < probability
        )
