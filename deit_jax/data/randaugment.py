"""RandAugment (arXiv:1909.13719) as timm has it, and AutoAugment's operations, which share its levels.

A level from 0 to 10 says how strong an operation is; what its argument then is, says `argument`.
"""

import dataclasses
import math
from typing import Literal

import numpy as np

from deit_jax.data.operations import WARPS, Operation

LEVELS = 10.0
# The operations, each with its weight in the choice by weights (`w0`).
WEIGHTS = {
    "AutoContrast": 0.025,
    "Equalize": 0.005,
    "Invert": 0.0,
    "Rotate": 0.3,
    "Posterize": 0.0,
    "Solarize": 0.005,
    "SolarizeAdd": 0.005,
    "Color": 0.025,
    "Contrast": 0.005,
    "Brightness": 0.005,
    "Sharpness": 0.025,
    "ShearX": 0.2,
    "ShearY": 0.2,
    "TranslateXRel": 0.1,
    "TranslateYRel": 0.1,
}
NAMES = tuple(WEIGHTS)
# The argument at level 10 of what goes both ways.
_LARGEST = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateXRel": 0.45, "TranslateYRel": 0.45}
_ENHANCERS = ("Color", "Contrast", "Brightness", "Sharpness")

# How an argument follows from a level. Of "increasing" ones a higher level always changes more; "falling" are those of
# the TPU code, where posterizing and solarizing fall off; "original" is falling, with AutoAugment's own posterizing.
Meaning = Literal["increasing", "falling", "original"]


@dataclasses.dataclass(frozen=True)
class Levels:
    """How levels are drawn, and what they mean.

    Attributes:
        std: of the normal noise on a level; infinite: a level is uniform between 0 and what is asked for.
        most: where levels are cut off.
        meaning: see `Meaning`.
    """

    std: float = 0.0
    most: float = LEVELS
    meaning: Meaning = "falling"

    def draw(self, name: str, level: float, generator: np.random.Generator, interpolation: str) -> Operation:
        """The operation `name` at about a level.

        Args:
            interpolation: "bilinear", "bicubic", or "random", for one of the two.
        """
        if math.isinf(self.std):
            level = generator.uniform(0, level)
        elif self.std:
            level = generator.normal(level, self.std)
        level = min(max(level, 0.0), self.most)
        chosen = argument(name, level, negative=generator.random() < 0.5, meaning=self.meaning)
        return Operation(name, chosen, choose(generator, interpolation) if name in WARPS else "")


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Operations drawn evenly, with replacement, of which each is then carried out or not.

    Attributes:
        magnitude: the level asked for.
        layers: how many are drawn.
        probability: of each to be carried out.
        levels: what is drawn of the level, and means.
        weighted: drawn by `WEIGHTS` instead, without replacement.
    """

    magnitude: int = 10
    layers: int = 2
    probability: float = 0.5
    levels: Levels = Levels()
    weighted: bool = False

    def draw(self, generator: np.random.Generator, interpolation: str) -> tuple[Operation, ...]:
        """What is done to an image, in this order."""
        if self.weighted:
            weights = np.array(list(WEIGHTS.values()))
            chosen = generator.choice(len(NAMES), self.layers, replace=False, p=weights / weights.sum())
        else:
            chosen = generator.integers(len(NAMES), size=self.layers)
        return tuple(
            self.levels.draw(NAMES[number], self.magnitude, generator, interpolation)
            for number in chosen
            if generator.random() < self.probability
        )


def argument(name: str, level: float, *, negative: bool, meaning: Meaning) -> float | None:
    """The argument of an operation at a level, with that sign where it goes both ways; None if it takes none."""
    share, sign, rising = level / LEVELS, -1 if negative else 1, meaning == "increasing"
    if name in _LARGEST:
        return sign * share * _LARGEST[name]
    if name in _ENHANCERS:
        return max(0.1, 1 + sign * share * 0.9) if rising else 0.1 + share * 1.8
    match name:
        case "Posterize":
            bits = int(share * 4)
            return 4 - bits if rising else 4 + bits if meaning == "original" else bits
        case "Solarize":
            threshold = min(256, int(share * 256))
            return 256 - threshold if rising else threshold
        case "SolarizeAdd":
            return min(128, int(share * 110))
    return None


def choose(generator: np.random.Generator, interpolation: str) -> str:
    """The interpolation, for "random" one of the two."""
    return ("bilinear", "bicubic")[generator.integers(2)] if interpolation == "random" else interpolation
