"""launch/tpu_pod.sh against the fake gcloud: what it would run, and the story of a pod that is taken away."""

import itertools
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = "launch/tpu_pod.sh"
PLAIN = "--name=pod --zone=us-west4-a --type=v5litepod-16"
QUEUED = f"{PLAIN} --project=mine --queued --spot"
SLICES = f"{PLAIN} --slices=2 --create=--network=inner --create=--labels=for=deit --extra=wandb"
TRAIN = ["--", "--config=configs/deit_base.py:hardware=tpu", "--workdir=gs://bucket/it's mine/$HOME"]


@pytest.mark.parametrize(
    "flags", [*(pytest.param(kind, marks=pytest.mark.long) for kind in (f"{PLAIN} --reserved", QUEUED)), SLICES]
)
def test_dry_run_prints_what_would_run(worlds, flags):
    """What it prints, given to a shell in one world, calls what it calls itself in another."""
    ran, printed = worlds(), worlds()
    for command in ("create", "setup", "start", "stop", "delete"):
        rest = TRAIN if command == "start" else []
        dry = printed.run(SCRIPT, command, "--dry-run", *flags.split(), *rest)
        assert (dry.returncode, dry.stderr, printed.calls()) == (0, "", [])
        assert ran.run(SCRIPT, command, *flags.split(), *rest).returncode == 0
        subprocess.run(["bash", "-ec", dry.stdout], cwd=ROOT, env=printed.environment, capture_output=True, check=True)
        calls = [call for call, _ in itertools.groupby(ran.calls())]  # a state is asked for until it is the one wanted
        assert [call for call, _ in itertools.groupby(printed.calls())] == calls != []
        if command == "start":
            for world in (ran, printed):
                wait_for(lambda world=world: len(training(world)) == len(list(world.folder.glob("workers/*"))))


def test_resume_prints_the_longest_way(worlds):
    flags = QUEUED.split()
    dry = worlds().run(SCRIPT, "resume", "--dry-run", *flags, *TRAIN).stdout
    parts = [
        worlds().run(SCRIPT, c, "--dry-run", *flags, *TRAIN).stdout for c in ("delete", "create", "setup", "start")
    ]
    # That a run was stopped is for start alone to forget.
    assert dry.partition("\n")[2] == "".join(parts).replace("rm -f ~/train.log.stop\n", "")
    assert " describe " in dry.partition("\n")[0]


def stop_training(folder):
    for file in folder.rglob("train.log.pid"):
        if subprocess.run(["flock", "--nonblock", str(file), "true"]).returncode:
            os.kill(int(file.read_text()), signal.SIGTERM)
            subprocess.run(["flock", "--timeout", "20", str(file), "true"], check=True)


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def training(world):
    """The logs of the workers that train."""
    return [f for f in world.folder.glob("workers/*/train.log") if "training\n" in f.read_text()]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path):
    yield
    stop_training(tmp_path)


def test_a_queued_pod_from_nothing_to_training_and_back_after_it_was_taken_away(world):
    def pod(command, *rest):
        done = world.run(SCRIPT, command, *rest, TPU_POD=QUEUED)
        assert done.returncode == (75 if command == "resume" else 0), done
        return done

    pod("create")
    assert " ".join(world.calls()[0]) == (
        "gcloud compute tpus queued-resources create pod --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --node-id=pod --spot --zone=us-west4-a --project=mine"
    )
    assert "pod is WAITING_FOR_RESOURCES; looking again" in pod("setup").stderr
    pod("start", *TRAIN)
    wait_for(lambda: len(training(world)) == 2)
    home = world.folder / "workers/0-1"
    expected = ["-m", "deit_jax.main", TRAIN[1], TRAIN[2]]
    assert (home / "trained").read_text().splitlines() == expected  # as given: nothing is expanded on the way

    assert pod("start", *TRAIN).stdout.count("training is running") == 2
    assert pod("resume", *TRAIN).stdout == "pod: training is running\n"
    assert pod("setup").stdout.count("training is running") == 2  # and leaves its files alone
    assert (home / "trained").read_text().splitlines() == expected

    stop_training(world.folder)
    (world.folder / "states").write_text("SUSPENDING\nSUSPENDED\n")
    world.calls()
    assert pod("resume", *TRAIN).stdout.startswith("pod: is SUSPENDED; made anew\n")
    verbs = [call[4] for call in world.calls() if call[0] == "gcloud"]
    assert [v for v in verbs if v != "describe"] == ["delete", "create", "scp", "ssh", "ssh"]
    wait_for(lambda: len(training(world)) == 2)
    assert (home / "trained").read_text().splitlines() == expected  # a new worker, the same command

    assert pod("stop").stdout.count("exit status 75") == 2
    assert (home / "train.log").read_text().count("saved") == 1
    assert pod("stop").stdout.count("nothing is running") == 2
    pod("delete")
    assert not (world.folder / "workers").exists()


