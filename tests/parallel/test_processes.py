"""Runs of several processes equal those of one, and end together."""

import json

import numpy as np
import pytest
from processes import FLAGS, TOTAL, losses, run
from tiny import write_teacher

from deit_jax.run.metrics import read_rows


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Flags of a hard-distilled run whose teacher runs beside it."""
    workdir = tmp_path_factory.mktemp("teacher")
    write_teacher(workdir)
    teacher = ["--config.distillation.teacher.name=deit_tiny_patch16_224"]
    return ["--config.distillation.kind=hard", *teacher, f"--config.distillation.teacher.weights={workdir}"]


def test_two_processes_of_four_devices(taught, tmp_path):
    """Cut over fsdp, taught by a hard teacher: losses and evaluations are those of one process with one device."""
    for name, shape, mesh in (("one", (1, 1), []), ("many", (2, 4), ["--config.mesh.fsdp=4"])):
        ended = run(*shape, [*FLAGS, *taught, *mesh, f"--workdir={tmp_path / name}"])
        assert ended.status == 0, ended.err
    assert ended.result["examples"] == 360
    one, many = (read_rows(tmp_path / name / "metrics.jsonl") for name in ("one", "many"))
    assert [row["step"] for row in many] == list(range(1, TOTAL + 1))
    np.testing.assert_allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-5)
    for name in ("eval/top1", "eval/top5", "eval_ema/top1", "eval/top1_dist", "eval/examples"):
        assert many[-1][name] == one[-1][name], name
    facts = json.loads((tmp_path / "many" / "run.json").read_text())
    assert (facts["processes"], facts["devices"]) == (2, 8)
    assert (
        facts["parameter_bytes_per_device"]
        < 0.5 * json.loads((tmp_path / "one" / "run.json").read_text())["parameter_bytes_per_device"]
    )
