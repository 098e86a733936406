"""What the processes of a run compare before they begin."""

import functools
import secrets
import time

import numpy as np

from deit_jax.base.errors import UserError, alike
from deit_jax.base.storage import Place
from deit_jax.base.threads import map_in_threads
from deit_jax.data import Source, checksum
from deit_jax.parallel import hosts

LOOKED_AT = 8  # records of a split, from its first to its last
SEEN = 60  # seconds after which a file that one host wrote is seen by all that share its folder


def require_shared(folder: Place, flag: str) -> None:
    """Raises `UserError`, in all processes, unless the folder that a flag names is the same for all of them."""
    if not hosts.several():
        return
    name, *_ = hosts.gather(f".seen-{secrets.token_hex(8)}")
    if hosts.index() == 0:
        (folder / name).write_bytes(b"")
    hosts.gather("written")
    try:
        require_seen(folder / name, flag)
    finally:
        if hosts.index() == 0:
            (folder / name).unlink()


def require_seen(path: Place, flag: str) -> None:
    """Raises `UserError`, in all processes, unless all see what the first one has in the folder that a flag names."""
    if not hosts.several():
        return
    until = time.monotonic() + SEEN
    while not (seen := path.exists()) and time.monotonic() < until:
        time.sleep(0.5)
    answers = hosts.gather(str(seen))
    if "False" in answers:
        stranger = hosts.name(answers.index("False"))
        line = f"{flag}: {stranger} does not see what {hosts.name(0)} has in {path.parent}; name a place that all share"
        raise alike(UserError(line))


def require_same_data(**splits: Source) -> None:
    """Raises `UserError`, in all processes, unless they have opened the same splits of `config.data`.

    Of a few records they compare what is in them, too: a copy of before has the same names.
    """
    if not hosts.several():
        return
    hosts.require_same({f"the data of config.data.{name}": split.fingerprint for name, split in splits.items()})
    for field, split in splits.items():
        chosen = np.linspace(0, len(split) - 1, min(LOOKED_AT, len(split))).astype(int).tolist()
        content = map_in_threads(LOOKED_AT, functools.partial(checksum, split), chosen)
        facts = {f"config.data.{field}: {split.name(i)}": told for i, told in zip(chosen, content, strict=True)}
        hosts.require_same(facts)
