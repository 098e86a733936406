#!/usr/bin/env bash
# JAX_PLATFORMS=cuda where no CUDA plugin is installed: jax.default_backend() raises an AssertionError without a word,
# where JAX_PLATFORMS=tpu raises a RuntimeError that says what is missing. A program that wants to tell its user has to
# expect both.
# Seen with jax 0.10.2 on a machine without GPU and TPU:
#   cuda: AssertionError ''
#   tpu: RuntimeError with a message: True
# Exits 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2
ask() {
  JAX_PLATFORMS=$1 "$folder/venv/bin/python" -c '
import jax
try:
    jax.default_backend()
except Exception as error:
    print(type(error).__name__, repr(str(error)))'
}
cuda=$(ask cuda 2>/dev/null | tail -n 1)
tpu=$(ask tpu 2>/dev/null | tail -n 1)
echo "cuda: $cuda"
echo "tpu: $tpu"
[ "$cuda" = "AssertionError ''" ] && [[ "$tpu" == RuntimeError\ ?????* ]]
