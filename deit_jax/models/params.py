"""A model's variables as one flat dict `{dotted path: array}`, and back.

The dict is what train state, checkpoints, rules and weight conversion see; its names are timm's with Flax's leaf names
(`blocks.0.attn.qkv.kernel`). `bind` is the only way back into a module.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from deit_jax.base.names import listing
from deit_jax.models.keys import Keys
from deit_jax.models.registry import create_model, entry, resolve

M = TypeVar("M", bound=nnx.Module)


_ABSTRACT: dict[str, nnx.Module] = {}


def abstract_model(name: str, **overrides: Any) -> nnx.Module:
    """`create_model` without computing anything: every variable is a `jax.ShapeDtypeStruct`.

    A model is made once in a process: it is a value, which nobody changes.
    """
    resolved = resolve(name, overrides) | {"dtype": jnp.dtype(overrides.get("dtype", jnp.float32)).name}
    key = repr((entry(name).build, sorted(resolved.items())))
    if key not in _ABSTRACT:
        _ABSTRACT[key] = nnx.eval_shape(lambda: create_model(name, rngs=Keys(jax.random.key(0)), **overrides))
    return _ABSTRACT[key]


def retype(abstract: M, dtypes: Mapping[str, Any]) -> M:
    """An abstract model with some variables, by dotted path, in another type.

    Raises:
        ValueError: it has no variable of such a name.
    """
    graphdef, state = nnx.split(abstract)
    if unknown := sorted(dtypes.keys() - flatten(abstract).keys()):
        raise ValueError(f"the model has no {', '.join(unknown)}")
    variables = [
        (path, variable.replace(jax.ShapeDtypeStruct(variable.shape, dtypes.get(_dotted(path), variable.dtype))))
        for path, variable in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(variables))


def flatten(model: nnx.Module, kind: Any = nnx.Variable) -> dict[str, Any]:
    """`{dotted path: value}` of a model's variables.

    Args:
        model: concrete or abstract.
        kind: which variables: a class such as `nnx.Param` or `nnx.BatchStat`, or another NNX filter.
    """
    return {_dotted(path): variable.get_value() for path, variable in nnx.to_flat_state(nnx.state(model, kind))}


def bind(abstract: M, variables: Mapping[str, jax.Array]) -> M:
    """The model with these variables; usable inside `jax.jit` and `jax.grad`.

    Args:
        abstract: a model of the same architecture, such as `abstract_model` gives.
        variables: a value for each of its variables, as `flatten` names them.

    Raises:
        ValueError: the names, a shape or a dtype differ from the abstract model's; all are listed.
    """
    graphdef, state = nnx.split(abstract)
    # Values are put where the abstract model has its own, path by path: merging a dict would match leaves by position.
    slots = {_dotted(path): (path, variable) for path, variable in nnx.to_flat_state(state)}
    check_fit(flatten(abstract), variables)
    filled = [(path, variable.replace(variables[name])) for name, (path, variable) in slots.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


def check_fit(expected: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises `ValueError` in one line with all names, shapes and dtypes that are not the expected ones."""
    said = listing(
        {
            "missing": {name: "" for name in expected if name not in given},
            "unexpected": {name: "" for name in given if name not in expected},
            "of another shape or type": {
                name: f"{_form(given[name])} instead of {_form(expected[name])}"
                for name in expected
                if name in given and _form(given[name]) != _form(expected[name])
            },
        }
    )
    if said:
        raise ValueError(f"the variables do not fit the model: {said}")


def _form(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}"


def _dotted(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
