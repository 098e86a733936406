"""Fits weights to a model for other classes or another image size; everything else has to match."""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array

from deit_jax.base.errors import UserError
from deit_jax.models import abstract_model, check_fit, flatten, resize_positions
from deit_jax.weights.card import HEADS, Card, Weights
from deit_jax.weights.imagenet import words

# Attributes of modules that say how a network computes, not which function, or what this file fits.
INCIDENTAL = {"implementation", "form", "remat", "out_features"}
INCIDENTAL |= {"image_size", "num_patches", "num_classes"}

Fresh = Callable[[Sequence[str]], Mapping[str, Array]]


def adapt(
    weights: Weights, model: nnx.Module, *, fresh: Fresh | None = None, class_names: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """All variables of `model`, taken from the weights where they fit.

    A position embedding for another image size is resized. A classifier is kept where both have the same classes, or
    as many where one side does not name them; else the classes that both name are taken over, the others drawn anew.
    A name that stands for several classes tells none of them, unless the lists are the same. For a model of classes
    that are named, a head of one logit or of several labels is drawn anew.

    Args:
        weights: of the same network, but for classes and image size.
        model: abstract.
        fresh: draws values for variables of the model, given their paths; None where nothing may be drawn.
        class_names: of the model's classes; empty where they are not known.

    Returns:
        The variables in the model's dtypes, and a line in words for each thing that differs from the weights.

    Raises:
        UserError: something else than classes and image size differs; the line lists what. Or there is nothing to take
            a classifier from, and `fresh` is None.
    """
    expected, fitted, card = flatten(model), dict(weights.variables), weights.card
    notes = _fit_positions(fitted, card, model)
    if "head_dist.kernel" in fitted and "head_dist.kernel" not in expected and "head.kernel" in expected:
        del fitted["head_dist.kernel"], fitted["head_dist.bias"]
        card = dataclasses.replace(card, arguments={**card.arguments, "dist_head": False})
        notes.append("head_dist: left out, the model has none")
    reason = card.no_classifier(weights.classes) if class_names else ""
    if reason:
        notes.append(reason)
        card = dataclasses.replace(card, class_names=(), problem_type="")
        fitted = {path: value for path, value in fitted.items() if path.rpartition(".")[0] not in HEADS}
    elif class_names and weights.classes == len(class_names) and not card.class_names:
        notes.append(in_order(class_names))
    notes += _fit_heads(fitted, card.class_names, expected, class_names, fresh)
    arrays = {path: np.asarray(value) for path, value in fitted.items()}
    variables = {
        path: value.astype(expected[path].dtype, copy=False) if path in expected else value
        for path, value in arrays.items()
    }
    try:
        check_fit(expected, variables)
    except ValueError as error:
        raise UserError(
            f"the weights{_of(card)} are those of another network: {error}; set model.name to theirs"
        ) from error
    return variables, notes + check_function(card, model)


def in_order(class_names: Sequence[str]) -> str:
    """In words, what the outputs of weights that do not name their classes are taken for."""
    shown = ", ".join([*class_names[:3], *(["..."] if class_names[3:] else [])])
    return f"the weights do not name their classes: the k-th output is taken for the data's k-th class ({shown})"


def check_function(card: Card, model: nnx.Module) -> list[str]:
    """In words, how a model of the same variables computes slightly else than the one that a card tells of.

    Raises:
        UserError: it computes another function; the line says why.
    """
    if not card.model:  # nothing is known but shapes
        return []
    lines = differences(abstract_model(card.model, **card.arguments), model)
    notes = [line for line in lines if line.startswith("eps ")]
    others = [line for line in lines if line not in notes]
    if others:
        raise UserError(
            f"the weights{_of(card)} are those of another network: {'; '.join(others)}; "
            f"set model.name and what the config changes of it to theirs"
        )
    return notes


def _of(card: Card) -> str:
    return f" of {card.model}" if card.model else ""


def differences(theirs: nnx.Module, ours: nnx.Module) -> list[str]:
    """In words, a line each, why networks of the same variables compute different functions of them."""
    before, after = traits(theirs), traits(ours)
    lines: dict[str, str] = {}
    for path, value in before.items():
        if path in after and after[path] != value:
            name = path.rpartition(".")[2]
            lines.setdefault(name, f"{name} is {value} in the weights' network and {after[path]} in the model's")
    return list(lines.values())


def traits(model: nnx.Module) -> dict[str, bool | int | float | str]:
    """What decides a network's function beside its variables: numbers and words in its modules, by dotted path.

    Flax's own modules, whose attributes change with its versions, add nothing: they follow from the variables' shapes.
    """
    return {
        ".".join(map(str, (*path, name))): value
        for path, module in nnx.iter_modules(model)
        if not type(module).__module__.startswith("flax.")
        for name, value in vars(module).items()
        if name not in INCIDENTAL and isinstance(value, bool | int | float | str)
    }


def _fit_positions(fitted: dict[str, Any], card: Card, model: Any) -> list[str]:
    """Resizes the position embedding where its grid is not the model's."""
    if "pos_embed" not in fitted or not hasattr(model, "patch_embed"):
        return []
    prefix = model.num_prefix_tokens if model.class_position else 0
    patch = model.patch_embed.patch_size
    after = (model.image_size[0] // patch, model.image_size[1] // patch)
    shape = np.shape(fitted["pos_embed"])
    before = _grid(shape[1] - prefix, card) if len(shape) == 3 else None
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
    fitted: dict[str, Any],
    before: Sequence[str],
    expected: Mapping[str, Any],
    after: Sequence[str],
    fresh: Fresh | None,
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
    if anew and fresh is None:
        raise UserError(
            f"the weights have no {anew[0]} for {expected[anew[0]].shape[-1]} classes; leave num_classes out"
        )
    drawn = {path: np.array(value) for path, value in fresh(anew).items()} if anew and fresh else {}
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
    shape = np.shape(fitted[f"{name}.kernel"])
    if len(shape) != 2 or shape[0] != features or (before and len(before) != shape[1]):
        return None  # another network: left for the comparison of shapes to say
    if before and after and tuple(before) != tuple(after):
        before, after = list(map(words, before)), list(map(words, after))  # a folder "goldfish" is ImageNet's n01443537
        counts = collections.Counter(before), collections.Counter(after)
        index = {old: i for i, old in enumerate(before) if all(count[old] == 1 for count in counts)}
        return [index.get(new) for new in after]
    return None if count == shape[1] else [None] * count
