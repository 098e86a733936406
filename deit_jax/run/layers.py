"""Which layer of a model is the first whose output is not finite: its modules watched while they are called."""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from deit_jax.models import flatten

M = TypeVar("M", bound=nnx.Module)
OWN = "model"  # what is computed between the layers of the model itself: tokens, positions, pooling


@dataclasses.dataclass(frozen=True)
class Fault:
    """What was the first not to be finite.

    Attributes:
        first: a layer, by timm's path of its parameters without their own names, or another stage of a step.
        largest_input: the largest magnitude that went into it.
        largest_parameter: of its parameters; None where it has none.
        rows: bool [batch], those in which it is not finite; None where it is of no row.
    """

    first: str
    largest_input: float
    largest_parameter: float | None = None
    rows: np.ndarray | None = None

    def among(self, part: slice, batch: int) -> "Fault":
        """The same of a whole batch, of which a part was looked at; copies of an image in it are neighbours."""
        if self.rows is None:
            return self
        found = np.zeros(batch, bool)
        found[part] = self.rows.reshape(len(found[part]), -1).any(axis=1)
        return dataclasses.replace(self, rows=found)


class Watch:
    """Looks at what goes into layers and comes out of them, in the order in which they are called, outside of `jit`.

    Attributes:
        order: the paths of the layers called.
        fault: the first; None as long as all was finite. Nothing is looked at after it.
    """

    def __init__(self) -> None:
        self.order: list[str] = []
        self.fault: Fault | None = None
        self._open: list[tuple[str, nnx.Module, Any]] = []  # layers that were called and have not returned

    def over(self, model: M, images: jax.Array) -> M:
        """The same model, which nobody else has, its layers watched; `images` is what it will be called with."""
        self._open = [(OWN, model, images)]
        for path, module in list(nnx.iter_modules(model)):
            if path and any("__call__" in vars(kind) for kind in type(module).__mro__ if kind is not object):
                module.__class__ = self._watched(type(module), ".".join(map(str, path)))
        return model

    def stage(self, name: str, given: Any, out: Any, *, rows: np.ndarray | None = None) -> None:
        """Looks at a stage of a step that is no layer.

        Args:
            given, out: arrays that went in and came out.
            rows: see `Fault`; by default those of `out`.
        """
        if self.fault is None and not finite(out):
            self.fault = Fault(name, largest(given), rows=bad_rows(out) if rows is None else rows)

    def _watched(self, kind: type[nnx.Module], path: str) -> type[nnx.Module]:
        """A class of the same name whose objects tell when they are called."""

        def call(module: Any, *given: Any, **options: Any) -> Any:
            # What is not finite before it is a layer's output was made so by the layer around.
            self._look(given)
            self.order.append(path)
            self._open.append((path, module, given))
            out = kind.__call__(module, *given, **options)
            self._look(out)
            self._open.pop()
            return out

        return type(kind.__name__, (kind,), {"__call__": call})

    def _look(self, values: Any) -> None:
        if self.fault is not None or finite(values):
            return
        path, module, given = self._open[-1]
        parameters = flatten(module, nnx.Param)
        self.fault = Fault(path, largest(given), largest(parameters) if parameters else None, bad_rows(values))


def floats(values: Any) -> Iterable[jax.Array]:
    """The floating-point arrays among them."""
    return [x for x in jax.tree.leaves(values) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)]


def finite(values: Any) -> bool:
    """Whether all of them are."""
    return all(bool(jnp.isfinite(x).all()) for x in floats(values))


def largest(values: Any) -> float:
    """The largest magnitude among them; NaN where one is."""
    return float(np.max([float(jnp.abs(x).max()) for x in floats(values)], initial=0.0))


def bad_rows(values: Any) -> np.ndarray | None:
    """bool [batch], in which rows of arrays, whose first axis is the batch, not all is finite; None of scalars."""
    arrays = [x for x in floats(values) if x.ndim and not finite(x)]  # others may have another first axis
    if not arrays:
        return None
    return np.any([np.asarray(~jnp.isfinite(x).reshape(len(x), -1).all(axis=1)) for x in arrays], axis=0)
