"""What fine-tuning brings: a small DeiT from CIFAR-10 to photos of clothes, against the same network from scratch.

    python benchmarks/transfer.py --before=CIFAR_FOLDER --photos=PHOTO_FOLDER --runs=FOLDER \
        --output=benchmarks/results/transfer.json

Both folders hold `train` and `test` with a folder a class. Three runs, each in FOLDER and resumed where it is there:
the network on CIFAR-10 at 160 px (25 patches), then on the photos at 224 px (49 patches; the position embedding is
resized) from these weights, and from scratch with the same budget. Then the fine-tuned network classifies the test
photos at 224 and, its position embedding resized and nothing trained, at 384 px.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NETWORK = ["--config.model.patch_size=32", "--config.model.depth=6", "--config.model.drop_path=0.0"]
BEFORE = [
    *("--config=configs/image_folder.py", "--config.data.eval_split=test", "--config.data.image_size=160"),
    *("--config.data.crop_ratio=1.0", "--config.data.crop_scale=(0.3, 1.0)", "--config.data.threads=1", *NETWORK),
    *("--config.mixing.mixup=0.0", "--config.mixing.cutmix=0.0", "--config.mixing.label_smoothing=0.1"),
    "--config.mixing.probability=1.0",
    *("--config.batch_size=128", "--config.total_epochs=5", "--config.optim.learning_rate=4e-3"),
    *("--config.optim.warmup_epochs=0.5", "--config.ema.decay=0.995", "--config.eval.every_epochs=1"),
]
PHOTOS = [
    *("--config=configs/transfer.py:model=deit_tiny_patch16_224", "--config.data.eval_split=test", *NETWORK),
    *("--config.total_epochs=10", "--config.optim.warmup_epochs=1", "--config.eval.every_epochs=5"),
    # CIFAR's pictures are far from photos, so all layers learn alike, and new ones have no lower part to spare.
    *("--config.data.threads=2", "--config.optim.learning_rate=8e-3", "--config.optim.layer_decay=1.0"),
]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "photos", "runs", "output"):
        arguments.add_argument(f"--{name}", type=Path, required=True)
    given = arguments.parse_args()
    runs: dict[str, Path] = {name: given.runs / name for name in ("before", "tuned", "scratch")}
    photos = [*PHOTOS, f"--config.data.dir={given.photos}"]
    start = [f"--config.init_from={runs['before']}"]
    before = deit_jax([*BEFORE, f"--config.data.dir={given.before}"], runs["before"])
    tuned = deit_jax([*photos, *start], runs["tuned"])
    scratch = deit_jax([*photos, "--config.init_from="], runs["scratch"])
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "before_top1": before["top1"],
        "photos": tuned["examples"],
        "tuned_top1": tuned["top1"],
        "scratch_top1": scratch["top1"],
        **at_both_sizes(photos, runs["tuned"]),
    }
    given.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


def deit_jax(flags: Sequence[str], workdir: Path) -> dict[str, Any]:
    """Runs `deit_jax.main`; what it printed last."""
    command = [sys.executable, "-m", "deit_jax.main", *flags, f"--workdir={workdir}"]
    print(shlex.join(command), flush=True)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def at_both_sizes(photos: Sequence[str], run: Path) -> dict[str, float]:
    """Top-1 of a run's network at 224 and at 384 px, its position embedding resized and nothing trained, in percent;
    and of how many photos it says the same at both."""
    trained = [*photos, "--mode=evaluate", f"--config.init_from={run}"]
    small, large = run.with_name(f"{run.name}_224"), run.with_name(f"{run.name}_384")
    return {
        "top1_at_224": deit_jax(trained, small)["top1"],
        "top1_at_384": deit_jax([*trained, "--config.data.image_size=384"], large)["top1"],
        "same_prediction_percent": agreement(small, large),
    }


def agreement(one: Path, other: Path) -> float:
    """Percent of images that two evaluations predict the same class for."""
    said = [
        {row["image"]: row["predicted"] for row in csv.DictReader((run / "predictions.csv").open())}
        for run in (one, other)
    ]
    return round(100 * sum(said[1][image] == predicted for image, predicted in said[0].items()) / len(said[0]), 2)


if __name__ == "__main__":
    main()
