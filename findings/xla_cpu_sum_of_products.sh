#!/usr/bin/env bash
# XLA's CPU compiler gives a*b + c*d and c*d + a*b different bits, though IEEE addition commutes: LLVM contracts one
# of the two products into a fused multiply-add, and which one follows the order they are written in. Whoever wants a
# rewritten step to repeat a run bit for bit has to keep the order of the summands.
# Seen with jax 0.10.2, numpy 2.4.6, Python 3.11, x86-64 with FMA:
#   differ: True; each is within an ulp of float64's: True
# Exits 0 while this is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'P'
import jax
import numpy as np

a, b, c, d = np.random.default_rng(0).random((4, 10_000), np.float32)
one = np.asarray(jax.jit(lambda a, b, c, d: a * b + c * d)(a, b, c, d))
two = np.asarray(jax.jit(lambda a, b, c, d: c * d + a * b)(a, b, c, d))
wide = [x.astype(np.float64) for x in (a, b, c, d)]
exact = wide[0] * wide[1] + wide[2] * wide[3]
differ = bool((one != two).any())
close = bool(all((np.abs(x - exact) <= np.spacing(x)).all() for x in (one, two)))
print(f"differ: {differ}; each is within an ulp of float64's: {close}")
raise SystemExit(not (differ and close))
P
