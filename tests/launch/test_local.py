"""launch/local.py: what it starts, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import children

ROOT = Path(__file__).parents[2]
LOCAL = [sys.executable, str(ROOT / "launch/local.py")]
# Writes what it was given and where, and waits to be told.
TELLING = """
import json, os, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: told.append(1))
told = []
open("ready" + sys.argv[-1][-1], "w").close()
print(json.dumps([sys.argv[1:], os.environ["JAX_PLATFORMS"], os.environ["JAX_NUM_CPU_DEVICES"]]), flush=True)
until = time.monotonic() + float(os.environ.get("WAIT", 0))
while time.monotonic() < until and not told:
    time.sleep(0.02)
time.sleep(0.3 * bool(told))
sys.exit(75 if len(told) < 2 else 1)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "telling.py").write_text(TELLING)
    monkeypatch.chdir(tmp_path)
    return "--module=telling"


def wait_for_both():
    until = time.monotonic() + 20
    while not all(os.path.exists(f"ready{process}") for process in range(2)):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_dry_run_prints_what_would_run(module):
    command = [*LOCAL, module, "--devices_per_process=3", "--dry-run", "--", "--split=train[:90%] x", "$HOME"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    runs = [subprocess.run(["bash", "-c", f"env {line}"], stdout=subprocess.PIPE) for line in lines]
    told = [json.loads(run.stdout) for run in runs]
    for process, (arguments, platform, devices) in enumerate(told):
        assert arguments[:2] == ["--split=train[:90%] x", "$HOME"]
        assert arguments[2].startswith("--coordinator=127.0.0.1:")
        assert arguments[3:] == ["--processes=2", f"--process={process}"]
        assert (platform, devices) == ("cpu", "3")
    assert len(told) == 2


@pytest.mark.parametrize("flag", ["--config=x", "-config=x", "--help", "-help"])
def test_a_config_with_one_dash_or_two_and_help_are_taken(flag):
    shown = subprocess.run([*LOCAL, "--dry-run", "--", flag], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f" {flag} " in shown.stdout


def test_ctrl_c_reaches_each_process_once(module):
    """A terminal sends it to the launcher and to whoever is in its group."""
    heard = ["env", "--default-signal=INT"]  # a shell's background jobs ignore it
    waiting = os.environ | {"WAIT": "100"}
    launcher = subprocess.Popen(
        [*heard, *LOCAL, module, "--processes=2", "--restarts=3"],
        env=waiting,
        stdout=subprocess.DEVNULL,
        process_group=0,
    )
    wait_for_both()
    os.killpg(launcher.pid, signal.SIGINT)
    assert launcher.wait(60) == 75  # and started nothing again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=0", "--", "--config=x"], "--processes: give a number from 1 on"),
        (["--devices_per_process=-1", "--", "--config=x"], "--devices_per_process: give a number from 1 on"),
        (["--restarts=-1", "--", "--config=x"], "--restarts: give a number from 0 on"),
        (["--processes=two", "--", "--config=x"], "argument --processes: invalid int value: 'two'"),
        (["--config=x"], "--config=x: unknown flag; --help names them, those of deit_jax.main come after --"),
        (["--dry-run", "--", "--workdir=x"], "--config: missing; give it after --"),
    ],
)
def test_mistakes_cost_a_line(arguments, message):
    done = subprocess.run([*LOCAL, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize("stopped", [0, 1])
def test_one_that_stands_does_not_keep_the_launcher(module, stopped):
    """The other ends with 75; nobody waits for this one, to which SIGTERM does not come."""
    command = [*LOCAL, module, "--processes=2"]
    launcher = subprocess.Popen(command, env=os.environ | {"WAIT": "1"}, stdout=subprocess.DEVNULL)
    wait_for_both()
    os.kill(children(launcher)[stopped], signal.SIGSTOP)
    assert launcher.wait(40) == 75
