#!/usr/bin/env bash
# Speed of DeiT-Ti, S and B in float32 on the CPU, a JSON file each, in about ten minutes on two idle cores:
#   bash benchmarks/cpu.sh [FOLDER]
set -euo pipefail

folder=${1:-benchmarks/results}
mkdir -p "$folder"
measure() { # NAME BATCH_SIZE BATCHES
  python -m deit_jax.benchmark "$1" --model="deit_${size}_patch16_224" --batch_size="$2" --batches="$3" "${@:4}"
}
for sizes in "tiny 32 10 20" "small 32 8 12" "base 16 6 8"; do
  read -r size batch_size train infer <<<"$sizes"
  measure train "$batch_size" "$train" --parts=core --output="$folder/cpu_train_core_deit_$size.json"
  measure infer "$batch_size" "$infer" --output="$folder/cpu_infer_deit_$size.json"
done
