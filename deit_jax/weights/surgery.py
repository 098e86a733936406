"""Fits weights to a model for other classes or another image size; everything else has to match."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from deit_jax.errors import UserError
from deit_jax.models import check_fit, flatten
from deit_jax.weights.card import Card, Weights

HEADS = ("head", "head_dist", "head.fc", "fc", "classifier")  # of Vision Transformers, RegNets, ResNets, EfficientNets

Fresh = Callable[[Sequence[str]], Mapping[str, Array]]


def adapt(
    weights: Weights, model: Any, *, fresh: Fresh, class_names: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """All variables of `model`, taken from the weights where they fit.

    A position embedding for another image size is resized. A classifier is kept where both have the same classes, or
    as many where one side does not name them; else the classes that both name are taken over, the others drawn anew.

    Args:
        weights: of the same network, but for classes and image size.
        model: abstract.
        fresh: draws values for variables of the model, given their paths.
        class_names: of the model's classes; empty where they are not known.

    Returns:
        The variables in the model's dtypes, and a line in words for each thing that differs from the weights.

    Raises:
        UserError: something else than classes and image size differs; the line lists what.
    """
    expected, fitted = flatten(model), dict(weights.variables)
    notes = _fit_positions(fitted, weights.card, model)
    notes += _fit_heads(fitted, weights.card.class_names, expected, class_names, fresh)
    known = {path: np.asarray(value) for path, value in fitted.items()}
    cast = {path: value.astype(expected[path].dtype, copy=False) if path in expected else value for path, value in known.items()}
    try:
        check_fit(expected, cast)
    except ValueError as error:
        of = f" of {weights.card.model}" if weights.card.model else ""
        raise UserError(f"the weights{of} are those of another network: {error}; set model.name to theirs") from error
    return cast, notes


def resize_positions(
    positions: Float[Array | np.ndarray, "1 tokens dim"], prefix: int, before: tuple[int, int], after: tuple[int, int]
) -> Float[np.ndarray, "1 new_tokens dim"]:
    """A position embedding for another grid of patches, as facebook's main.py resizes it.

    Args:
        prefix: leading tokens that are no patches (class, distillation): kept as they are.
        before, after: rows and columns of patches.

    Returns:
        float32; the patches' part interpolated as by torch's bicubic (a = -0.75, corners not aligned, no antialiasing).
    """
    width = positions.shape[-1]
    grid = np.asarray(positions[:, prefix:], np.float32).reshape(1, *before, width)
    resized = jax.image.resize(grid, (1, *after, width), "cubic-pytorch", antialias=False)
    return np.concatenate([positions[:, :prefix], np.asarray(resized).reshape(1, -1, width)], axis=1, dtype=np.float32)


def _fit_positions(fitted: dict[str, Any], card: Card, model: Any) -> list[str]:
    """Resizes the position embedding where its grid is not the model's."""
    if "pos_embed" not in fitted or not hasattr(model, "patch_embed"):
        return []
    prefix = model.num_prefix_tokens if model.class_position else 0
    patch = model.patch_embed.patch_size
    after = (model.image_size[0] // patch, model.image_size[1] // patch)
    before = _grid(np.shape(fitted["pos_embed"])[1] - prefix, card)
    if before is None or before == after:
        return []
    fitted["pos_embed"] = resize_positions(fitted["pos_embed"], prefix, before, after)
    return [f"position embedding resized from {before[0]} x {before[1]} to {after[0]} x {after[1]} patches"]


def _grid(patches: int, card: Card) -> tuple[int, int] | None:
    """Rows and columns of patches: in the shape of the card's images, else a square; None where they make no grid."""
    size = card.arguments.get("image_size", 1)
    height, width = (size, size) if isinstance(size, int) else size
    rows = round(math.sqrt(max(patches, 0) * height / width))
    return (rows, patches // rows) if rows and patches % rows == 0 else None


def _fit_heads(
    fitted: dict[str, Any], before: Sequence[str], expected: Mapping[str, Any], after: Sequence[str], fresh: Fresh
) -> list[str]:
    """Fits the classifiers from classes named `before` to those named `after`."""
    wanted = [name for name in HEADS if f"{name}.kernel" in expected]
    if not wanted:  # the model gives features
        for name in HEADS:
            for leaf in ("kernel", "bias"):
                fitted.pop(f"{name}.{leaf}", None)
        return []
    sources = {name: _columns(fitted, name, expected, before, after) for name in wanted}
    anew = [f"{name}.{leaf}" for name, columns in sources.items() if columns is not None for leaf in ("kernel", "bias")]
    drawn = {path: np.array(value) for path, value in fresh(anew).items()} if anew else {}
    notes = []
    for name, columns in sources.items():
        if columns is None:
            continue
        taken = [(new, old) for new, old in enumerate(columns) if old is not None]
        for path in (f"{name}.kernel", f"{name}.bias"):
            for new, old in taken:
                drawn[path][..., new] = fitted[path][..., old]
            fitted[path] = drawn[path]
        notes.append(
            f"{name}: {len(columns)} classes, {len(taken)} taken over by name, {len(columns) - len(taken)} new"
        )
    return notes


def _columns(
    fitted: Mapping[str, Any], name: str, expected: Mapping[str, Any], before: Sequence[str], after: Sequence[str]
) -> list[int | None] | None:
    """For each class of a head the class of the weights that it is taken from, None for none; None to keep all."""
    features, count = expected[f"{name}.kernel"].shape
    if f"{name}.kernel" not in fitted:
        return [None] * count
    old_features, old_count = np.shape(fitted[f"{name}.kernel"])
    if old_features != features:
        return None  # another network: left for the comparison of shapes to say
    if before and after:
        index = {old: i for i, old in enumerate(before)}
        columns = [index.get(new) for new in after]
        return None if columns == list(range(old_count)) else columns
    return None if count == old_count else [None] * count
