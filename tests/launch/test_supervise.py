"""launch/supervise.sh: which exit statuses start a command again, how often, and what a signal does."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / "launch/supervise.sh")
# Ends in the first of $STATUSES that is left; 134 as JAX's runtime does it.
COMMAND = """
echo run >>runs
n=$(wc -l <runs)
status=$(echo $STATUSES | cut -d' ' -f$n)
[ $status != 134 ] || kill -ABRT $$
exit $status
"""


@pytest.mark.parametrize(
    ("statuses", "runs", "status"),
    [
        ("0", 1, 0),
        ("75 134 75 0", 4, 0),
        ("75 2 0", 2, 2),
        ("1 0", 1, 1),
        ("137 0", 1, 137),
        ("75 75 75 134 75 0", 5, 75),  # no tries left
    ],
)
def test_only_75_and_134_start_it_again(tmp_path, statuses, runs, status):
    command = [SCRIPT, "--tries=5", "--pause=0", "--", "bash", "-c", COMMAND]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"STATUSES": statuses}, capture_output=True)
    assert done.returncode == status
    assert (tmp_path / "runs").read_text().count("run") == runs


def wait_for(log, words):
    until = time.monotonic() + 20
    while not (log.exists() and words in log.read_text()):
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path, number):
    work = "trap 'echo saved; exit 75' TERM; echo working; while :; do sleep 0.05; done"
    heard = ["env", "--default-signal=INT"]  # a shell's background jobs ignore it
    process = subprocess.Popen([*heard, SCRIPT, "--pause=60", "--log=log", "--", "bash", "-c", work], cwd=tmp_path)
    log = tmp_path / "log"
    wait_for(log, "working\n")
    assert int((tmp_path / "log.pid").read_text()) == process.pid

    second = subprocess.run([SCRIPT, "--log=log", "--", "true"], cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 2
    assert second.stderr.startswith("error: log: written by another supervisor")

    process.send_signal(number)
    assert process.wait(20) == 75
    assert log.read_text().count("saved\n") == 1
    assert log.read_text().count(": try ") == 1


def test_a_signal_in_the_pause_stops(tmp_path):
    process = subprocess.Popen([SCRIPT, "--pause=60", "--log=log", "--", "bash", "-c", "exit 75"], cwd=tmp_path)
    wait_for(tmp_path / "log", "exit status 75\n")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    assert (tmp_path / "log").read_text().count(": try ") == 1


def test_a_stop_file_is_named(tmp_path):
    (tmp_path / "log.stop").touch()
    done = subprocess.run([SCRIPT, "--log=log", "--", "touch", "ran"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (75, "supervise: nothing is run, since there is log.stop\n")
    assert not (tmp_path / "ran").exists()


def test_a_signal_reaches_what_the_command_waits_for(tmp_path):
    """A command that ends at once, say, must not leave behind what it has begun."""
    work = "sleep 60 & echo working; wait"
    process = subprocess.Popen([SCRIPT, "--", "bash", "-c", work], stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() != "working\n":
        pass
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=20)  # until nothing holds the pipe
    assert process.returncode == 143
    assert told.endswith("exit status 143\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tries=0", "--", "true"], "--tries=0: give a number"),
        ([f"--tries={10**20}", "--", "true"], f"--tries={10**20}: give a number"),
        (["--log=/", "--", "true"], "--log=/: cannot be written; name another file"),
        (["--log=/dev/null/a", "--", "true"], "--log=/dev/null/a: cannot be written; name another file"),
        (["--pause=1m", "--", "true"], "--pause=1m: give a number of seconds"),
        (["--trials=3", "--", "true"], "--trials=3: unknown flag"),
        ([], "no command"),
    ],
)
def test_mistakes_cost_a_line(arguments, message):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_help_is_the_header():
    shown = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=True).stdout
    assert shown.startswith("Runs a command, and runs it again")
    assert "set -" not in shown


def test_dry_run_prints_the_command(tmp_path):
    command = [SCRIPT, "--dry-run", "--log=log", "--", "touch", "a b"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert list(tmp_path.iterdir()) == []
    subprocess.run(["bash", "-c", printed], cwd=tmp_path, check=True)
    assert (tmp_path / "a b").exists()
