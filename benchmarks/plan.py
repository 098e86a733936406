"""Plans of the published recipes for several topologies, compiled on this machine: one JSON file each.

    python benchmarks/plan.py [--folder=benchmarks/results/plan] [--list] [NAME ...]

Needs the extras plan-tpu and plan-cuda. A plan whose file is there is skipped, so that the command goes on where it was
stopped; NAMEs such as `tiny_v5e-4x4` or `base_*` choose some. One takes from a minute to half an hour of a core.
"""

import argparse
import fnmatch
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "deit_distilled.py:model=deit_{}_distilled_patch16_224"
# name -> file in configs and its argument; from the smallest to the largest
CONFIGS = {
    **{name: f"deit_{name}.py" for name in ("tiny", "small", "base")},
    **{f"{name}_distilled": TEACHER.format(name) for name in ("tiny", "small", "base")},
    "large": "deit3.py:model=large",
    "huge": "deit3.py:model=huge",
}
# name -> topology and slices
TOPOLOGIES = {
    "v5e-4x4": ("v5e:4x4", 1),
    "v5e-16x16": ("v5e:16x16", 1),
    "v4-2x2x4": ("v4:2x2x4", 1),
    "v5e-4x4-2-slices": ("v5e:4x4", 2),
    "h100-8": ("h100:8", 1),
}
# what does not fit as it is -> for each plan that does: how it is called, and the field that it sets
ROOM = {
    ("huge", "v5e-4x4"): {"remat": "model.remat=True"},
    ("huge", "h100-8"): {"accumulation": "optim.accumulation=2"},
}


def plans() -> Iterator[tuple[str, list[str]]]:
    """The name of each plan, and its flags: the recipe as it is, and where that does not fit what makes room."""
    for config, place in CONFIGS.items():
        for name, (topology, slices) in TOPOLOGIES.items():
            flags = [f"--config=configs/{place}", "--mode=plan", f"--topology={topology}"]
            flags += [f"--slices={slices}"] if slices > 1 else []
            yield f"{config}_{name}", flags
            for field, value in ROOM.get((config, name), {}).items():
                yield f"{config}_{name}_{field}", [*flags, f"--config.{value}"]


def make(name: str, flags: list[str], folder: Path) -> None:
    """Runs one plan and writes FOLDER/NAME.json: its last line, with the command."""
    file = folder / f"{name}.json"
    if file.exists():
        print(f"{name}: is there", flush=True)
        return
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "deit_jax.main", *flags], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        print(f"{name}: {done.stderr.splitlines()[-1]}", flush=True)
        return
    plan = json.loads(done.stdout.splitlines()[-1])
    plan["command"] = shlex.join(["python", "-m", "deit_jax.main", *flags])
    file.write_text(json.dumps(plan, indent=1) + "\n")
    room = "fits" if plan["fits"] else "does not fit"
    print(f"{name}: {time.perf_counter() - start:,.0f} s, {room}", flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="*", default=["*"], metavar="NAME", help="patterns (default: all)")
    arguments.add_argument("--folder", type=Path, default=ROOT / "benchmarks" / "results" / "plan")
    arguments.add_argument("--list", action="store_true", help="print the commands, and make nothing")
    given = arguments.parse_args()
    chosen = [(name, flags) for name, flags in plans() if any(fnmatch.fnmatch(name, some) for some in given.names)]
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, flags in chosen:
        if given.list:
            print(f"{name}: {shlex.join(flags)}")
        else:
            make(name, flags, given.folder)


if __name__ == "__main__":
    main()
