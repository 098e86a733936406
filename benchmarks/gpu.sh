#!/usr/bin/env bash
# Speed of DeiT-Ti, S and B in bfloat16 on the accelerators that JAX finds, and what the paper's teacher costs beside
# them, a JSON file each:
#   bash benchmarks/gpu.sh FOLDER [further flags, such as --attention=cudnn]
set -euo pipefail

folder=${1:?name a folder for the results}
mkdir -p "$folder"
for size in tiny small base; do
  flags=(--model="deit_${size}_patch16_224" --batch_size=256 --batches=50 --dtype=bfloat16 "${@:2}")
  for parts in core full; do
    python -m deit_jax.benchmark train --parts=$parts "${flags[@]}" --output="$folder/gpu_train_${parts}_deit_$size.json"
  done
  python -m deit_jax.benchmark infer "${flags[@]}" --output="$folder/gpu_infer_deit_$size.json"
done
python benchmarks/teaching.py --model=deit_small_distilled_patch16_224 --teacher=regnety_160 --batch_size=256 \
  --turns=10 --steps=20 --output="$folder/gpu_teaching.json"
