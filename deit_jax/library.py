"""Training and evaluating from Python, as `deit_jax.main` does: `deit_jax.train(config, "runs/mine")`."""

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from deit_jax import cli
from deit_jax.base.errors import TryAgain
from deit_jax.base.storage import Place, place
from deit_jax.config.given import load_config
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.config.schema import Config
from deit_jax.run import evaluate as evaluation
from deit_jax.run import train as training
from deit_jax.run.interrupt import Interrupted

Given: TypeAlias = Config | ConfigDict | Mapping[str, Any] | str | os.PathLike[str]


def train(config: Given, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains what a config describes; goes on where the run in `workdir` stopped.

    Args:
        config: what a recipe gives (`deit_jax.recipes`), a config that is resolved, or the path of a config file, as
            `--config` takes it.
        workdir: a folder, which need not exist, or gs://BUCKET/NAME.

    Returns:
        What the command prints last: `top1`, `top5` (percent), `loss` (nats) and `examples` of the best `step`, the
        same under `ema` where there is an average, and the `last` step's top-1, among others.

    Raises:
        UserError: the config, the data and the workdir do not go together; the line is what the command prints.
        TryAgain: the same call goes on: it was interrupted, or another run has the workdir.
    """
    try:
        return training.train(_resolved(config), _place(workdir))
    except Interrupted as error:
        raise TryAgain(str(error)) from error


def evaluate(config: Given | None, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Evaluates the best checkpoint of a run.

    Args:
        config: as of `train`; None for the run's own.
        workdir: of the run.

    Returns:
        What `train` does, but for the run as a whole.

    Raises:
        UserError: as `train`.
    """
    own = f"{os.fspath(workdir)}/config.json"
    return evaluation.evaluate(_resolved(own if config is None else config), _place(workdir))


def _resolved(config: Given) -> Config:
    if isinstance(config, str | os.PathLike):
        config = load_config(os.fspath(config))
    return for_platform(config if isinstance(config, Config) else resolve(config), cli.start_jax())


def _place(workdir: str | os.PathLike[str]) -> Place:
    return place(os.fspath(workdir), "workdir")
