"""What a training image goes through: first all of it is drawn, then it is done.

So that a test can do what another program drew, and people can be told what was.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from deit_jax.data.color_jitter import draw_jitter
from deit_jax.data.operations import Operation, operate
from deit_jax.data.policy import parse_policy
from deit_jax.data.randaugment import choose
from deit_jax.data.transforms import random_box, resize, short_side_shape

PADDING = 4  # pixels on each side, of the crops that are not resized


class View(NamedTuple):
    """What was drawn for one image."""

    box: tuple[int, int, int, int]
    """Top, left, height and width of the crop, in the image or, where that is resized first, in the padded one."""
    flip: bool
    """Whether left and right are then swapped."""
    interpolation: str
    """Of the resize: "bilinear" or "bicubic"."""
    operations: tuple[Operation, ...] = ()
    """What is done then, in this order."""


@dataclasses.dataclass(frozen=True)
class TrainTransform:
    """A random crop, a flip, the operations of a policy, and colour jitter, in facebook's order.

    Attributes:
        image_size: side of the result in pixels.
        crop_scale, crop_aspect: bounds of area and shape of a "random_resized" crop, see `random_box`.
        flip: probability of mirroring.
        crop: "random_resized"; or the short side is resized to `image_size`, 4 pixels are added on each side, and of
            that a random square is kept: "simple" adds the mirrored border (DeiT III, arXiv:2204.07118, section 3.3),
            "pad" black, as is usual for CIFAR's images, which have the size already.
        interpolation: of the resize and of warps: "bicubic", "bilinear", or "random" for either.
        augment: names the policy, see `parse_policy`.
        color_jitter: see `draw_jitter`.
    """

    image_size: int
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    crop: Literal["random_resized", "simple", "pad"] = "random_resized"
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    augment: str = ""
    color_jitter: float = 0.0

    def __call__(self, image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """From a uint8 `[height, width, 3]` image to a uint8 `[image_size, image_size, 3]` one.

        Raises:
            CorruptImage: it is so long and thin that resized it would not fit into memory.
        """
        height, width = image.shape[:2]
        return self.apply(image, self.draw(height, width, generator))

    def draw(self, height: int, width: int, generator: np.random.Generator) -> View:
        """What is done to an image of that size; errors as of the call."""
        # The order is that of the versions: what came later is drawn later, so that streams of before stay as they are.
        box = self._box(height, width, generator)
        flip = generator.random() < self.flip
        interpolation = choose(generator, self.interpolation)
        policy = parse_policy(self.augment)
        operations = policy.draw(generator, self.interpolation) if policy else ()
        return View(box, flip, interpolation, operations + draw_jitter(generator, self.color_jitter))

    def apply(self, image: np.ndarray, view: View) -> np.ndarray:
        """Does what was drawn to the image that it was drawn for."""
        picture = self._crop(image, view)
        if view.flip:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for operation in view.operations:
            picture = operate(picture, operation)
        return np.asarray(picture)

    def _box(self, height: int, width: int, generator: np.random.Generator) -> tuple[int, int, int, int]:
        if self.crop == "random_resized":
            return random_box(height, width, generator, self.crop_scale, self.crop_aspect)
        size = self.image_size
        room = [side + 2 * PADDING - size for side in short_side_shape(height, width, short=size)]
        top, left = (int(generator.integers(pixels + 1)) for pixels in room)
        return top, left, size, size

    def _crop(self, image: np.ndarray, view: View) -> Image.Image:
        top, left, height, width = view.box
        size = self.image_size
        if self.crop == "random_resized":
            # Cut before resizing, so that the filter sees no pixel outside the box.
            return resize(image[top : top + height, left : left + width], size, size, view.interpolation)
        resized = resize(image, *short_side_shape(*image.shape[:2], short=size), view.interpolation)
        border = [(PADDING, PADDING), (PADDING, PADDING), (0, 0)]
        padded = np.pad(np.asarray(resized), border, "reflect" if self.crop == "simple" else "constant")
        return Image.fromarray(padded[top : top + height, left : left + width])
