"""Trains or evaluates what a config describes, tells what training it takes, or looks into a step that failed.

    python -m deit_jax.main --config=configs/quickstart.py [--workdir=DIR|gs://BUCKET/NAME]
        [--config.section.field=value ...]
    python -m deit_jax.main --mode=evaluate --workdir=DIR [--config.section.field=value ...]
    python -m deit_jax.main --mode=replay --workdir=DIR --step=N
    python -m deit_jax.main --mode=plan --config=... [--topology=v5e:16x16] [--slices=2] [--utilisation=0.4]

A run has its config in its workdir, DIR/config.json, which --config takes as well; to evaluate it or to replay a step
none has to be named.

A plan allocates nothing of the run, and writes nothing. With --topology it compiles the training step for these chips,
of which none need be there: docs/planning.md. A replay runs a step again that was not finite: docs/training.md.

Exit status: 0 when done; 2 for a mistake in what was given, told in one line; 75 when the same command goes on later:
interrupted, in training with the state saved, the data out of reach, or another run in the workdir.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from deit_jax import cli
from deit_jax.base.errors import UserError
from deit_jax.base.storage import Place, place
from deit_jax.config.given import take_flag
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.config.schema import Config
from deit_jax.run.workdir import own

FLAGS_OF = {"replay": ("step",), "plan": ("topology", "slices", "utilisation")}  # of one mode alone


def main(argv: Sequence[str]) -> int:
    """Parses the command line, resolves the config, and runs the mode; returns the exit status."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string(
            "workdir", None, "folder of the run, or gs://BUCKET/NAME (default: runs/<config name>)", flag_values=values
        )
        flags.DEFINE_enum("mode", "train", ["train", "evaluate", "plan", "replay"], "what to do", flag_values=values)
        flags.DEFINE_integer("step", None, "a step in failures/ of the workdir, to replay", flag_values=values)
        flags.DEFINE_string("topology", "", "chips to plan for, such as v5e:16x16 or h100:8", flag_values=values)
        flags.DEFINE_integer("slices", 1, "of the topology, over the data-centre network", 1, flag_values=values)
        flags.DEFINE_float("utilisation", None, "of the chips' peak, to plan with", flag_values=values)
        cli.define_hosts(values)

    given, config_dict, name = cli.parse_with_config(__doc__ or "", define, argv, _config_of_run(argv))
    root = place(given.workdir or f"runs/{name}", "--workdir")
    config = resolve(config_dict)
    for mode, names in FLAGS_OF.items():
        for name in names if given.mode != mode else ():
            if given[name].present:
                raise UserError(f"--{name}: is for --mode={mode}; leave it out, or set --mode={mode}")
    if given.mode == "plan":
        return _plan(config, root, given)
    with contextlib.ExitStack() as stack:
        # Before all that takes time: of two runs in a workdir one is to end at once.
        first = cli.start_hosts(given, config)
        workdir = None
        if given.mode == "train":
            workdir = stack.enter_context(own(root, first=first))
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


def _config_of_run(argv: Sequence[str]) -> str:
    """The config of the run in `--workdir`, for modes that look at what is there; "" for others."""
    mode, workdir = (take_flag(argv, name)[0] for name in ("mode", "workdir"))
    return f"{workdir.rstrip('/')}/config.json" if workdir and mode in ("evaluate", "replay") else ""


def _plan(config: Config, workdir: Place, given: flags.FlagValues) -> int:
    import jax

    from deit_jax.parallel.topologies import find_topology
    from deit_jax.run.plan import make_plan

    topology, share = None, given.utilisation
    if share is not None and not 0 < share <= 1:
        raise UserError(f"--utilisation: is {share}, should be above 0 and at most 1")
    if given.topology:
        topology = find_topology(given.topology, given.slices)
        jax.config.update("jax_platforms", "cpu")  # what compiles for other machines needs none of this one's chips
    elif given.slices > 1:
        raise UserError("--slices: are those of a topology; name one, such as --topology=v5e:4x4")
    here = cli.start_jax()
    jax.config.update("jax_enable_compilation_cache", False)  # what is compiled for other machines is not read again
    config = for_platform(config, topology.chip.platform if topology else here)
    print(json.dumps(make_plan(config, workdir, utilisation=share, topology=topology)), flush=True)
    return 0


def _tell(result: Mapping[str, Any]) -> None:
    from deit_jax.parallel import hosts
    from deit_jax.run.metrics import finite

    if hosts.index() == 0:
        print(json.dumps(finite(result)), flush=True)


if __name__ == "__main__":
    cli.run(main, goes_on=True)