def resume(world, flags=PLAIN):
    return world.run(SCRIPT, "resume", *flags.split(), *TRAIN)


@pytest.fixture
def pod(world):
    """A world with a TPU that is set up."""
    for command in ("create", "setup"):
        assert world.run(SCRIPT, command, *PLAIN.split()).returncode == 0
    return world


def ended(world, *ends):
    """Makes the supervisors' last lines, each with an exit status, or what else is the last line."""
    for home, end in zip(sorted(world.folder.glob("workers/*")), ends, strict=True):
        last = f"supervise: 2026-01-01 00:00:00 {home.name}: exit status {end}" if isinstance(end, int) else end
        (home / "train.log").write_text(f"step 1\n{last}\n")


@pytest.mark.long
def test_resume_sets_up_a_worker_that_is_not(world):
    assert world.run(SCRIPT, "create", *PLAIN.split()).returncode == 0
    resumed = resume(world)
    assert (resumed.returncode, resumed.stdout.splitlines()[-1]) == (75, "pod: training is started")
    wait_for(lambda: len(training(world)) == 2)


@pytest.mark.long
def test_resume_knows_the_end_of_what_start_began(pod):
    for status, told in (0, "the run is done"), (2, "the run was refused"), (1, "the run failed"):
        (pod.folder / "status").write_text(str(status))
        assert pod.run(SCRIPT, "start", *PLAIN.split(), *TRAIN).returncode == 0
        logs = [home / "train.log" for home in pod.folder.glob("workers/*")]
        wait_for(lambda logs=logs, status=status: all(f"exit status {status}" in tail(log) for log in logs))
        for log in logs:  # what is said last is said before the lock is free
            subprocess.run(["flock", "--timeout", "20", f"{log}.pid", "true"], check=True)
        resumed = resume(pod)
        assert (resumed.returncode, told in resumed.stdout + resumed.stderr) == (status, True), resumed
        assert training(pod) == []


def tail(log):
    """The last line of a log that another process makes empty, and writes, meanwhile."""
    lines = log.read_text().splitlines() if log.exists() else []
    return lines[-1] if lines else ""


@pytest.mark.long
def test_resume_says_how_a_run_ended_and_starts_nothing(pod):
    for ends, status, told in (
        ((0, 0), 0, "pod: the run is done"),
        ((75, 2), 2, "error: pod: the run was refused ("),
        ((134, 1), 1, "error: pod: the run failed ("),
        ((137, 75), 1, "error: pod: the run failed ("),
    ):
        ended(pod, *ends)
        pod.calls()
        resumed = resume(pod)
        assert resumed.returncode == status
        assert (resumed.stdout + resumed.stderr).startswith(told)
        assert (resumed.stdout + resumed.stderr).count("\n") == 1
        assert [call[4] for call in pod.calls()] == ["describe", "ssh"]


@pytest.mark.parametrize("ends", [(75, 134), pytest.param((0, "step 7"), marks=pytest.mark.long)])
def test_resume_starts_what_was_lost(pod, ends):
    ended(pod, *ends)
    assert resume(pod).returncode == 75
    wait_for(lambda: len(training(pod)) == 2)


@pytest.mark.long
def test_resume_sets_up_nothing_where_a_worker_is_out_of_reach(pod):
    """Its code would be newer than that of the workers that have started."""
    ended(pod, 75, 75)
    (pod.folder / "cut").touch()
    pod.calls()
    assert resume(pod).returncode == 75
    assert [call[4] for call in pod.calls() if call[0] == "gcloud"] == ["describe", "ssh", "ssh"]
    assert resume(pod).returncode == 75
    wait_for(lambda: len(training(pod)) == 2)


