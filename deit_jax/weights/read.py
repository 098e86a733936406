"""Weights as the user names them: as arrays with a card, put into a model, or with the model that they are of.

What a `spec` can be: see `deit_jax.weights.places`.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from deit_jax import models
from deit_jax.errors import UserError
from deit_jax.models import VisionTransformer, abstract_model, bind, entry, flatten
from deit_jax.weights import huggingface, surgery, tables
from deit_jax.weights.card import Card, Weights
from deit_jax.weights.imagenet import WNIDS
from deit_jax.weights.places import Found, find

M = TypeVar("M", bound=nnx.Module)

# Overrides that change how a model computes, not which: no matter of weights.
RUNTIME = {"dtype", "attention", "patch_embedding", "remat", "drop_path", "drop_path_schedule"}


def read_weights(spec: str | Path, *, model: str = "", ema: bool | None = None) -> Weights:
    """The weights that `spec` names, and what is known of them.

    Where the model is known, all of its variables have to be there and nothing else, for any number of classes and
    any square image size.

    Args:
        spec: see `deit_jax.weights.places`.
        model: which model the weights are of, where they do not tell themselves; the registry's name.
        ema: True for the moving average, False for the raw weights; None for the average of a training checkpoint
            that has one, the raw weights of a file.

    Raises:
        UserError: there are none, they cannot be read, or do not fit the model; the line lists what does not.
    """
    found = find(str(spec), model, ema)
    paths = tables.vit_paths(found.tensors)
    scheme = found.scheme or tables.best_scheme(found.tensors, paths)
    there = [path for path in paths if all(name in found.tensors for name in scheme.names(path))]
    sizes = tables.shapes(found.tensors, scheme, there)
    card = dataclasses.replace(found.card, model=found.card.model or model)
    if card.model:
        card = dataclasses.replace(card, arguments={**_inferred(card, sizes), **card.arguments})
        expected = shapes(_abstract(card, found.where))
    else:
        expected = sizes
    _check(found, scheme, expected, card.model or "a Vision Transformer")
    if "head.kernel" in expected and expected["head.kernel"][-1] == len(WNIDS) and not card.class_names:
        card = dataclasses.replace(card, class_names=WNIDS)
    return Weights(tables.gather(found.tensors, scheme, expected), card)


def load_weights(model: M, path: str | Path, *, ema: bool | None = None) -> M:
    """The model with the weights that `path` names, in the model's own dtypes.

    Args:
        model: concrete, or abstract as `nnx.eval_shape` gives it.
        path: anything that `read_weights` takes, but "pretrained".
        ema: see `read_weights`.

    Raises:
        UserError: as `read_weights`; the weights have to be those of this very architecture.
    """
    found, expected = find(str(path), "", ema), flatten(model)
    scheme = found.scheme or tables.best_scheme(found.tensors, expected)
    _check(found, scheme, shapes(model), "this model")
    variables = tables.gather(found.tensors, scheme, expected)
    return bind(model, {name: jnp.asarray(value, expected[name].dtype) for name, value in variables.items()})


def open_model(
    spec: str | Path, *, model: str = "", ema: bool | None = None, **overrides: Any
) -> tuple[VisionTransformer, Card]:
    """The model that weights are of, with them in float32, and their card, complete.

    Args:
        spec, ema: see `read_weights`.
        model: the registry's name, where the weights do not tell; must fit them where they do.
        **overrides: arguments of `create_model`. Another `image_size` resizes the position embedding, `num_classes=0`
            leaves the heads out.

    Raises:
        UserError: as `read_weights`; the model is not known; or the overrides ask for what the weights do not have.
    """
    weights = read_weights(spec, model=model, ema=ema)
    card = rename(weights, model or weights.card.model, str(spec)).card
    card = dataclasses.replace(card, arguments={**card.arguments, **overrides})
    abstract = _abstract(card, str(spec))
    if not isinstance(abstract, VisionTransformer):
        raise UserError(f"{spec}: {card.model} is no Vision Transformer; name weights of one")

    def none(paths: Sequence[str]) -> Mapping[str, Array]:
        raise UserError(f"{spec}: has no {paths[0]} for num_classes={overrides.get('num_classes')}; leave that out")

    named = card.class_names if "num_classes" not in overrides else ()
    variables, _ = surgery.adapt(weights, abstract, fresh=none, class_names=named)
    bound = bind(abstract, {path: jnp.asarray(value, jnp.float32) for path, value in variables.items()})
    complete = dataclasses.replace(
        card,
        arguments={name: value for name, value in card.arguments.items() if name not in RUNTIME},
        class_names=card.class_names if abstract.head is not None else (),
        preprocessing=card.preprocessing or entry(card.model).preprocessing,
    )
    return bound, complete


def create_model(name: str, *, rngs: nnx.Rngs, pretrained: bool = False, **overrides: Any) -> nnx.Module:
    """Builds a model, with fresh or with its published weights.

    Args:
        name: one of `list_models()`.
        rngs: draws the weights; of a pretrained model those of the heads, where `num_classes` is not what they have.
        pretrained: see `deit_jax.weights.hub.pretrained` for where the weights are looked for. The position embedding
            is resized for another `image_size`.
        **overrides: replace the model's own arguments, e.g. `num_classes=10`; see its class.

    Raises:
        UserError: an unknown model or override; published weights that are not within reach or do not fit.
        ValueError: the arguments contradict each other.
    """
    if not pretrained:
        return models.create_model(name, rngs=rngs, **overrides)
    abstract = abstract_model(name, **overrides)

    def fresh(paths: Sequence[str]) -> Mapping[str, Array]:
        drawn = flatten(models.create_model(name, rngs=rngs, **overrides))
        return {path: drawn[path] for path in paths}

    variables, notes = surgery.adapt(read_weights("pretrained", model=name), abstract, fresh=fresh)
    for note in notes:
        logging.info("%s: %s", name, note)
    return bind(abstract, {path: jnp.asarray(value) for path, value in variables.items()})


def rename(weights: Weights, model: str, where: str) -> Weights:
    """The weights as those of `model`, which they have to fit: models differ in more than variables.

    Raises:
        UserError: they do not, or `model` is "".
    """
    if not model:
        fitting = " or ".join(_fitting(weights.variables)) or "none here"
        raise UserError(f"{where}: does not say which model it is of; give its name (by its shapes: {fitting})")
    if model == weights.card.model:
        return weights
    own, theirs = huggingface.resolve(Card(model)), huggingface.resolve(weights.card)
    loose = ("image_size", "num_classes", "norm_eps", "dist_head")
    arguments = {name: theirs[name] for name in loose if name in own and own[name] != theirs[name]}
    card = dataclasses.replace(weights.card, model=model, arguments=arguments)
    found = Found(where, dict(weights.variables), card)
    _check(found, tables.OURS, shapes(_abstract(card, where)), model)
    return Weights(weights.variables, card)


def shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Of every variable, by its path."""
    return {path: value.shape for path, value in flatten(model).items()}


