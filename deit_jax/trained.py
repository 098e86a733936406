"""A trained model as flags name it: what predict, attention and export share."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from deit_jax import classifier
from deit_jax.base.errors import UserError
from deit_jax.base.text import printable
from deit_jax.classifier import Classifier
from deit_jax.data.decode import SUFFIXES, UNREAD


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


def take_weights(given: flags.FlagValues, arguments: Sequence[str]) -> list[str]:
    """Sets `--weights` from the first argument beside the flags, unless it is given or that is a photo; the others."""
    if given.weights or not arguments or arguments[0].lower().endswith(SUFFIXES + UNREAD):
        return list(arguments)
    given["weights"].value = arguments[0]
    return list(arguments[1:])


def open_trained(given: flags.FlagValues, *, classifies: bool = True, **overrides: Any) -> Classifier:
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
    opened = classifier.open(given.weights, model=given.model, ema=given.ema, **overrides)
    if classifies and not opened.model.num_classes:
        raise UserError(
            f"--weights: {given.weights} has no classification head; fine-tune it, or take predict --features=FILE.npz"
        )
    if classifies and (reason := opened.card.no_classifier(opened.model.num_classes)):
        raise UserError(f"--weights: {given.weights}: {reason}; fine-tune it, or take predict --features=FILE.npz")
    if classifies and not opened.card.class_names:
        print(f"note: {given.weights} does not name its classes, which are told by their numbers", file=sys.stderr)
    return opened


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
