#!/usr/bin/env bash
# jnp.asarray(a NumPy array), and jnp.array, compile a program that does nothing for every shape and dtype that they have
# not seen: some 20 ms on a CPU, each, where jax.device_put compiles none and takes a hundredth of that. Who turns the
# arrays of a checkpoint into JAX's so pays it for each shape of the network. With a dtype given none is compiled.
# Seen with jax 0.10.2 and 0.12.0.1, of 20 shapes:
#   jnp.asarray(array) compiled 20
#   jnp.array(array) compiled 20
#   jnp.asarray(array, float32) compiled 0
#   jax.device_put(array) compiled 0
# Exits 0 while this is so. Needs python3.13.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export JAX_PLATFORMS=cpu
cat >"$folder/count.py" <<'PYTHON'
import jax, jax.numpy as jnp, numpy as np

compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **more: compiled.append(seconds) if name.endswith("backend_compile_duration") else None
)
ways = {
    "jnp.asarray(array)": jnp.asarray,
    "jnp.array(array)": jnp.array,
    "jnp.asarray(array, float32)": lambda array: jnp.asarray(array, jnp.float32),
    "jax.device_put(array)": jax.device_put,
}
for columns, (name, way) in enumerate(ways.items(), 1):
    compiled.clear()
    for rows in range(5, 25):
        np.testing.assert_array_equal(way(np.ones((rows, columns), np.float32)), 1)
    print(name, "compiled", len(compiled))
PYTHON
for version in 0.10.2 0.12.0.1; do
  python3.13 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q "jax==$version"
  echo "jax $version"
  "$folder/$version/bin/python" "$folder/count.py" | tee "$folder/seen"
  printf '%s\n' "jnp.asarray(array) compiled 20" "jnp.array(array) compiled 20" \
    "jnp.asarray(array, float32) compiled 0" "jax.device_put(array) compiled 0" | cmp - "$folder/seen"
done
