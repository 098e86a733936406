"""The plans in `benchmarks/results/plan`: what each has to tell, that only gradients move, and what `docs/scaling.md`
has of them."""

import json
import runpy
import shlex
from pathlib import Path

import pytest

from deit_jax.config.given import load_config
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.parallel.topologies import CHIPS, Topology
from deit_jax.run.ahead import planned_source, step_of
from deit_jax.run.estimate import estimate

ROOT = Path(__file__).parents[1]
FLAGS = dict(runpy.run_path(str(ROOT / "benchmarks" / "plan.py"))["plans"]())
PLANS = {file.stem: json.loads(file.read_text()) for file in (ROOT / "benchmarks" / "results" / "plan").iterdir()}
# Names of the hours in docs/scaling.md, and of their plans.
ROWS = {
    "DeiT-Ti, 300 epochs": "tiny",
    "DeiT-S, 300 epochs": "small",
    "DeiT-B, 300 epochs": "base",
    "DeiT-III-L at 192 px, 800 epochs": "large",
    "DeiT-III-H at 154 px, 800 epochs": "huge",
}
SUMS = {"all-reduce", "dcn all-reduce", "reduce-scatter"}


def test_all_plans_are_there():
    assert PLANS.keys() == FLAGS.keys()


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
        estimated = sum(plan["bytes_by_part"].values())
        # docs/planning.md; of what is more than a device has the compiler computes some again.
        assert 0.75 < min(estimated, plan["memory_per_device"]) / plan["bytes_per_device"] < 1.25
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
    most = 1.001 * whole if in_parts else whole + losses
    # Of micro-batches the compiler for GPUs sums some gradients one by one.
    assert whole <= summed <= (2 * most if "--config.optim.accumulation=2" in plan["command"] else most)
    assert gradients.get("all-gather", 0) <= 1.001 * whole
    assert ("dcn all-reduce" in gradients) == (plan["slices"] > 1)
    assert gradients.get("dcn all-reduce", 0) <= 2 * whole / inside


def chip_hours(name):
    """Of each chip in the table, at 40 % of its peak, and the batch: as a plan counts them."""
    flag = next(flag for flag in FLAGS[f"{name}_v5e-4x4"] if flag.startswith("--config="))
    config = for_platform(resolve(load_config(str(ROOT / flag.removeprefix("--config=")))), "tpu")
    step = step_of(config, planned_source(config)[0], None)
    chips = [Topology(kind, CHIPS[kind], chips=1, slices=1) for kind in ("v5e", "v4", "h100")]
    plans = [estimate(step, "", 0.4, ROOT / "nowhere", topology) for topology in chips]
    return [plan["chip_hours"] for plan in plans], config.batch_size


def compiled_hours(name):
    plan = PLANS.get(f"{name}_v5e-4x4")
    return (plan and plan["fits"] and plan["steps"] * plan["compiled"]["estimated_step_seconds"] / 3600) or None


@pytest.mark.long
@pytest.mark.parametrize("run", ROWS)
def test_hours_are_those_of_the_plans(run):
    def cell(number, form, beside, unit=""):
        if number is None:
            return "-"
        return f"{number:{form}}{unit}" + (f" ({beside:{form}})" if beside is not None else "")

    name = ROWS[run]
    (alone, batch), taught = chip_hours(name), f"{name}_distilled"
    beside = chip_hours(taught)[0] if f"{taught}_v5e-4x4" in FLAGS else [None] * 3
    cells = [cell(*pair) for pair in zip(alone, [",.0f"] * 3, beside, strict=True)]
    cells.append(cell(alone[0] / 16, ".1f", beside[0] and beside[0] / 16, " h"))
    cells.append(cell(compiled_hours(name), ".1f", compiled_hours(taught), " h"))
    row = " | ".join([run, f"{batch:,}", *cells])
    assert f"\n| {row} |\n" in (ROOT / "docs" / "scaling.md").read_text()
