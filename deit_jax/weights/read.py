"""Weights as the user names them: as arrays with a card, put into a model, or with the model that they are of.

What a `spec` can be: see `deit_jax.weights.places`.
"""

import dataclasses
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from deit_jax import models
from deit_jax.base.errors import UserError
from deit_jax.base.names import ranges
from deit_jax.models import Network, abstract_model, bind, entry, flatten, resolve, untagged
from deit_jax.weights import surgery, tables
from deit_jax.weights.card import Card, Weights, classes_of
from deit_jax.weights.fits import check_names, fitting, network_of, shapes
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
    return _complete(_read(str(spec), model, ema))


def read_named(spec: str | Path, *, model: str = "", ema: bool | None = None) -> Weights:
    """As `read_weights`, but as weights of `model` where that is given: they have to fit it, whatever they tell.

    Raises:
        UserError: as `read_weights`; they do not fit, or neither they nor `model` tell which model they are of.
    """
    weights = _read(str(spec), model, ema)
    return _complete(_rename(weights, model or weights.card.model, str(spec)))


def _read(spec: str, model: str, ema: bool | None) -> Weights:
    found = find(spec, model, ema)
    card = dataclasses.replace(found.card, model=found.card.model or model)
    expected = shapes(network_of(card, found.where)) if card.model else {}
    found = _unprefixed(found, expected or tables.vit_paths(found.tensors))
    if "fc_norm.weight" in found.tensors and card.model and "global_pool" in resolve(card.model, {}):
        card = dataclasses.replace(card, arguments={"global_pool": "avg", **card.arguments})
        expected = shapes(network_of(card, found.where))
    paths = list(expected) if card.model else tables.vit_paths(found.tensors)
    scheme = found.scheme or tables.best_scheme(found.tensors, paths)
    there = [path for path in paths if all(name in found.tensors for name in scheme.names(path))]
    if not there and not card.model:
        raise UserError(
            f"{found.where}: holds nothing of a Vision Transformer, but {tables.family(found.tensors)}; "
            f"give the name of the model, if it is one of those here"
        )
    sizes = tables.shapes(found.tensors, scheme, there)
    if not card.model:
        expected = sizes
    elif inferred := {name: value for name, value in _inferred(card, sizes).items() if name not in card.arguments}:
        card = dataclasses.replace(card, arguments={**inferred, **card.arguments})
        expected = shapes(network_of(card, found.where))
    check_names(found, scheme, expected, card.model or "a Vision Transformer")
    card = dataclasses.replace(card, class_names=_class_names(found, card, expected))
    return Weights(tables.gather(found.tensors, scheme, expected), card)


def _unprefixed(found: Found, paths: Collection[str]) -> Found:
    """Without what stands in front of all names of a network that was saved as part of another module.

    Raises:
        UserError: that module has tensors beside the network, and so may make something else of it.
    """
    if found.scheme:
        return found
    prefix, _ = tables.best_fit(found.tensors, paths)
    beside = [name for name in found.tensors if not name.startswith(prefix)]
    if beside:
        raise UserError(
            f"{found.where}: has a network under {prefix!r} and {len(beside)} tensors beside it: "
            f"{', '.join(ranges(beside))}; save the state_dict() of the network alone"
        )
    return dataclasses.replace(found, tensors={name.removeprefix(prefix): v for name, v in found.tensors.items()})


def _complete(weights: Weights) -> Weights:
    """With the registry's preprocessing where the weights do not tell theirs."""
    if not weights.card.model or weights.card.preprocessing is not None:
        return weights
    preprocessing = entry(weights.card.model).preprocessing
    return Weights(weights.variables, dataclasses.replace(weights.card, preprocessing=preprocessing))


def _class_names(found: Found, card: Card, expected: tables.Shapes) -> tuple[str, ...]:
    """The card's, or ImageNet's where the weights were published for it; `UserError` where the head has not as many."""
    classes = classes_of(expected)
    if card.class_names and classes and len(card.class_names) != classes:
        raise UserError(
            f"{found.where}: names {len(card.class_names)} classes, its head has {classes}; mend the card in it"
        )
    return card.class_names or (WNIDS if found.imagenet and classes == len(WNIDS) else ())


@overload
def load_weights(model: str | Path, *, ema: bool | None = None) -> Network: ...


@overload
def load_weights(model: M, path: str | Path, *, ema: bool | None = None) -> M: ...


