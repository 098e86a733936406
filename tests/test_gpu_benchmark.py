"""What benchmarks/gpu.py records of its measurements, and its table; the measurements themselves need a GPU."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", Path(__file__).parents[1] / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(speed: float, memory: int, peak: float, **more: int) -> dict:
    return {"images_per_second": speed, "memory_peak_bytes": memory, "matmul_peak_flops": peak, **more}


def run_stage(gpu: ModuleType, folder: Path, budget: float, *programs: str) -> list[dict]:
    todo = [gpu.Measurement("tiny", 8, f"of {i}", [sys.executable, "-Ic", text]) for i, text in enumerate(programs)]
    gpu.run_stage("train_tiny", todo, folder, budget)
    assert [path.name for path in folder.iterdir()] == ["gpu_train_tiny.json"]
    record = json.loads((folder / "gpu_train_tiny.json").read_text())
    assert (record["stage"], record["budget_seconds"]) == ("train_tiny", budget)
    assert [entry["attention"] for entry in record["measurements"]] == [f"of {i}" for i in range(len(programs))]
    return record["measurements"]


def test_failures_do_not_end_a_stage(gpu, tmp_path):
    line = json.dumps(result(100.0, 1, 1.0))
    failed = "import sys; print('ValueError: no memory\\na hint', file=sys.stderr); sys.exit(1)"
    found = run_stage(gpu, tmp_path, 60, failed, "import os; os.abort()", f"print('words'); print('{line}')")
    assert [entry.get("error") for entry in found] == ["ValueError: no memory", "ended by SIGABRT", None]
    assert found[0]["log"][-2:] == ["ValueError: no memory", "a hint"]
    assert found[2]["result"] == json.loads(line)
    assert "No such file" in gpu.measure(["/no/python"], 60)["error"]


def test_time_that_is_over_is_told(gpu, tmp_path):
    hangs, ends = run_stage(gpu, tmp_path, 0.2, "import time; time.sleep(60)", "print('{}')")
    assert hangs["error"] == "stopped after 0 s"
    assert ends["skipped"] == "the stage's time was over"
    assert "result" not in ends


def test_table(gpu):
    def entry(attention: str, batch_size: int = 256, **came: object) -> dict:
        return {"model": "deit_tiny_patch16_224", "batch_size": batch_size, "attention": attention, **came}

    trained = [
        entry("xla", result=result(300.0, 3 * 10**9, 1e6, flops_per_image=1000)),
        entry("timm", result=result(200.0, 4 * 10**9, 8e5)),
        entry("cudnn", error="RuntimeError: no kernel"),
        entry("xla", 512, result=result(310.0, None, 1e6, flops_per_image=1000)),
        entry("timm", 512, skipped="not reached"),
    ]
    taught = {"model": "s", "batch_size": 4, "teacher": "t", "step_ms": {"alone": 2.5}}
    taught["ratio"] = {"beside": 1.8, "recorded": 1.0}
    lines = gpu.table(
        [
            {"stage": "train_tiny", "measurements": trained},
            {"stage": "teacher", "measurements": [entry("auto", result=taught)]},
        ]
    ).split("\n")
    assert "| train_tiny | 256 | xla | 300.0 | 1.500 | 3.00 | 0.750 | 0.300 |" in lines
    assert "| train_tiny | 256 | timm | 200.0 | 1.000 | 4.00 | 1.000 | 0.250 |" in lines
    assert "| train_tiny | 512 | xla | 310.0 |  |  |  | 0.310 |" in lines
    assert "* train_tiny 256 cudnn: failed: RuntimeError: no kernel" in lines
    assert "* train_tiny 512 timm: skipped: not reached" in lines
    assert "| s | 4 | t | 2.5 | 1.8 | 1.0 |" in lines


@pytest.mark.parametrize("toy", [False, True])
def test_every_stage_asks_for_all(gpu, toy):
    for stage in gpu.STAGES:
        asked = {(one.batch_size, one.attention) for one in gpu.measurements(stage, toy=toy)}
        if stage != "teacher":
            sizes = (8, 4) if toy else (128, 256, 512)
            assert asked == {(size, name) for size in sizes for name in ("xla", "einsum", "cudnn", "timm")}
