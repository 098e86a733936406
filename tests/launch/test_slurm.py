"""launch/slurm.sbatch against the fake sbatch, srun and scontrol."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "launch/slurm.sbatch")
# In the place of Python: ends in this task's exit status of this start, from a line of $STATUSES a start.
PYTHON = """#!/usr/bin/env bash
echo "$@" >>"arguments.$SLURM_PROCID"
status=$(echo "$STATUSES" | sed -n "$((${SLURM_RESTART_COUNT:-0} + 1))p" | cut -d' ' -f$((SLURM_PROCID + 1)))
[ "$status" != 134 ] || kill -ABRT $$
exit "$status"
"""
ONE_TASK = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
FLAGS = ["--config=configs/deit_base.py", "--workdir=/shared/a run"]


@pytest.fixture
def python(world):
    file = world.folder / "python"
    file.write_text(PYTHON)
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize(
    ("statuses", "requeued"),
    [
        ("0 0", 0),
        ("75 75\n75 134\n0 0", 2),
        ("2 2", 0),
        ("1 134", 0),  # a fault, and the peer that it took along
        ("2 75", 0),
        ("137 134", 0),
    ],
)
def test_only_75_and_134_put_the_job_back(world, python, statuses, requeued):
    done = world.run("sbatch", SCRIPT, *FLAGS, PYTHON=python, STATUSES=statuses)
    assert done.returncode == 0, done
    assert [call for call in world.calls() if call[0] == "scontrol"] == [["scontrol", "requeue", "77"]] * requeued
    for task in range(2):
        lines = (world.folder / f"arguments.{task}").read_text().splitlines()
        assert lines == [f"-m deit_jax.main {' '.join(FLAGS)}"] * (requeued + 1)
    assert (world.folder / "deit_jax-77.log").read_text().count("back into the queue") == requeued


@pytest.mark.parametrize(("restarts", "requeued"), [(99, 1), (100, 0)])
def test_the_job_is_put_back_100_times(world, python, restarts, requeued):
    more = ONE_TASK | {"PYTHON": python, "STATUSES": "\n" * restarts + "75", "SLURM_RESTART_COUNT": str(restarts)}
    assert world.run("bash", SCRIPT, *FLAGS, **more).returncode == 75
    assert [call[0] for call in world.calls()] == ["srun", *["scontrol"] * requeued]


def test_a_task_is_told_of_sigterm_before_the_time_is_up(world):
    header = [line for line in (ROOT / SCRIPT).read_text().splitlines() if line.startswith("#SBATCH")]
    assert "#SBATCH --signal=TERM@120" in header  # without B: it goes to the tasks, not to the script
    assert "#SBATCH --requeue" in header
    work = "trap 'exit 75' TERM; kill -TERM $PPID; kill -TERM $$"  # SLURM signals all processes of a step
    (world.folder / "python").write_text(f"#!/usr/bin/env bash\n{work}\n")
    (world.folder / "python").chmod(0o755)
    done = world.run("bash", SCRIPT, *FLAGS, PYTHON=str(world.folder / "python"), **ONE_TASK)
    assert done.returncode == 75, done  # of the command, though the shell around it heard the signal, too


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--workdir=x"], "--config: missing"), (FLAGS, "not in a job; give this script to sbatch")],
)
def test_mistakes_cost_a_line(world, arguments, message):
    done = world.run("bash", SCRIPT, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert world.calls() == []


def test_a_config_may_have_one_dash(world):
    assert world.run("bash", SCRIPT, "--dry-run", "-config=x").returncode == 0


def test_help_is_the_header(world):
    shown = world.run("bash", SCRIPT, "--help")
    assert shown.stdout.startswith("Trains on a SLURM cluster")
    assert "SBATCH" not in shown.stdout


@pytest.mark.parametrize("place", [0, 2])
def test_dry_run_prints_what_would_run(world, python, place):
    more = ONE_TASK | {"PYTHON": python, "STATUSES": "75"}
    printed = world.run("bash", SCRIPT, *FLAGS[:place], "--dry-run", *FLAGS[place:], **more)
    assert (printed.returncode, world.calls()) == (0, [])
    world.run("bash", "-c", printed.stdout, **more)
    shown = world.calls()
    assert world.run("bash", SCRIPT, *FLAGS, **more).returncode == 75
    assert world.calls() == shown
    assert [call[0] for call in shown] == ["srun", "scontrol"]
