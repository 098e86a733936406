"""Whether weights are those of a network, and what helps where they are not."""

import re
from collections.abc import Mapping, Set
from typing import Any

from flax import nnx

from deit_jax import models
from deit_jax.base.errors import UserError
from deit_jax.models import abstract_model, flatten, resolve
from deit_jax.weights import files, tables
from deit_jax.weights.card import Card
from deit_jax.weights.places import Found


def shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Of every variable, by its path."""
    return {path: value.shape for path, value in flatten(model).items()}


def network_of(card: Card, where: str) -> nnx.Module:
    """The abstract network that a card tells of; `UserError` where it tells of none."""
    try:
        return abstract_model(card.model, **card.arguments)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    except Exception as error:  # a card's nonsense makes the constructors run into anything
        reason = str(error).partition("\n")[0]
        raise UserError(f"{where}: {card.model} cannot be built with {dict(card.arguments)}: {reason}") from error


def check_names(
    found: Found, scheme: tables.Scheme, expected: tables.Shapes, of: str, *, mend: str = "name the model that it is of"
) -> None:
    """`UserError` with all that keeps the tensors found from being those of a network, and the mend.

    Args:
        expected: the shapes of its variables.
        of: whose they are, in words.
        mend: where it may be another network.
    """
    problems = tables.misfit(found.tensors, scheme, expected)
    if problems:
        mend = _mend(found, {name for path in expected for name in scheme.names(path)}, mend)
        raise UserError(f"{found.where}: is not {of}'s ({scheme.title}): {problems}; {mend}")


def _mend(found: Found, wanted: Set[str], mend: str) -> str:
    """What to do about tensors that are not those `wanted`: the given `mend`, where it may be another model's."""
    if re.search(r"-(\d{5})-of-(?!\1)\d{5}\.", found.where):
        return f"it is one of several files: name their folder, or the *{files.INDEX} beside it"
    if not wanted & found.tensors.keys():
        return "save the state_dict() of the network alone, under timm's or transformers' names"
    if found.card.model:
        return f"its config or card tells of {found.card.model}, so mend that, or take the weights that go with it"
    return f"{mend}, or save it without what is extra" if wanted <= found.tensors.keys() else mend


def fitting(variables: Mapping[str, Any]) -> list[str]:
    """Models of the registry that weights of these shapes could be of."""
    patches = variables.get("patch_embed.proj.kernel")
    traits = {
        "width": 0 if patches is None else patches.shape[-1],
        "depth": sum(path.endswith("norm1.scale") for path in variables),
        "patch_size": 0 if patches is None else patches.shape[0],
        "distilled": "dist_token" in variables,
        "positions": "learned" if "pos_embed" in variables else "sincos2d",
    }
    scaled = "blocks.0.ls1.gamma" in variables
    resolved = {name: resolve(name, {}) for name in models.list_models()}
    return [
        name
        for name, arguments in resolved.items()
        if traits.items() <= arguments.items() and (arguments["layer_scale"] > 0) == scaled
    ]
