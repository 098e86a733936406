#!/usr/bin/env bash
# Orbax refuses to restore the arrays of an optimizer where optax's chain has a part more or less that has no arrays: of
# two LAMBs, with weight decay and without, where there is no trust ratio to keep, the states hold the same arrays by the
# same paths, and the empty state of one differs from that of the other. So a change of a number in a config, or an
# update of optax that names an empty state anew, makes whole checkpoints unreadable by StandardRestore, with an error
# that is as one of damage. Who writes an optimizer keeps the form of its state the same for all values of its numbers.
# Seen with orbax-checkpoint 0.12.8, optax 0.2.8, jax 0.10.2:
#   arrays by path are equal: True
#   with the same chain: restored
#   with the other: ValueError: User-provided restore item and on-disk value metadata tree structures do not match
# Exits 0 while this is so. Needs python3.11 or newer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 optax==0.2.8 orbax-checkpoint==0.12.8
FOLDER=$folder "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON' >"$folder/seen"
import os

import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp

params = {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(4)}
decays = {"kernel": True, "bias": False}
adam = [optax.clip_by_global_norm(1.0), optax.scale_by_adam()]
without = optax.chain(*adam, optax.identity()).init(params)
with_decay = optax.chain(*adam, optax.masked(optax.scale_by_trust_ratio(), decays)).init(params)


def arrays(state):
    return [(jax.tree_util.keystr(path), leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(state)]


print("arrays by path are equal:", arrays(without) == arrays(with_decay))
path = os.path.join(os.environ["FOLDER"], "state")
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, with_decay)
    checkpointer.wait_until_finished()
    for name, target in (("with the same chain", with_decay), ("with the other", without)):
        try:
            checkpointer.restore(path, target)
            print(f"{name}: restored")
        except ValueError as error:
            print(f"{name}: ValueError: {str(error).partition(':')[0]}")
PYTHON
cat "$folder/seen"
printf '%s\n' "arrays by path are equal: True" "with the same chain: restored" \
  "with the other: ValueError: User-provided restore item and on-disk value metadata tree structures do not match" |
  cmp -s - "$folder/seen"
