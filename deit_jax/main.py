"""Trains or evaluates what a config describes, or runs a training step again that was not finite.

    python -m deit_jax.main --config=configs/quickstart.py [--workdir=DIR|gs://BUCKET/NAME]
        [--mode=train|evaluate|replay --step=N]
        [--config.section.field=value ...]

Exit status: 0 when done; 2 for a mistake in what was given, told in one line; 75 when the same command goes on later:
interrupted with the state saved, the data out of reach, or another run in the workdir.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from deit_jax import cli
from deit_jax.base.errors import UserError
from deit_jax.base.storage import place
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.run.workdir import Workdir, own


def main(argv: Sequence[str]) -> int:
    """Parses the command line, resolves the config, and runs the mode; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(
            "workdir", None, "folder of the run, or gs://BUCKET/NAME (default: runs/<config name>)", flag_values=values
        )
        flags.DEFINE_enum("mode", "train", ["train", "evaluate", "replay"], "what to do", flag_values=values)
        flags.DEFINE_integer("step", None, "of --mode=replay: a step in failures/ of the workdir", flag_values=values)
        cli.define_hosts(values)

    given, config_dict, name = cli.parse_with_config(__doc__ or "", define, argv)
    root = place(given.workdir or f"runs/{name}", "--workdir")
    config = resolve(config_dict)
    if given.step is not None and given.mode != "replay":
        raise UserError("--step: is for --mode=replay alone; leave it out")
    with contextlib.ExitStack() as stack:
        # Before all that takes time: of two runs in a workdir one is to end at once.
        first = cli.start_hosts(given, config)
        workdir = None
        if given.mode == "train":
            workdir = stack.enter_context(own(root)) if first else Workdir(root)
        platform = cli.start_jax()
        if given.mode == "replay":
            from deit_jax.run.replay import replay

            _tell(replay(config, root, given.step, platform))
            return 0
        config = for_platform(config, platform)
        # Not at the top: --help and a mistake in the command line or the config do not wait for them.
        from deit_jax.run.evaluate import evaluate
        from deit_jax.run.train import Unsaved, train_in

        try:
            _tell(train_in(config, workdir) if workdir else evaluate(config, root))
        except Unsaved as error:
            _tell(error.result)
            raise
    return 0


def _tell(result: Mapping[str, Any]) -> None:
    import jax

    from deit_jax.run.metrics import finite

    if jax.process_index() == 0:
        print(json.dumps(finite(result)), flush=True)


if __name__ == "__main__":
    cli.run(main)
