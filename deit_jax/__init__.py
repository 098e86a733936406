"""DeiT in pure JAX / Flax NNX: data-efficient image Transformers."""

import importlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deit_jax.base.errors import TryAgain, UserError
    from deit_jax.classifier import open
    from deit_jax.config import recipes
    from deit_jax.library import evaluate, train
    from deit_jax.models import list_models
    from deit_jax.weights import create_model, load_weights

__version__ = "0.1.0"
__all__ = [
    "TryAgain",
    "UserError",
    "__version__",
    "create_model",
    "evaluate",
    "list_models",
    "load_weights",
    "open",
    "recipes",
    "train",
]

# Where the names above are. They are imported when they are asked for, and JAX with them: so `deit_jax.main`, which
# imports this file first, tells its help and a mistake in a flag at once.
_HOMES = {
    "TryAgain": "base.errors",
    "UserError": "base.errors",
    "create_model": "weights",
    "evaluate": "library",
    "list_models": "models",
    "load_weights": "weights",
    "open": "classifier",
    "recipes": "config.recipes",
    "train": "library",
}

# While `python -m deit_jax.COMMAND` or `deit_jax COMMAND` imports what it needs, for seconds, Ctrl-C ends it without a
# traceback, and SIGTERM those that schedulers look after with the status by which they are started again. `cli.run`
# takes over.
_module = sys.orig_argv[-len(sys.argv)] if sys.argv[0] == "-m" else os.path.basename(sys.argv[0])
if _module == "deit_jax" or (sys.argv[0] == "-m" and _module.startswith("deit_jax.")):
    _command = _module.partition(".")[2] or "".join(sys.argv[1:2])
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if (
        _command in ("main", "train", "evaluate", "plan", "replay", "precompute")
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(75))


def __getattr__(name: str) -> Any:
    path = f"deit_jax.{_HOMES.get(name, name)}"  # else a room or a command, such as deit_jax.models
    try:
        home = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
    return getattr(home, name, home) if name in _HOMES else home


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
