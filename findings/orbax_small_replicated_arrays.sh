#!/usr/bin/env bash
# Orbax writes an array that all devices hold alike in as many pieces as there are devices, a bias of 192 bytes too: 24
# bytes each. The pieces are cut by an operation of their own for each device, in the call of AsyncCheckpointer.save that
# training waits for; of a network's 144 small arrays on eight CPU devices it took 0.3 s instead of 0.03 s. By default
# there is no least size. ArrayHandler has one, min_slice_bytes_for_replica_parallel, but StandardCheckpointHandler has
# no argument that reaches it: it takes a PyTreeCheckpointHandler with a registry.
# Seen with orbax-checkpoint 0.12.8, jax 0.10.2 and eight CPU devices:
#   by default (6,)
#   with min_slice_bytes_for_replica_parallel (48,)
# Exits 0 while this is so. Needs python3.11 or later.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q orbax-checkpoint==0.12.8 jax==0.10.2
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8
"$folder/venv/bin/python" - "$folder" >"$folder/seen" 2>/dev/null <<'PYTHON'
import sys
import jax, jax.numpy as jnp, orbax.checkpoint as ocp, tensorstore

mesh = jax.make_mesh((8,), ("data",))
everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
tree = {"bias": jax.device_put(jnp.ones(48), everywhere)}


def chunk(name, handler):
    place = f"{sys.argv[1]}/{name}"
    with ocp.AsyncCheckpointer(handler) as saver:
        saver.save(place, args=ocp.args.PyTreeSave(tree))
        saver.wait_until_finished()
    store = {"driver": "ocdbt", "base": f"file://{place}/", "path": "bias/"}
    return tensorstore.open({"driver": "zarr", "kvstore": store}).result().chunk_layout.read_chunk.shape


arrays = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**14)
registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
print("by default", chunk("default", ocp.PyTreeCheckpointHandler()))
bounded = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
print("with min_slice_bytes_for_replica_parallel", chunk("bounded", bounded))
PYTHON
cat "$folder/seen"
printf '%s\n' "by default (6,)" "with min_slice_bytes_for_replica_parallel (48,)" | cmp -s - "$folder/seen"