def load_weights(model: M | str | Path, path: str | Path = "", *, ema: bool | None = None) -> M | Network:
    """The model with the weights that `path` names, in the model's own dtypes: `load_weights(model, "runs/mine")`.

    With weights alone, `load_weights("runs/mine")`, the model that they are of, in float32.

    Args:
        model: concrete, or abstract as `nnx.eval_shape` gives it.
        path: anything that `read_weights` takes, but "pretrained".
        ema: see `read_weights`.

    Raises:
        UserError: as `read_weights`; the weights have to be those of this very architecture.
    """
    if isinstance(model, str | Path):
        if path:
            raise UserError(
                f"load_weights: {model} is no module; give one, as create_model makes them, or {path} alone"
            )
        return open_model(model, ema=ema)[0]
    expected = flatten(model)
    found = _unprefixed(find(str(path), "", ema), expected)
    scheme = found.scheme or tables.best_scheme(found.tensors, expected)
    mend = "build the model that it is of, or let load_weights(path) do so"
    check_names(dataclasses.replace(found, card=Card()), scheme, shapes(model), "this model", mend=mend)
    try:
        notes = surgery.check_function(found.card, model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for note in notes:
        logging.info("%s: %s", path, note)
    variables = tables.gather(found.tensors, scheme, expected)
    return bind(model, {name: jnp.asarray(value, expected[name].dtype) for name, value in variables.items()})


def open_model(spec: str | Path, *, model: str = "", ema: bool | None = None, **overrides: Any) -> tuple[Network, Card]:
    """The model that weights are of, with them in float32, and their card, complete.

    Args:
        spec, ema: see `read_weights`.
        model: the registry's name, where the weights do not tell; must fit them where they do.
        **overrides: arguments of `create_model`. Another `image_size` resizes the position embedding, `num_classes=0`
            leaves the heads out. How to compute what the network does not have, such as `attention`, is passed over.

    Raises:
        UserError: as `read_weights`; the model is not known; or the overrides ask for what the weights do not have.
    """
    weights = read_named(spec, model=model, ema=ema)
    known = resolve(weights.card.model, {})
    chosen = {name: value for name, value in overrides.items() if name in known or name not in RUNTIME}
    card = dataclasses.replace(weights.card, arguments={**weights.card.arguments, **chosen})
    abstract: Any = network_of(card, str(spec))
    try:
        variables, _ = surgery.adapt(weights, abstract)
    except UserError as error:
        raise UserError(f"{spec}: {error}") from error
    bound = bind(abstract, {path: jnp.asarray(value, jnp.float32) for path, value in variables.items()})
    complete = dataclasses.replace(
        card,
        arguments={name: value for name, value in card.arguments.items() if name not in RUNTIME},
        class_names=card.class_names if abstract.num_classes else (),
    )
    return bound, complete


def create_model(name: str, *, rngs: nnx.Rngs | None = None, pretrained: bool = False, **overrides: Any) -> nnx.Module:
    """Builds a model, with fresh or with its published weights.

    Args:
        name: one of `list_models()`, also with the tag of its published weights, `deit_tiny_patch16_224.fb_in1k`.
        rngs: draws the weights; of a pretrained model those of the heads, where `num_classes` is not what they have.
            Default: `nnx.Rngs(0)`.
        pretrained: see `deit_jax.weights.hub.pretrained` for where the weights are looked for. The position embedding
            is resized for another `image_size`.
        **overrides: replace the model's own arguments, e.g. `num_classes=10`; see its class.

    Raises:
        UserError: an unknown model or override; published weights that are not within reach or do not fit.
        ValueError: the arguments contradict each other.
    """
    name, rngs = untagged(name), nnx.Rngs(0) if rngs is None else rngs
    if not pretrained:
        return models.create_model(name, rngs=rngs, **overrides)
    abstract = abstract_model(name, **overrides)

    def fresh(paths: Sequence[str]) -> Mapping[str, Array]:
        drawn = flatten(models.create_model(name, rngs=rngs, **overrides))
        return {path: drawn[path] for path in paths}

    variables, notes = surgery.adapt(read_weights("pretrained", model=name), abstract, fresh=fresh)
    for note in notes:
        logging.info("%s: %s", name, note)
    return bind(abstract, {path: jax.device_put(value) for path, value in variables.items()})


def _rename(weights: Weights, model: str, where: str) -> Weights:
    """The weights as those of `model`, which they have to fit: models differ in more than variables.

    Raises:
        UserError: they do not, or `model` is "".
    """
    if not model:
        names = " or ".join(fitting(weights.variables)) or "none here"
        raise UserError(f"{where}: does not say which model it is of; give its name (by its shapes: {names})")
    if model == weights.card.model:
        return weights
    own, theirs = resolve(model, {}), resolve(weights.card.model, weights.card.arguments)
    loose = ("image_size", "num_classes", "norm_eps", "dist_head")
    arguments = {
        name: theirs[name] for name in loose if name in own.keys() & theirs.keys() and own[name] != theirs[name]
    }
    card = dataclasses.replace(weights.card, model=model, arguments=arguments)
    network = network_of(card, where)
    check_names(Found(where, dict(weights.variables), Card()), tables.OURS, shapes(network), model)
    others = surgery.differences(network_of(weights.card, where), network)
    if others:
        raise UserError(
            f"{where}: is not {model}'s, but {weights.card.model}'s: {'; '.join(others)}; leave the name out"
        )
    return Weights(weights.variables, card)


def _inferred(card: Card, sizes: tables.Shapes) -> dict[str, Any]:
    """`num_classes` and a square `image_size` by the head and the position embedding, where the model's are others."""
    resolved = resolve(card.model, card.arguments)
    inferred: dict[str, Any] = {"num_classes": classes_of(sizes)}
    if len(sizes.get("pos_embed", ())) == 3:
        prefix = (resolved["class_token"] + resolved["distilled"]) * resolved["class_position"]
        patches = sizes["pos_embed"][1] - prefix
        side = math.isqrt(max(patches, 0))
        if side**2 == patches > 0:
            inferred["image_size"] = side * resolved["patch_size"]
    return {name: value for name, value in inferred.items() if value != resolved[name]}
