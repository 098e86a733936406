#!/usr/bin/env bash
# Orbax's AsyncCheckpointer lets the processes of a run meet by a sum over their DEVICES, an operation that every process
# has to start in the same order as all others that devices do together. So a save that one process gave up (its disk is
# full, its bucket does not answer) is no matter of the saver alone: what still waits there pairs with the next step of
# training in the other processes. Named, as active_processes, the same processes meet by JAX's service instead, by the
# barrier's name and with its own time limit. That is documented as a choice of processes, and all of them sounds like
# None, the default; it is not the same.
# Seen with orbax-checkpoint 0.12.8, jax 0.10.2 and two processes of one CPU device, in one save:
#   by default: meets by the devices
#   with active_processes={0, 1}: meets by the service alone
# Exits 0 while this is so. Needs python3.11 or later.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q orbax-checkpoint==0.12.8 jax==0.10.2
export JAX_PLATFORMS=cpu
cat >"$folder/save.py" <<'PYTHON'
import sys
import jax, jax.numpy as jnp, orbax.checkpoint as ocp
from jax.experimental import multihost_utils

folder, port, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
by_devices = []
sync_global_devices = multihost_utils.sync_global_devices


def counted(name):
    by_devices.append(name)
    sync_global_devices(name)


multihost_utils.sync_global_devices = counted
everywhere = jax.sharding.NamedSharding(jax.make_mesh((2,), ("data",)), jax.sharding.PartitionSpec())
tree = {"bias": jax.jit(lambda: jnp.ones(48), out_shardings=everywhere)()}


def save(name, options):
    by_devices.clear()
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    with ocp.AsyncCheckpointer(handler, multiprocessing_options=options) as saver:
        saver.save(f"{folder}/{name}", args=ocp.args.PyTreeSave(tree))
        saver.wait_until_finished()
    return "meets by the devices" if by_devices else "meets by the service alone"


print("by default:", save("default", ocp.options.MultiprocessingOptions()))
named = ocp.options.MultiprocessingOptions(active_processes={0, 1}, barrier_sync_key_prefix="named")
print("with active_processes={0, 1}:", save("named", named))
PYTHON
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
timeout 300 "$folder/venv/bin/python" "$folder/save.py" "$folder" "$port" 1 >/dev/null 2>&1 &
timeout 300 "$folder/venv/bin/python" "$folder/save.py" "$folder" "$port" 0 >"$folder/output" 2>"$folder/errors" ||
  { cat "$folder/errors"; exit 1; }
wait
grep meets "$folder/output" | tee "$folder/seen" # gloo speaks there, too
printf '%s\n' "by default: meets by the devices" "with active_processes={0, 1}: meets by the service alone" |
  cmp -s - "$folder/seen"