def test_resume_does_not_undo_stop_whenever_it_comes(pod):
    """Also in the moment between a look and the start that it asks for."""
    assert pod.run(SCRIPT, "stop", *PLAIN.split()).returncode == 0
    resumed = resume(pod)
    assert (resumed.returncode, resumed.stdout) == (0, "pod: the run was ended by stop; start goes on\n")

    supervisor = ["bash", str(ROOT / "launch/supervise.sh"), f"--log={pod.folder}/workers/0-0/train.log", "--", "true"]
    assert subprocess.run(supervisor, capture_output=True).returncode == 75
    assert not (pod.folder / "workers/0-0/train.log").exists()

    assert pod.run(SCRIPT, "start", *PLAIN.split(), *TRAIN).returncode == 0
    wait_for(lambda: len(training(pod)) == 2)


@pytest.mark.parametrize("states", ["", "DELETING\n"])
def test_resume_does_not_undo_delete(world, states):
    if states:
        (world.folder / "states").write_text(states)
    resumed = resume(world)
    assert resumed.returncode == 2
    assert resumed.stderr.startswith(f"error: pod is {states.strip() or 'NOT_FOUND'}; create, setup and start make it")
    assert [call[4] for call in world.calls()] == ["describe"]


@pytest.mark.long
def test_resume_asks_once_a_look_until_there_is_room(pod):
    (pod.folder / "states").write_text("PREEMPTED\n")
    (pod.folder / "full").touch()
    pod.calls()
    assert resume(pod).returncode == 75
    assert [call[4] for call in pod.calls()] == ["describe", "delete", "create"]
    assert resume(pod).returncode == 75
    verbs = [call[4] for call in pod.calls() if call[0] == "gcloud"]
    assert verbs[:2] == ["describe", "create"]
    wait_for(lambda: len(training(pod)) == 2)

    stop_training(pod.folder)
    assert pod.run("gcloud", "compute", "tpus", "tpu-vm", "delete", "pod", "--zone=z-a", "--quiet").returncode == 0
    assert resume(pod).returncode == 2  # what was made anew, and deleted then, is not wanted


@pytest.mark.long
def test_resume_waits_for_the_end_of_what_it_deletes(pod):
    (pod.folder / "states").write_text("PREEMPTED\n")
    (pod.folder / "full").touch()
    assert resume(pod).returncode == 75
    (pod.folder / "states").write_text("DELETING\n")
    pod.calls()
    assert resume(pod).returncode == 75
    assert [call[4] for call in pod.calls()] == ["describe"]


@pytest.mark.long
def test_delete_ends_the_asking_for_another(pod):
    (pod.folder / "states").write_text("PREEMPTED\n")
    (pod.folder / "full").touch()
    assert resume(pod).returncode == 75
    assert pod.run(SCRIPT, "delete", *PLAIN.split()).returncode == 1  # there is nothing to give back
    assert resume(pod).returncode == 2


@pytest.mark.long
def test_a_look_that_fails_is_followed_by_another(pod):
    """A TPU that is taken away in the midst of it, say."""
    (pod.folder / "states").write_text("READY\nPREEMPTED\n")
    assert resume(pod).returncode == 75
    (pod.folder / "states").write_text("RESTARTING\nPREEMPTED\n")
    assert resume(pod).returncode == 75


def test_a_supervisor_looks_until_the_run_is_over(pod):
    """As launch/tpu_pod.sh --help and the guide have it."""
    ended(pod, 75, "step 7")
    (pod.folder / "status").write_text("0")
    again = [str(ROOT / "launch/supervise.sh"), "--pause=1", "--", str(ROOT / SCRIPT), "resume", *PLAIN.split(), *TRAIN]
    watched = pod.run("bash", *again)
    assert watched.returncode == 0
    assert "pod: the run is done\n" in watched.stdout


