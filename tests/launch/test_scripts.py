"""All shell scripts, and the commands of the documents that start training."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from documented import TABLES, Refused, parse

SCRIPTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("launch/*.sh", "launch/*.sbatch", "benchmarks/*.sh", "findings/*.sh")
    for path in ROOT.glob(pattern)
)
DOCUMENT = ROOT / "docs/launching.md"


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_shellcheck_finds_nothing(script):
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(
        ["shellcheck", str(script)], cwd=ROOT, env=os.environ | {"PATH": beside}, capture_output=True, text=True
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_the_quickstart_takes_a_python_and_no_flags(world):
    done = world.run("launch/quickstart_distilled.sh", "--dry-run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --dry-run: no such program; give a Python")


def commands(text):
    """The commands in a document's shell blocks, as words."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def test_documented_commands_are_taken(world):
    checked = []
    for words in commands(DOCUMENT.read_text()):
        if words[0] == "export" and words[1].startswith("TPU_POD="):
            world.environment["TPU_POD"] = words[1].partition("=")[2]
        elif words[0] in TABLES:
            checked.append(words[0])
            parse(words[0], words[1:])
        elif words[0] == "launch/supervise.sh":
            dry = world.run(words[0], "--dry-run", *words[1:])
            assert dry.returncode == 0, dry.stderr
            words = words[words.index("--") + 1 :]
        if words[0] == "launch/tpu_pod.sh":
            checked.append(words[1])
            dry = world.run(*words[:2], "--dry-run", *words[2:])
            assert dry.returncode == 0, dry.stderr
        elif words[0].startswith("launch/"):
            assert (ROOT / words[0]).exists(), words
    assert {"gcloud", "kubectl", "sbatch", "create", "setup", "start", "tail", "resume", "stop", "delete"} <= set(
        checked
    )


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
