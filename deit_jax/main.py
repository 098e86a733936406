"""Trains or evaluates what a config describes.

    python -m deit_jax.main --config=configs/quickstart.py [--workdir=DIR] [--mode=train|evaluate]
        [--config.section.field=value ...]

Exit status: 0 when done; 2 for a mistake in what was given, told in one line; 75 when interrupted with the state
saved, so that the same command goes on.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from deit_jax import cli
from deit_jax.base.errors import UserError
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.run.interrupt import EXIT_INTERRUPTED, Interrupted


def main(argv: Sequence[str]) -> int:
    """Parses the command line, resolves the config, and runs the mode; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("workdir", None, "folder of the run (default: runs/<config name>)", flag_values=values)
        flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "what to do", flag_values=values)

    given, config_dict, name = cli.parse_with_config(__doc__ or "", define, argv)
    if "://" in (given.workdir or ""):
        raise UserError(f"--workdir: {given.workdir} is a URL; name a folder of this machine")
    workdir = Path(given.workdir or f"runs/{name}").absolute()
    config = for_platform(resolve(config_dict), cli.start_jax())
    # Not at the top: --help and a mistake in the command line or the config do not wait for them.
    import jax

    from deit_jax.run.evaluate import evaluate
    from deit_jax.run.metrics import finite
    from deit_jax.run.train import train

    try:
        result = {"train": train, "evaluate": evaluate}[given.mode](config, workdir)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return EXIT_INTERRUPTED
    if jax.process_index() == 0:
        print(json.dumps(finite(result)))
    return 0


if __name__ == "__main__":
    cli.run(main)
