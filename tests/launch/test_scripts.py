"""All shell scripts, and the commands of the documents that start training."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from documented import TABLES, Refused, parse

from deit_jax import main, precompute

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("launch/*.sh", "launch/*.sbatch", "benchmarks/*.sh", "findings/*.sh")
    for path in ROOT.glob(pattern)
)
LAUNCHING = ["docs/launching.md", "docs/scaling.md"]
TRAINING = [*LAUNCHING, "README.md", "docs/planning.md", "docs/storage.md", "docs/training.md"]


class Configured(Exception):
    """What would be trained or planned is known."""


def stop(*_):
    raise Configured


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_shellcheck_finds_nothing(script):
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(
        ["shellcheck", str(script)], cwd=ROOT, env=os.environ | {"PATH": beside}, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_quickstart_takes_a_python_and_shows_what_it_would_run(world, monkeypatch):
    done = world.run("launch/quickstart_distilled.sh", "--now")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --now: no such program; give a Python")

    done = world.run("launch/quickstart_distilled.sh", "--dry-run", sys.executable)
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    assert [(command[2], command[3].partition("configs/")[2]) for command in commands] == [
        ("deit_jax.main", "quickstart_teacher.py"),
        ("deit_jax.precompute", "quickstart_distilled.py"),
        ("deit_jax.main", "quickstart_distilled.py"),
        ("deit_jax.main", "quickstart.py"),
    ]
    monkeypatch.chdir(ROOT)
    for program in (main, precompute):
        monkeypatch.setattr(program.cli, "start_hosts", stop)
    for _, _, program, *flags in commands:
        with pytest.raises(Configured):
            {"deit_jax.main": main, "deit_jax.precompute": precompute}[program].main(flags)


def lines(document):
    """The lines of a document's shell blocks, those that go on in the next one joined."""
    for block in re.findall(r"```sh\n(.*?)```", (ROOT / document).read_text(), re.S):
        yield from block.replace("\\\n", " ").splitlines()


@pytest.mark.parametrize("document", LAUNCHING)
def test_documented_commands_are_taken(world, document):
    """By what the programs document, and the launchers by their dry run."""
    checked = set()
    for line in lines(document):
        words = shlex.split(line, comments=True)
        if words[:1] == ["launch/supervise.sh"]:
            dry = world.run(words[0], "--dry-run", *words[1:])
            assert dry.returncode == 0, dry.stderr
            words = words[words.index("--") + 1 :]
        if words[:1] == ["export"] and words[1].startswith("TPU_POD="):
            world.environment["TPU_POD"] = words[1].partition("=")[2]
        elif words[:1] == ["launch/tpu_pod.sh"]:
            checked.add(words[1])
            dry = world.run(*words[:2], "--dry-run", *words[2:])
            assert dry.returncode == 0, dry.stderr
        elif words[1:2] in (["launch/local.py"], ["launch/slurm.sbatch"]):
            checked.add(words[1])
            dry = world.run(words[0], str(ROOT / words[1]), "--dry-run", *words[2:])
            assert dry.returncode == 0, dry.stderr
        elif words and words[0] in TABLES:
            checked.add(words[0])
            parse(words[0], words[1:])
        else:
            assert not words or not words[0].startswith("launch/"), words
    assert (
        checked
        >= {
            "docs/launching.md": {"gcloud", "kubectl", "docker", "sbatch", "launch/slurm.sbatch", "create", "setup"}
            | {"start", "tail", "resume", "stop", "delete"},
            "docs/scaling.md": {"gcloud", "launch/local.py"},
        }[document]
    )


@pytest.mark.parametrize("document", TRAINING)
def test_documented_trainings_have_flags_and_fields_that_exist(monkeypatch, document):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(main.cli, "start_hosts", stop)
    monkeypatch.setattr(main, "_plan", stop)
    own = [line for line in lines(document) if not re.search(r"-m deit_jax\.(?!main\b)", line)]
    trainings = [found[0] for line in own if (found := re.search(r"--config=[^<#]*", line))]
    for flags in trainings:
        with pytest.raises(Configured):
            main.main(shlex.split(flags.replace("$process", "0")))
    assert trainings


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("gcloud", "compute tpus tpu-vm create a --zone=z --version=v --sport", "unrecognized argument: --sport"),
        ("gcloud", "compute tpus tpu-vm create a --zone=z", "--version must be given"),
        ("gcloud", "compute tpus tpu-vm delete a --force", "unrecognized argument: --force"),
        ("gcloud", "compute tpus tpu-vm restart a", "no such command"),
        ("gcloud", "compute tpus queued-resources create a --runtime-version=v --accelerator-type=t", "exactly one of"),
        ("gcloud", "compute tpus tpu-vm delete a b", "2 arguments"),
        ("kubectl", "apply -f a.yaml --now", "unrecognized argument: --now"),
        ("sbatch", "--requeue=yes script", "unrecognized argument: --requeue=yes"),
        ("srun", "--requeue python", "unrecognized argument: --requeue"),
        ("scontrol", "restart 77", "no such command"),
    ],
)
def test_fakes_refuse_what_is_not_documented(program, arguments, message):
    with pytest.raises(Refused, match=re.escape(message)):
        parse(program, arguments.split())
