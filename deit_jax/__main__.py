"""The command `deit_jax`: `deit_jax train quickstart`, `deit_jax predict runs/quickstart photo.jpg`.

    deit_jax COMMAND [...]

    train CONFIG [--workdir=DIR]     trains, or goes on; CONFIG is a file, or the name of one that is packaged
    evaluate RUN                     the best checkpoint of a run
    plan CONFIG [--topology=...]     what a training takes, without it
    replay RUN --step=N              looks into a step whose loss was not finite
    predict WEIGHTS IMAGE...         classes and probabilities of photos
    attention WEIGHTS IMAGE...       where the network looks
    export WEIGHTS --output=DIR      a program to serve without this package
    report RUN                       a page of a run: curves, classes, calibration, the worst mistakes
    convert SRC DST                  weights from one format to another
    precompute CONFIG --output=DIR   records what a teacher says
    preview CONFIG                   the images that a training will see
    benchmark train|infer|data       images a second

`deit_jax COMMAND --help` tells the rest. Each is a module as well, `python -m deit_jax.predict`; the first four are
modes of `deit_jax.main`.
"""

import importlib
import sys

from deit_jax import cli
from deit_jax.base.errors import UserError, nearest

# The module of a command, and what its first argument is if that is no flag.
COMMANDS = {
    "train": ("main", "config"),
    "evaluate": ("main", "workdir"),
    "plan": ("main", "config"),
    "replay": ("main", "workdir"),
    "predict": ("predict", ""),
    "attention": ("attention", ""),
    "export": ("export", ""),
    "report": ("report", ""),
    "convert": ("convert", ""),
    "precompute": ("precompute", "config"),
    "preview": ("preview", "config"),
    "benchmark": ("benchmark", ""),
}


def main() -> None:
    """Runs the command that the process's arguments name, and ends the process."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in cli.HELP:
        print((__doc__ or "").strip())
        return
    if name not in COMMANDS:
        cli.run(lambda argv: _unknown(name))
    module, first = COMMANDS[name]
    if first and rest and not rest[0].startswith("-"):
        rest[0] = f"--{first}={rest[0]}"
    mode = [f"--mode={name}"] if module == "main" else []
    sys.argv = [f"deit_jax {name}", *mode, *rest]
    command = importlib.import_module(f"deit_jax.{module}")
    cli.run(command.main, goes_on=module in ("main", "precompute"))


def _unknown(name: str) -> int:
    raise UserError(f"{name}: unknown command{nearest(name, COMMANDS)}")


if __name__ == "__main__":
    main()
