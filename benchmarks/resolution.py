"""The same network at 224 and at 384 px: how often it says the same of a photo before any step at the larger size.

    python benchmarks/resolution.py --weights=dinov2.safetensors --photos=PHOTO_FOLDER --runs=FOLDER \
        --output=benchmarks/results/resolution.json

Fine-tunes weights that know photos, such as `benchmarks/dinov2.py` writes, on `train` of PHOTO_FOLDER at 224 px: first
a new head alone, then the whole network with it (arXiv:2202.10054). Then that network classifies `test` at both sizes,
its position embedding resized for the larger one. Runs that are in FOLDER already go on.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

from transfer import at_both_sizes, deit_jax

PHOTOS = [
    *("--config=configs/transfer.py:model=deit_small_patch16_224", "--config.data.eval_split=test"),
    "--config.mixing.probability=0.0",
]
HEAD = [
    *("--config.optim.trainable=head", "--config.optim.learning_rate=1.6e-2", "--config.optim.warmup_epochs=0.5"),
    *("--config.total_epochs=3", "--config.eval.every_epochs=3"),
]
WHOLE = [
    *("--config.batch_size=32", "--config.optim.learning_rate=1.6e-3", "--config.optim.warmup_epochs=0.2"),
    *("--config.total_epochs=2", "--config.eval.every_epochs=1"),
]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "photos", "runs", "output"):
        arguments.add_argument(f"--{name}", type=Path, required=True)
    given = arguments.parse_args()
    photos = [*PHOTOS, f"--config.data.dir={given.photos}"]
    head, whole = given.runs / "head", given.runs / "whole"
    before = deit_jax([*photos, *HEAD, f"--config.init_from={given.weights}"], head)
    after = deit_jax([*photos, *WHOLE, f"--config.init_from={head}"], whole)
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "photos": after["examples"],
        "head_alone_top1": before["top1"],
        **at_both_sizes(photos, whole),
    }
    given.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
