"""Everything that a GPU is asked, in stages, beside timm's models in torch: what gpu.sh runs.

    python benchmarks/gpu.py run FOLDER [STAGE ...] [--budget=530] [--toy]
    python benchmarks/gpu.py table FOLDER

A stage is a list of measurements, the most telling first, and its result is FOLDER/gpu_<stage>.json. A measurement is a
process of its own, which has the GPU's memory to itself. One that fails or hangs is recorded with its error and the
next one begins; those that the stage's time does not reach are recorded as skipped. The file is written again after
each, so that a stage that is killed keeps what it has.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 530  # seconds of a stage
LIMIT = 240  # seconds of a measurement: one that hangs leaves time to the others
SIZES = ("small", "base", "tiny")
KINDS = {"train": ["train", "--parts=core"], "full": ["train", "--parts=full"], "infer": ["infer"]}
STAGES = [*(f"{kind}_{size}" for kind in KINDS for size in SIZES), "teacher"]
PEER = "timm"  # stands where ours have the name of their attention

Record = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """One command, whose last line of stdout is a JSON object."""

    model: str
    batch_size: int
    attention: str
    command: Sequence[str]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("action", choices=["run", "table"])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    arguments.add_argument("--budget", type=float, default=BUDGET, help="seconds of each stage")
    arguments.add_argument(
        "--toy", action="store_true", help="the same for a CPU: DeiT-Ti alone, float32, tiny batches"
    )
    given = arguments.parse_intermixed_args()
    if unknown := set(given.stages) - set(STAGES):
        arguments.error(f"unknown stage {', '.join(sorted(unknown))}; there are {', '.join(STAGES)}")
    if given.folder.name in STAGES or given.folder.is_file():
        arguments.error(f"FOLDER: {given.folder} is a stage or a file; name the folder of the results first")
    if not given.budget > 0:
        arguments.error(f"--budget: is {given.budget}, should be positive")
    if given.action == "run":
        # As Ctrl-C does: the process that is measured ends with this one.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        given.folder.mkdir(parents=True, exist_ok=True)
        toys = [stage for stage in STAGES if stage.endswith(("_tiny", "teacher"))]
        for stage in given.stages or (toys if given.toy else STAGES):
            limit = given.budget if stage == "teacher" else LIMIT  # which compiles three steps
            run_stage(stage, measurements(stage, toy=given.toy), given.folder, given.budget, limit)
    files = [given.folder / f"gpu_{stage}.json" for stage in STAGES]
    print(table([json.loads(file.read_text()) for file in files if file.is_file()]))


def measurements(stage: str, *, toy: bool) -> list[Measurement]:
    """What a stage measures, in its order."""
    if stage == "teacher":
        sizes = [("tiny", 4)] if toy else [("small", 256), ("base", 256)]
        return [_teaching(size, batch_size, toy=toy) for size, batch_size in sizes]
    kind, _, size = stage.partition("_")
    first, *others = (8, 4) if toy else (256, 512, 128)
    order = [(batch_size, of) for batch_size in (first, *others) for of in ("xla", PEER, "cudnn")]
    order += [(batch_size, "einsum") for batch_size in (first, *others)]
    model = f"deit_{size}_patch16_224"
    found = []
    for batch_size, attention in order:
        flags = [f"--model={model}", f"--batch_size={batch_size}", f"--batches={2 if toy else 30}"]
        flags += [f"--dtype={'float32' if toy else 'bfloat16'}"]
        if attention == PEER:
            python = os.environ.get("PEER_PYTHON") or sys.executable
            command = [python, str(ROOT / "benchmarks" / "peers" / "timm_torch.py"), *KINDS[kind], *flags]
            command += [] if toy else ["--compile"]  # minutes each on a CPU
        else:
            command = [sys.executable, "-m", "deit_jax.benchmark", *KINDS[kind], *flags, f"--attention={attention}"]
        found.append(Measurement(model, batch_size, attention, command))
    return found


def _teaching(size: str, batch_size: int, *, toy: bool) -> Measurement:
    model = f"deit_{size}_distilled_patch16_224"
    flags = [f"--model={model}", f"--batch_size={batch_size}", f"--output={os.devnull}"]
    flags += [f"--teacher=regnety_{'016' if toy else '160'}", f"--turns={2 if toy else 10}"]
    flags += [f"--steps={1 if toy else 10}"]
    return Measurement(model, batch_size, "auto", [sys.executable, str(ROOT / "benchmarks" / "teaching.py"), *flags])


def run_stage(stage: str, todo: Sequence[Measurement], folder: Path, budget: float, limit: float = LIMIT) -> None:
    """Measures while there is time, and writes FOLDER/gpu_<stage>.json after each."""
    start = time.monotonic()
    entries: list[Record] = [
        {
            **{name: getattr(measurement, name) for name in ("model", "batch_size", "attention")},
            "command": shlex.join(measurement.command),
            "skipped": "not reached",
        }
        for measurement in todo
    ]
    record = {"stage": stage, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "card": _card()}
    record |= {"budget_seconds": budget, "seconds": 0.0, "measurements": entries}
    for measurement, entry in zip(todo, entries, strict=True):
        _write(folder / f"gpu_{stage}.json", record)
        left = budget - (time.monotonic() - start)
        if left <= 0:
            entry["skipped"] = "the stage's time was over"
        else:
            del entry["skipped"]
            entry |= measure(measurement.command, min(left, limit))
        record["seconds"] = round(time.monotonic() - start, 1)
        print(
            f"{record['seconds']:6.1f} s  {stage} {entry['batch_size']} {entry['attention']}: {_told(entry)}",
            flush=True,
        )
    _write(folder / f"gpu_{stage}.json", record)


def measure(command: Sequence[str], timeout: float) -> Record:
    """`seconds`, and `result`, or `error` and the end of the `log`."""
    start = time.monotonic()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    # Files, not pipes: a process that outlives the one that started it would keep a pipe open.
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        # A group of its own, so that what it starts (torch.compile's workers) ends with it.
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, process_group=0
            )
        except OSError as error:
            return {"seconds": 0.0, "error": str(error), "log": []}
        try:
            status: int | None = process.wait(timeout)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().strip())
    entry: Record = {"seconds": round(time.monotonic() - start, 1)}
    last = texts[0].rpartition("\n")[2]
    if status == 0 and last.startswith("{"):
        return entry | {"result": json.loads(last)}
    lines = "\n".join(texts).split("\n")
    if status is None:
        error = f"stopped after {timeout:.0f} s"
    elif status < 0:
        error = f"ended by {signal.Signals(-status).name}"
    else:
        # Of a traceback the last error; allocators and JAX's hints write more below it.
        errors = [line for line in lines if "error:" in line.lower()]
        error = (errors or lines)[-1].strip()[:300] or f"exit status {status}, and no word"
    return entry | {"error": error, "log": lines[-20:]}


def table(records: Sequence[Record]) -> str:
    """Markdown: each measurement beside the peer's at its batch size, a teacher's cost, and what was not measured."""
    rows, taught, absent = [], [], []
    for record in records:
        measured = [entry for entry in record["measurements"] if "result" in entry]
        absent += [(record["stage"], entry) for entry in record["measurements"] if "result" not in entry]
        if record["stage"] == "teacher":
            taught += [_teacher_row(entry["result"]) for entry in measured]
            continue
        peers = {entry["batch_size"]: entry["result"] for entry in measured if entry["attention"] == PEER}
        # Ours count the model's work; it is the same for the peer.
        flops = next((entry["result"]["flops_per_image"] for entry in measured if entry["attention"] != PEER), None)
        for entry in sorted(measured, key=lambda entry: entry["batch_size"]):
            peer = peers.get(entry["batch_size"], {})
            names = (record["stage"], entry["batch_size"], entry["attention"])
            rows.append([*names, *_figures(entry["result"], peer, flops)])
    head = ["stage", "batch", "attention", "images/s", f"of {PEER}'s", "GB", f"of {PEER}'s", "utilisation"]
    parts = [_markdown(head, rows)] if rows else []
    if taught:
        head = ["student", "batch", "teacher", "ms alone", "beside / alone", "recorded / alone"]
        parts.append(_markdown(head, taught))
    if absent:
        lines = [f"* {stage} {entry['batch_size']} {entry['attention']}: {_told(entry)}" for stage, entry in absent]
        parts.append("Not measured:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) or "nothing was measured"


def _figures(result: Record, peer: Record, flops: int | None) -> list[str]:
    memory = result["memory_peak_bytes"]
    return [
        f"{result['images_per_second']:.1f}",
        _ratio(result["images_per_second"], peer.get("images_per_second")),
        f"{memory / 1e9:.2f}" if memory else "",
        _ratio(memory, peer.get("memory_peak_bytes")),
        f"{result['images_per_second'] * flops / result['matmul_peak_flops']:.3f}" if flops else "",
    ]


def _ratio(value: float | None, other: float | None) -> str:
    return f"{value / other:.3f}" if value and other else ""


def _teacher_row(result: Record) -> list[str]:
    names = (result["model"], result["batch_size"], result["teacher"], result["step_ms"]["alone"])
    return [str(value) for value in (*names, result["ratio"]["beside"], result["ratio"]["recorded"])]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in [head, ["---"] * len(head), *rows])


def _told(entry: Record) -> str:
    """What came of a measurement, in a line."""
    if "result" not in entry:
        return f"failed: {entry['error']}" if "error" in entry else f"skipped: {entry['skipped']}"
    speed = entry["result"].get("images_per_second")
    return f"{speed:.1f} images/s" if speed else f"ratios {entry['result'].get('ratio')}"


def _card() -> str | None:
    """The GPU, its driver and its limits, where NVIDIA's tool is there to tell."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None


def _write(path: Path, record: Record) -> None:
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(json.dumps(record, indent=2) + "\n")
    fresh.replace(path)


if __name__ == "__main__":
    main()
