"""The plans in `benchmarks/results/plan`, however many are made yet: what each has to tell, and that only gradients
move."""

import json
import runpy
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLAGS = dict(runpy.run_path(str(ROOT / "benchmarks" / "plan.py"))["plans"]())
PLANS = {file.stem: json.loads(file.read_text()) for file in (ROOT / "benchmarks" / "results" / "plan").iterdir()}
SUMS = {"all-reduce", "dcn all-reduce", "reduce-scatter"}


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_is_whole(name):
    plan = PLANS[name]
    compiled = plan["compiled"]
    assert plan["command"] == shlex.join(["python", "-m", "deit_jax.main", *FLAGS[name]])
    assert plan["flops_per_image"] == plan["student_flops_per_image"] + plan["teacher_flops_per_image"] > 0
    assert bool(plan["teacher"]) == bool(plan["teacher_flops_per_image"]) == ("distilled" in name)
    assert (
        plan["images"]
        == plan["steps"] * plan["batch_size"]
        == plan["images_per_device"] * plan["devices"] * plan["steps"]
    )
    if "refused" not in compiled:
        assert plan["bytes_per_device"] == compiled["memory"]["peak"] + compiled["memory"]["generated_code"] > 0
        assert plan["fits"] == (plan["bytes_per_device"] <= plan["memory_per_device"])
        assert compiled["collectives"]
    if not plan["fits"]:
        assert plan["tried"]
        assert all(each["change"].startswith("--config.") for each in plan["tried"])


@pytest.mark.parametrize("name", [name for name, plan in PLANS.items() if "refused" not in plan["compiled"]])
def test_a_data_parallel_step_moves_its_gradients_once_and_nothing_else(name):
    """A sum's part on each device of a slice counts as the whole; the tolerance is what fills up tiles."""
    plan = PLANS[name]
    assert plan["mesh"] == {"data": plan["devices"], "fsdp": 1, "tensor": 1}
    moved = plan["compiled"]["collectives"]
    gradients = {each["kind"]: each["bytes"] for each in moved if each["moves"] == "gradients"}
    others = {each["moves"]: each["bytes"] for each in moved if each["moves"] != "gradients"}
    assert others.keys() <= {"indices", "scalars"}
    assert sum(others.values()) < 4096
    whole, inside = 4 * plan["parameters"], plan["devices"] // plan["slices"]
    in_parts = gradients.keys() & {"reduce-scatter", "dcn all-reduce"}
    assert gradients.keys() <= SUMS | ({"all-gather"} if in_parts else set())
    summed = gradients.get("all-reduce", 0) + inside * gradients.get("reduce-scatter", 0)
    losses = 8 if plan["teacher"] else 4  # and that of the labels alone
    assert whole <= summed <= (1.001 * whole if in_parts else whole + losses)
    assert gradients.get("all-gather", 0) <= 1.001 * whole
    assert ("dcn all-reduce" in gradients) == (plan["slices"] > 1)
    assert gradients.get("dcn all-reduce", 0) <= 2 * whole / inside
