"""Who owns a workdir, and what is refused in it."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from deit_jax.base.errors import TryAgain, UserError
from deit_jax.base.storage import place
from deit_jax.run import workdir as workdirs
from deit_jax.run.workdir import Workdir, own

OWNER = """
import pathlib, sys, time
from deit_jax.run.workdir import own
with own(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""
OWN = [
    "checkpoints",
    "corrupt",
    "failures",
    "tensorboard",
    "wandb",
    ".lock",
    "config.json",
    "run.json",
    "metrics.jsonl",
]


@pytest.fixture
def owner(tmp_path):
    """Another process that owns `tmp_path / "run"`."""
    command = [sys.executable, "-c", OWNER, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


def test_a_second_owner_is_told_who_the_first_is_and_leaves_no_trace(tmp_path, owner):
    before = (tmp_path / "run" / ".lock").read_text()
    assert before.startswith(f"process {owner.pid} on ")
    for _ in range(2):
        with pytest.raises(TryAgain, match=rf"--workdir: .*run belongs to process {owner.pid} on .*still runs"):
            own(tmp_path / "run").__enter__()
    assert (tmp_path / "run" / ".lock").read_text() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_owner_lets_go_at_once(tmp_path, owner, number):
    owner.send_signal(number)
    owner.wait(10)
    start = time.perf_counter()
    with own(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert time.perf_counter() - start < 20


def test_an_owner_in_the_same_process_counts_too(tmp_path):
    with own(tmp_path), pytest.raises(TryAgain):
        own(tmp_path).__enter__()
    with own(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_of_a_run_that_wrote_nothing(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ZeroDivisionError), own(tmp_path / "runs" / "a" / "b"):
        1 / 0  # noqa: B018
    assert list((tmp_path / "runs").iterdir()) == []
    with own(tmp_path / "runs" / "a" / "b") as workdir:
        workdir.write_json("config.json", {})
    assert [path.name for path in (tmp_path / "runs" / "a" / "b").iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "name",
    [*OWN, "rollbacks.json", "wandb.id", "checkpoints/60", "corrupt/60", "failures/step_6", "checkpoints/7/metrics"],
)
@pytest.mark.parametrize("exists", [True, False])
def test_links_are_refused(tmp_path, name, exists):
    """What they lead to is not touched."""
    elsewhere = tmp_path / "elsewhere"
    if exists:
        elsewhere.mkdir()
        (elsewhere / "precious").write_text("mine")
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(UserError, match=rf"{name} is a link|cannot write to"):
        own(tmp_path / "run").__enter__()
    if exists:
        assert [path.name for path in elsewhere.iterdir()] == ["precious"]
    else:
        assert not elsewhere.exists()


def test_the_workdir_itself_may_be_a_link(tmp_path):
    (tmp_path / "large disk").mkdir()
    (tmp_path / "run").symlink_to("large disk")
    with own(tmp_path / "run") as workdir:
        workdir.write_json("run.json", {"a": 1})
    assert (tmp_path / "large disk" / "run.json").is_file()


@pytest.mark.parametrize("name", ["x" * 300, "file/run"])
def test_a_place_that_cannot_be_is_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--workdir: cannot write to .*; name a folder that is yours"):
        own(tmp_path / name).__enter__()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    workdir = Workdir(tmp_path)
    workdir.write_json("run.json", {"a": 1})
    with pytest.raises(TypeError):
        workdir.write_json("run.json", {"a": object()})
    assert (tmp_path / "run.json").read_text() == '{\n  "a": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_what_cannot_be_written_is_told_with_its_mend(tmp_path, bucket, monkeypatch):
    with pytest.raises(
        UserError, match=r"^--workdir: cannot write gs://nowhere/run/run\.json: there is no bucket gs://n"
    ):
        Workdir(place("gs://nowhere/run", "")).write_json("run.json", {})
    for number, line in ((errno.ENOSPC, "No space left on device; make room"), (errno.EIO, "Input/output error")):

        def fail(path, number=number):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(workdirs, "replacing", fail)
        with pytest.raises(UserError, match=f"run.json: {line}$"):
            Workdir(tmp_path).write_json("run.json", {})
