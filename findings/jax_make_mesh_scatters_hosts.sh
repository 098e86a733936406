#!/usr/bin/env bash
# On a TPU v5e of 4 x 4 chips, jax.make_mesh((16,), ...) does not put the chips of a host next to one another: it goes
# round a ring through the torus, and a host has 2 x 2 chips. So of a batch that is cut over that axis a host's rows are
# not consecutive: the first one's are 0, 1, 6 and 15. A program that lets each host read one slice of a batch, and hands
# it to jax.make_array_from_process_local_data, has the rows in another order than one process would, without a word.
# Seen with jax 0.10.2 and libtpu 0.0.42, on a machine without a TPU:
#   make_mesh [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
# Exits 0 while this is so. Needs python3.11 or later, on Linux.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 libtpu==0.0.42
export JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1
"$folder/venv/bin/python" - >"$folder/seen" 2>/dev/null <<'PYTHON'
import jax
from jax.experimental import topologies

chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4").devices
mesh = jax.make_mesh((16,), ("data",), devices=chips)
print("make_mesh", [chip.process_index for chip in mesh.devices.flat])
PYTHON
cat "$folder/seen"
printf '%s\n' "make_mesh [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]" | cmp -s - "$folder/seen"
