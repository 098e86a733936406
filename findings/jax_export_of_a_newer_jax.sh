#!/usr/bin/env bash
# A program with a symbolic batch that jax.export of a newer JAX wrote: jax.export.deserialize of an older one takes it
# without a word and tells its inputs. Only lowering it (mlir_module, or the first call) says that the StableHLO in it
# cannot be read. Without a symbolic batch the same program is read. Who wants to refuse such a file when it is opened has
# to ask for the module then.
# Seen with a program written by jax 0.12.0.1 and read by jax 0.10.2:
#   deserialize: (ShapedArray(float32[batch,3]),)
#   mlir_module: JaxRuntimeError
# Exits 0 while this is so. Needs python3.13.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export JAX_PLATFORMS=cpu
for version in 0.12.0.1 0.10.2; do
  python3.13 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install -q "jax==$version" flatbuffers==25.12.19
done
"$folder/0.12.0.1/bin/python" - "$folder/program" <<'PYTHON'
import sys
import jax, jax.numpy as jnp
(batch,) = jax.export.symbolic_shape("batch")
program = jax.export.export(jax.jit(jnp.sin))(jax.ShapeDtypeStruct((batch, 3), jnp.float32))
open(sys.argv[1], "wb").write(program.serialize())
PYTHON
"$folder/0.10.2/bin/python" - "$folder/program" >"$folder/seen" 2>/dev/null <<'PYTHON'
import sys
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
print("deserialize:", program.in_avals)
try:
    program.mlir_module()
    print("mlir_module: reads it")
except Exception as error:
    print("mlir_module:", type(error).__name__)
PYTHON
cat "$folder/seen"
printf '%s\n' "deserialize: (ShapedArray(float32[batch,3]),)" "mlir_module: JaxRuntimeError" | cmp -s - "$folder/seen"
