"""DeiT in pure JAX / Flax NNX: data-efficient image Transformers."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deit_jax.config import recipes
    from deit_jax.models import list_models
    from deit_jax.weights import create_model, load_weights

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "list_models", "load_weights", "recipes"]

# Where the names above are. They are imported when they are asked for, and JAX with them: so `deit_jax.main`, which
# imports this file first, tells its help and a mistake in a flag at once.
_HOMES = {"create_model": "weights", "list_models": "models", "load_weights": "weights", "recipes": "config.recipes"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"deit_jax.{_HOMES[name]}")
    return getattr(home, name, home)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
