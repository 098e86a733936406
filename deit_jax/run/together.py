"""What the processes of a run compare before they begin."""

import time

from deit_jax.base.errors import UserError
from deit_jax.data import Source
from deit_jax.parallel import hosts
from deit_jax.run.workdir import Workdir

SEEN = 60  # seconds after which a file that one host wrote is seen by all that share its folder


def require_together(workdir: Workdir, source: Source, held_out: Source) -> None:
    """Raises `UserError`, in all processes, unless they share the workdir and have the same data."""
    wanted, *_ = hosts.gather(workdir.owner())
    until = time.monotonic() + SEEN
    while (seen := workdir.owner()) != wanted and time.monotonic() < until:
        time.sleep(0.5)
    same = hosts.gather(str(seen == wanted))
    if "False" in same:
        raise UserError(
            f"--workdir: {hosts.name(same.index('False'))} does not see what {hosts.name(0)} writes into "
            f"{workdir.root}; name a folder that all of them share"
        )
    data = {"train_split": source, "eval_split": held_out}
    hosts.require_same({f"the data of config.data.{name}": split.fingerprint for name, split in data.items()})
