"""A trained model with all that a photo has to go through: what predict, attention and export share."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags

from deit_jax.base.errors import UserError
from deit_jax.base.text import printable
from deit_jax.data.files import read_image
from deit_jax.models import Network, Preprocessing, entry
from deit_jax.step.step import Normalization
from deit_jax.weights import open_model


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `open_trained` gives.

    Attributes:
        model: bound to float32 weights.
        name: of the model, as `list_models` has it.
        class_names: one for each logit; the indices as text where the weights do not tell, and none where the head
            does not tell classes of which a photo has one.
        image_size: side of the square images that the model takes, in pixels.
        preprocessing: what the weights expect of images.
    """

    model: Network
    name: str
    class_names: tuple[str, ...]
    image_size: int
    preprocessing: Preprocessing

    @property
    def normalize(self) -> Normalization:
        """From uint8 images to the model's input; a part of jitted functions."""
        return Normalization(self.preprocessing.mean, self.preprocessing.std)

    def read(self, path: str) -> np.ndarray:
        """A photo cut for this model, uint8 `[image_size, image_size, 3]`; errors as `read_image`."""
        return read_image(path, image_size=self.image_size, crop_ratio=self.preprocessing.crop_ratio)


def define_flags(values: flags.FlagValues) -> None:
    """The flags that say which weights."""
    flags.DEFINE_string(
        "weights",
        "",
        "a workdir or checkpoint (its best step, its average; @latest, @STEP, #raw, #ema choose otherwise), a "
        ".safetensors or .pth file, a Hugging Face folder, hf://owner/name, or pretrained (with --model)",
        flag_values=values,
    )
    flags.DEFINE_string("model", "", "name of the model, where the weights do not tell", flag_values=values)
    flags.DEFINE_boolean(
        "ema", None, "the averaged weights, or with --noema the raw ones (default: as the weights have it)", values
    )


def open_trained(given: flags.FlagValues, *, classifies: bool = True, **overrides: Any) -> Trained:
    """The model that the flags of `define_flags` name.

    Args:
        given: the parsed flags.
        classifies: the model has to have classes, of which a photo has one; else it may give features alone.
        **overrides: arguments of the model that do not touch its weights, such as `dtype`.

    Raises:
        UserError: the weights cannot be read, have no such classes, or want images that are not square.
    """
    if not given.weights:
        raise UserError(
            "--weights: missing; name a workdir, a .safetensors or .pth file, hf://owner/name, "
            "or with --model=NAME its published weights, --weights=pretrained"
        )
    model, card = open_model(given.weights, model=given.model, ema=given.ema, **overrides)
    height, width = model.image_size
    if height != width:
        raise UserError(f"--weights: {given.weights} is for images of {height} x {width}; photos are cut to squares")
    if classifies and not model.num_classes:
        raise UserError(
            f"--weights: {given.weights} has no classification head; fine-tune it, or take predict --features=FILE.npz"
        )
    reason = card.no_classifier(model.num_classes)
    if classifies and reason:
        raise UserError(f"--weights: {given.weights}: {reason}; fine-tune it, or take predict --features=FILE.npz")
    if classifies and not card.class_names:
        print(f"note: {given.weights} does not name its classes, which are told by their numbers", file=sys.stderr)
    return Trained(
        model=model,
        name=card.model,
        class_names=() if reason else card.class_names or tuple(map(str, range(model.num_classes))),
        image_size=height,
        preprocessing=card.preprocessing or entry(card.model).preprocessing,
    )


def report_unreadable(errors: Mapping[str, str], images: int) -> None:
    """Says on stderr which images were left out, and why.

    Args:
        errors: by path, the reason of each image that could not be read.
        images: how many there were in all.

    Raises:
        UserError: not one could be read.
    """
    lines = [printable(f"{path}: {reason}") for path, reason in errors.items()]
    if len(lines) == images:
        others = f" (nor can {images - 1} more)" if images > 1 else ""
        raise UserError(f"no image could be read: {lines[0]}{others}")
    for line in lines:
        print(f"{line}; left out", file=sys.stderr)
