#!/usr/bin/env bash
# The whole method on handwritten digits: a teacher, what it says recorded, a distilled student, and the student
# without a teacher to compare. Minutes on two CPU cores.
#   bash launch/quickstart_distilled.sh [--dry-run] [PYTHON]
set -euo pipefail
dry_run=''
[[ ${1:-} != --dry-run ]] || { dry_run=1 && shift; }
python=${1:-python}
if ! command -v -- "$python" >/dev/null; then
  echo "error: $python: no such program; give a Python, such as .venv/bin/python" >&2
  exit 2
fi
epochs=${EPOCHS:-40} # of the students
store=runs/quickstart_store_$epochs

# 3: commands that are only printed go where a reader looks, what the others say beside their results.
if [[ $dry_run ]]; then exec 3>&1; else exec 3>&2; fi

run() { # COMMAND...
  if [[ $dry_run ]]; then printf '%q ' "$@" && echo; else "$@"; fi
}
train() { # CONFIG [flags]: the run's result, the last line of its output
  local config=$1 line last=''
  shift
  local command=("$python" -m deit_jax.main --config="configs/$config.py" "$@")
  if [[ $dry_run ]]; then run "${command[@]}" >&3; return; fi
  "${command[@]}" | {
    while IFS= read -r line; do echo "$line" >&2 && last=$line; done
    echo "$last"
  }
}
teacher=$(train quickstart_teacher)
student=(--config.total_epochs="$epochs")
run "$python" -m deit_jax.precompute --config=configs/quickstart_distilled.py "${student[@]}" --output="$store" >&3
distilled=$(train quickstart_distilled "${student[@]}" --config.distillation.store="$store")
alone=$(train quickstart "${student[@]}" --workdir=runs/quickstart_alone)
[[ ! $dry_run ]] || exit 0
"$python" - "$teacher" "$distilled" "$alone" <<'END'
import json
import sys

teacher, distilled, alone = (json.loads(line) for line in sys.argv[1:])
rows = {
    "teacher": teacher["top1"],
    "student alone": alone["top1"],
    "distilled: class head": distilled["top1_cls"],
    "distilled: distillation head": distilled["top1_dist"],
    "distilled: mean of both": distilled["top1"],
}
print("top-1 on held-out digits, %")
for name, value in rows.items():
    print(f"  {name:30}{value:6.2f}")
print(json.dumps({"top1": distilled["top1"], "top1_alone": alone["top1"], "top1_teacher": teacher["top1"]}))
END
