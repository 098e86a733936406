#!/usr/bin/env bash
# Everything that a GPU is asked, beside timm's models in torch, in stages of under nine minutes; see README.md:
#   bash benchmarks/gpu.sh FOLDER [STAGE ...] [--budget=SECONDS] [--toy]
# PYTHON is the interpreter that has JAX, PEER_PYTHON the one that has torch and timm (default: the same).
set -euo pipefail
exec "${PYTHON:-$(command -v python || echo python3)}" "$(dirname "$0")/gpu.py" run "$@"