def _inferred(card: Card, sizes: tables.Shapes) -> dict[str, Any]:
    """`num_classes` and a square `image_size` by the head and the position embedding, where the model's are others."""
    resolved = huggingface.resolve(card)
    if "num_classes" not in resolved:  # a network of another kind
        return {}
    inferred = {"num_classes": sizes["head.kernel"][-1] if "head.kernel" in sizes else 0}
    if "pos_embed" in sizes:
        prefix = (resolved["class_token"] + resolved["distilled"]) * resolved["class_position"]
        patches = sizes["pos_embed"][1] - prefix
        side = math.isqrt(max(patches, 0))
        if side**2 == patches > 0:
            inferred["image_size"] = side * resolved["patch_size"]
    return {name: value for name, value in inferred.items() if value != resolved[name]}


def _abstract(card: Card, where: str) -> nnx.Module:
    try:
        return abstract_model(card.model, **card.arguments)
    except ValueError as error:
        raise UserError(f"{where}: {card.model} cannot be built with {dict(card.arguments)}: {error}") from error


def _check(found: Found, scheme: tables.Scheme, expected: tables.Shapes, of: str) -> None:
    problems = tables.misfit(found.tensors, scheme, expected)
    if problems:
        raise UserError(f"{found.where}: is not {of}'s ({scheme.title}): {problems}; name the model that it is of")


def _fitting(variables: Mapping[str, Any]) -> list[str]:
    """Models of the registry that weights of these shapes could be of."""
    traits = {
        "width": variables["pos_embed"].shape[-1] if "pos_embed" in variables else 0,
        "depth": sum(path.endswith("norm1.scale") for path in variables),
        "patch_size": variables["patch_embed.proj.kernel"].shape[0] if "patch_embed.proj.kernel" in variables else 0,
        "distilled": "dist_token" in variables,
    }
    scaled = "blocks.0.ls1.gamma" in variables
    resolved = {name: huggingface.resolve(Card(name)) for name in models.list_models()}
    return [
        name
        for name, arguments in resolved.items()
        if traits.items() <= arguments.items() and (arguments["layer_scale"] > 0) == scaled
    ]
