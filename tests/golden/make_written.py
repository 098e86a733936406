"""Writes written.tar.xz: a run, a teacher's store and an exported program, as the installed deit_jax writes them.

    python tests/golden/make_written.py tests/golden/written.tar.xz

The file in this folder is of commit 28764fa, the last one of the flat layout: what that wrote has to open for ever.
It needs nothing but the commands, so that it runs with any version. The run stops after 4 of 8 steps; `rest.json` has
the losses of the others, and `logits.npz` what the program says of some images.
"""

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import jax
import jax.export
import numpy as np

SMALL = [
    "--config.batch_size=32",
    "--config.total_steps=8",
    "--config.model.width=12",
    "--config.model.depth=2",
    "--config.model.heads=3",
    "--config.log.every_steps=1",
    "--config.log.tensorboard=False",
    "--config.eval.every_steps=8",
    "--config.checkpoint.every_steps=4",
    "--config.checkpoint.keep=2",
]


def run(command: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", f"deit_jax.{command}", *arguments], check=True)


def main() -> None:
    output = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workdir, store, served = root / "run", root / "store", root / "served"
        run("main", "--config=configs/quickstart.py", *SMALL, f"--workdir={workdir}")
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        rest = {row["step"]: row["train/loss"] for row in rows if row["step"] > 4}
        (root / "rest.json").write_text(json.dumps(rest) + "\n")
        shutil.rmtree(workdir / "checkpoints" / "8")
        for name in ("curves.png", "confusion.png", "per_class.csv", "predictions.csv"):
            (workdir / name).unlink()
        teacher = ["--config.distillation.teacher.name=deit_tiny_patch16_224"]
        teacher += [f"--config.distillation.teacher.weights={workdir}", "--config.distillation.kind=soft"]
        run("precompute", "--config=configs/quickstart_distilled.py", *SMALL, *teacher, f"--output={store}")
        run("export", f"--weights={workdir}", f"--output={served}")
        program = jax.export.deserialize(bytearray((served / "model.jaxexport").read_bytes()))
        images = np.random.default_rng(0).integers(256, size=(3, 32, 32, 3), dtype=np.uint8)
        np.savez(root / "logits.npz", images=images, logits=np.asarray(program.call(images)))
        with tarfile.open(output, "w:xz") as archive:
            archive.add(root, ".", filter=lambda entry: entry)


if __name__ == "__main__":
    main()
