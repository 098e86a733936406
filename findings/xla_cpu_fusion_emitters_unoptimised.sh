#!/usr/bin/env bash
# Who tests on CPUs asks XLA for unoptimised code (xla_backend_optimization_level=0), since compiling takes longer than
# running. The CPU's fusion emitters, which jaxlib has on, go through MLIR first and take as long again as all the rest:
# without them (xla_cpu_use_fusion_emitters=false) the same programs compile in half the time.
# Seen with jax 0.10.2, gradients of a small MLP of 24 layers with normalisation, on two cores that had other work, too:
#   with fusion emitters 16.30 s, without 8.11 s
# Exits 0 while they at least cost half as much again. Needs python3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export JAX_PLATFORMS=cpu
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "jax==0.10.2"
cat >"$folder/compile.py" <<'PYTHON'
import time
import jax, jax.numpy as jnp

def layer(x, kernel):
    x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x + jax.nn.gelu(x @ kernel)

def loss(kernels, x):
    for kernel in kernels:
        x = layer(x, kernel)
    return -jnp.mean(jax.nn.log_softmax(x)[:, 0])

kernels = [jnp.ones((16, 16))] * 24
lowered = jax.jit(jax.grad(loss)).lower(kernels, jnp.ones((8, 16)))
begun = time.perf_counter()
lowered.compile()
print(f"{time.perf_counter() - begun:.2f}")
PYTHON
compile() { XLA_FLAGS="--xla_backend_optimization_level=0 $1" "$folder/venv/bin/python" "$folder/compile.py"; }
with=$(compile "")
without=$(compile --xla_cpu_use_fusion_emitters=false)
echo "with fusion emitters $with s, without $without s"
awk "BEGIN { exit !($with > 1.5 * $without) }"