@pytest.mark.parametrize(("flags", "lines"), [([], 1), (["--all"], 2)])
def test_tail_follows_worker_0_or_all(world, flags, lines):
    world.run(SCRIPT, "create", *PLAIN.split())
    for home in world.folder.glob("workers/*"):
        (home / "train.log").write_text("step 1\n")
    dry = world.run(SCRIPT, "tail", "--dry-run", *PLAIN.split(), *flags).stdout
    once = dry.replace(" -F ", " ")
    assert once != dry
    shown = subprocess.run(["bash", "-c", once], env=world.environment, capture_output=True, text=True)
    assert [line.partition(": ")[2] for line in shown.stdout.splitlines()] == ["step 1"] * lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("launch", "launch: unknown command; known are create"),
        ("create --zone=z", "--name: missing"),
        ("create --name=n", "--zone: missing"),
        ("create --name --zone=z-a", "--name: no value; give it as --name=VALUE"),
        ("create --name='a pod' --zone=z-a", "--name=a pod: give small letters"),
        ("create --name=n --zone='z a'", "--zone=z a: no zone"),
        ("create --name=n --zone=z-a", "--type: missing"),
        ("setup --name=n --zone=z-a --extra=", "--extra: no value; give it as --extra=VALUE"),
        ("create --name=n --zone=z-a --type=v4-8 --slices=0", "--slices=0: give a number"),
        ("create --name=n --zone=z-a --type=v4-8 --sport", "--sport: unknown flag"),
        ("create --name=n --zone=z-a --type=v4-8 --spot --reserved", "--spot --reserved: give one of the two"),
        ("setup --name=n --zone=z-a --extra='a b'", "--extra: give a name"),
        (
            "start --name=n --zone=z-a --module=a/b.py -- --config=x",
            "--module=a/b.py: give one such as deit_jax.precompute",
        ),
        ("start --name=n --zone=z-a --env=A -- --config=x", "--env=A: give NAME=VALUE"),
        ("start --name=n --zone=z-a", "--config: missing"),
        ("start --name=n --zone=z-a -- --config.seed=1", "--config: missing"),
        ("start --name=n --zone=z-a --config=x", "--config=x: unknown flag; launch/tpu_pod.sh --help names them"),
        ("resume --name=n --zone=z-a -- --config=x", "--type: missing"),
        ("resume --name=n --zone=z-a --type=v4-8", "--config: missing"),
        ("setup --name=n --zone=z-a", "n is NOT_FOUND; launch/tpu_pod.sh create"),
    ],
)
def test_mistakes_cost_a_line(world, arguments, message):
    done = world.run(SCRIPT, *shlex.split(arguments))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert [call[4] for call in world.calls()] in ([], ["describe"])


def test_another_module_and_what_is_in_its_environment(pod):
    more = ["--module=deit_jax.precompute", "--env=FLAGS=--a=1 --b=it's", "--env=KEY="]
    assert pod.run(SCRIPT, "start", *PLAIN.split(), *more, *TRAIN).returncode == 0
    wait_for(lambda: len(training(pod)) == 2)
    home = pod.folder / "workers/0-1"
    assert (home / "trained").read_text().splitlines() == ["-m", "deit_jax.precompute", *TRAIN[1:]]
    assert {"FLAGS=--a=1 --b=it's", "KEY="} <= set((home / "environment").read_text().splitlines())
    assert "FLAGS" not in (home / "train.log").read_text()  # it may be a secret


def test_a_tpu_that_a_person_stopped_is_left_alone(world):
    (world.folder / "states").write_text("STOPPING\nSTOPPED\n")
    resumed = resume(world)
    assert resumed.returncode == 2
    assert (
        resumed.stderr
        == "error: pod is STOPPED; gcloud compute tpus tpu-vm start pod --zone=us-west4-a, and this again\n"
    )
    assert [call[4] for call in world.calls()] == ["describe", "describe"]


def test_without_a_key_in_an_agent_a_note_says_so(world):
    (world.folder / "no key").touch()
    assert world.run(SCRIPT, "setup", *PLAIN.split()).stderr.startswith("note: no ssh agent has a key")
    assert world.run(SCRIPT, "create", *PLAIN.split()).stderr == ""


def test_a_config_may_have_one_dash(world):
    assert world.run(SCRIPT, "start", "--dry-run", *PLAIN.split(), "--", "-config=x").returncode == 0


def test_help_is_the_header(world):
    shown = world.run(SCRIPT, "--help")
    assert shown.returncode == 0
    assert shown.stdout.startswith("Trains on Cloud TPU VMs")
    assert "--queued" in shown.stdout
    assert "set -e" not in shown.stdout
