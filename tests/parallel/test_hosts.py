"""How processes find each other, compare what they have, and end together; without a run."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from processes import FLAGS, NO_TPU, OPEN_MPI, PATIENCE, PROGRAM, ROOT, SLURM, Two, a_port, end, start
from tiny import tiny_config

from deit_jax.base.cluster import VARIABLES, Cluster
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.parallel import exchange, hosts
from deit_jax.parallel.peers import SILENT, Peers
from deit_jax.run.build import open_mesh


@pytest.mark.parametrize("coordinator", ["127.0.0.1:0", None])
def test_what_is_known_of_them_reaches_jax(coordinator, monkeypatch):
    """Devices, too; where the user tells it all, JAX is not to look who started this, and give each a single one."""
    told = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: told.update(options, args=args))
    hosts.start(Cluster("SLURM", coordinator, 4, 0, (4, 5)), start_timeout=5, step_timeout=0)
    assert told["args"] == (coordinator, 4, 0, (4, 5))
    assert told["cluster_detection_method"] == ("deactivate" if coordinator else None)
    assert told["initialization_timeout"] > 5  # ours comes first
    assert told["heartbeat_timeout_seconds"] > SILENT
    assert 0 < told["shutdown_timeout_seconds"] < 60


def test_a_network_that_does_not_tell_of_the_others_is_tried_again(monkeypatch):
    """As where the metadata of a cloud machine is out of reach for a moment."""

    def initialize(*given, **options):
        raise ConnectionError("metadata: no route to host")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(TryAgain, match=r"^TPU: its processes: cannot be started: metadata: no route to host"):
        hosts.start(Cluster("TPU"), start_timeout=5, step_timeout=0)


def test_they_meet_and_gather():
    do = "assert hosts.gather(str(hosts.index())) == ['0', '1', '2']; hosts.require_same({'x': 1, 'y': [2]})"
    do += "; print([hosts.notes(note) for note in ('old', '', 'own' * (hosts.index() == 1))])"
    # What all note is said once, and by the first.
    noted = [["old"], [], [f"process 1 ({socket.gethostname()}): own"]]
    for i, (status, out, err) in enumerate(end(start(do, count=3))):
        assert (status, out, err) == (0, f"{[[], [], []] if i else noted}\ndone {i}\n", "")


@pytest.mark.long
def test_a_thread_that_waits_for_ever_keeps_none_from_ending():
    """As Orbax leaves one where a save was given up."""
    waiting = "import threading; threading.Thread(target=time.sleep, args=(600,)).start()"
    for i, (status, out, err) in enumerate(end(start(waiting))):
        assert (status, out, err) == (0, f"done {i}\n", "")


@pytest.mark.parametrize(
    "cluster", ["SLURM", *(pytest.param(other, marks=pytest.mark.long) for other in ("Open MPI", "variables"))]
)
def test_they_find_each_other_by_what_started_them(cluster):
    host, job = "127.0.0.1", os.getpid() % 4000
    environments = {
        "SLURM": lambda i: (
            SLURM
            | {"SLURM_STEP_NODELIST": host, "SLURM_NTASKS": "2", "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
            | {"SLURM_JOB_ID": str(job)}
        ),
        "Open MPI": lambda i: (
            OPEN_MPI
            | {"OMPI_MCA_orte_hnp_uri": f"{4096 * (job + 1)}.0;tcp://{host}:1", "OMPI_COMM_WORLD_SIZE": "2"}
            | {"OMPI_COMM_WORLD_RANK": str(i), "OMPI_COMM_WORLD_LOCAL_RANK": str(i)}
        ),
        "variables": lambda i: dict(zip(VARIABLES, (f"{host}:{61000 - job}", "2", str(i)), strict=True)),
    }
    own = [environments[cluster](i) for i in range(2)]
    for i, (status, out, err) in enumerate(end(start("hosts.gather('x')", environment=own))):
        assert (status, out, err) == (0, f"done {i}\n", "")


def test_what_differs_is_named_and_where():
    ends = end(start("hosts.require_same({'config.seed': hosts.index() // 2, 'jax': '1'})", count=3))
    assert [status for status, _, _ in ends] == [2, 2, 2]
    host = socket.gethostname()
    line = (
        f"error: config.seed: is 0 in process 0 ({host}) and 1 in process 2 ({host}); start all of a run with the same "
        f"command, code and data"
    )
    assert [err for _, _, err in ends] == [f"{line}\n", "", ""]


@pytest.mark.long
def test_another_number_of_processes_is_named():
    """The one that expects more would wait for a third, which nobody starts, again and again."""
    address = f"127.0.0.1:{a_port()}"
    told = [dict(zip(VARIABLES, (address, count, str(i)), strict=True)) for i, count in enumerate("23")]
    (first, _, heard), (second, _, said) = end(start("", environment=told))
    line = "error: the number of processes: is 2 in process 0 and 3 in process 1; start all of a run with the same\n"
    assert (first, second, said) == (2, 2, f"process 1: {line}")
    assert heard.endswith(f"process 1 ended with status 2: {line}")


def test_a_mistake_in_one_ends_all_with_its_status():
    do = ["time.sleep(600)", "raise UserError('config.x: is wrong; mend it')"]
    (first, _, heard), (second, _, said) = end(start(do))
    host = socket.gethostname()
    assert (first, second) == (2, 2)
    assert said == f"process 1 ({host}): error: config.x: is wrong; mend it\n"
    assert heard == (
        f"process 0 ({host}): process 1 ({host}) ended with status 2: error: config.x: is wrong; mend it\n"
    )


def test_a_mistake_before_they_meet_names_its_process():
    ((status, _, said),) = end(start("", "--step_timeout=soon", only=1))
    assert (status, len(said.splitlines())) == (2, 1)
    assert said.startswith(f"process 1 ({socket.gethostname()}): ")
    assert "--step_timeout" in said


LATE = "DEADLINE_EXCEEDED: Gloo context initialization failed"


@pytest.mark.long
@pytest.mark.parametrize(
    ("do", "status", "line"),
    [
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        (f"import jax; raise jax.errors.JaxRuntimeError('{LATE}')", 75, f"JaxRuntimeError: {LATE}"),
    ],
)
def test_an_exception_keeps_its_traceback_and_ends_all(do, status, line):
    (first, _, heard), (second, _, said) = end(start(["time.sleep(60)", do], step_timeout=20))
    assert (first, second) == (status, status)
    assert "Traceback" in said
    assert f"ended with status {status}: {line}" in heard


@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)])
def test_one_that_is_lost_is_named_in_time(number, lost):
    """Also where the other waits for it where Python has no say."""
    wait = "print('here', flush=True); hosts.gather('again')"
    do = [wait, wait]
    do[lost] = "print('here', flush=True); time.sleep(600)"
    started = start(do, step_timeout=8)
    for process in started:
        assert process.stdout.readline() == "here\n"
    begun = time.monotonic()
    started[lost].send_signal(number)
    ((status, _, err),) = end([started[1 - lost]])
    took = time.monotonic() - begun
    started[lost].kill()
    end([started[lost]])
    host = socket.gethostname()
    assert status == 75
    assert took < 8 + 6 + 20  # a busy machine
    lines = [line for line in err.splitlines() if line.startswith(f"process {1 - lost} ({host}): ")]
    assert len(lines) == 1
    assert f"process {lost} ({host})" in lines[0]
    assert "here was its work" in lines[0]


def test_one_that_hangs_is_named_with_its_stacks():
    """While it still gives signs of life."""
    goes_on = "for _ in range(100): hosts.at('step 7'); time.sleep(0.5)"
    hangs = "hosts.at('the data of step 7')\ndef hang(): time.sleep(100)\nhang()"
    (first, _, heard), (second, _, said) = end(start([goes_on, hangs], step_timeout=4))
    assert (first, second) == (75, 75)
    assert "in hang" in said
    line = "the data of step 7 has taken 4 seconds, as long as --step_timeout allows; process 0 "
    assert line in said.splitlines()[-1]
    assert line in heard.splitlines()[-1]


def test_of_many_those_are_named_that_are_somewhere_else(monkeypatch):
    peers = Peers(None, "a:1", 3, 64, step_timeout=30)
    peers._signs = [("7", "the data of step 7" if peer in (20, 63) else "step 7") for peer in range(64)]
    peers._quiet[41] = 18.4
    peers.watchdog.at("step 7")
    told = []
    monkeypatch.setattr(peers, "leave", lambda status, line: told.append((status, line)))
    peers._hung("step 7 has taken long")
    ((status, line),) = told
    assert status == 75
    assert line.startswith(
        "step 7 has taken long; process 41, silent for 18 seconds, was at step 7; process 20 is at the data of step 7; "
        "process 63 is at the data of step 7; process 0 is at step 7; "
    )
    assert line.count(" at ") == 8


def test_a_service_that_is_gone_is_process_0s(monkeypatch):
    class Gone:
        def key_value_set(self, *given, **options):
            raise jax.errors.JaxRuntimeError("UNAVAILABLE")

    peers = Peers(Gone(), "a:1", 1, 2, step_timeout=30)
    monkeypatch.setattr(peers, "blame", lambda: None)
    with pytest.raises(TryAgain, match=r"^process 0: UNAVAILABLE$"):
        peers.gather("x")


def test_the_numbers_of_processes_are_in_the_order_of_the_service(monkeypatch):
    """Which a platform need not have."""
    monkeypatch.setattr(hosts, "gather", lambda told: ["1", "0"])
    monkeypatch.setattr(exchange, "replicated", lambda mesh: None)
    devices = [SimpleNamespace(process_index=process) for process in (0, 0, 1, 1)]
    rows = exchange.Exchange(Mock(Mesh, devices=np.array(devices))).read(np.arange(4.0)[:, None])
    assert rows.tolist() == [[2.0], [0.0]]


# What compiles has minutes, until something hangs: a busy machine takes long for what comes before.
HANG = """
import time
from deit_jax.parallel import hosts, watchdog
def hang(*given, **options):
    watchdog.COMPILING = 0
    hosts._watchdog.at(hosts._watchdog._task[0])
    time.sleep(1000)
"""
# A command of one process in which something does.
HANGING = f"""{HANG}
import jax
import deit_jax.distill.open
from deit_jax import cli, main, precompute
from deit_jax.run import evaluate, stream, train
WHERE = hang
cli.run(COMMAND.main)
"""
HARD = ["--config.distillation.kind=hard", "--config.distillation.teacher.name=deit_tiny_patch16_224", "--output=store"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "where", "flags", "doing"),
    [
        ("main", "jax.default_backend", [], "the start of JAX"),
        ("main", "stream.open_source", [], "the training split"),
        ("main", "evaluate.has_steps", ["--mode=evaluate"], "the weights to evaluate"),
        ("precompute", "deit_jax.distill.open._from_registry", HARD, "the teacher"),
    ],
)
def test_what_hangs_before_the_first_step_is_ended_and_named(module, where, flags, doing, tmp_path):
    program = HANGING.replace("WHERE", where).replace("COMMAND", module)
    told = [f"--config={ROOT / 'configs/quickstart.py'}", "--step_timeout=8", *flags]
    done = subprocess.run(
        [sys.executable, "-c", program, *told], cwd=tmp_path, env=os.environ | NO_TPU | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    line = f"{doing} has taken 8 seconds, as long as --step_timeout allows"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (75, line)


# A run whose one data worker never comes back from an image of the training split.
STUCK = f"""{HANG}
from deit_jax import cli, main
from deit_jax.data.memory import MemorySource
read = MemorySource.__getitem__
def now_and_then(source, index):
    if len(source) > 1000 and index % 5 == 0: hang()
    return read(source, index)
MemorySource.__getitem__ = now_and_then
cli.run(main.main)
"""


@pytest.mark.long
def test_a_data_worker_that_hangs_ends_the_run_which_names_the_image(tmp_path):
    command = [sys.executable, "-c", STUCK, *FLAGS, f"--workdir={tmp_path}", "--step_timeout=15"]
    environment = os.environ | NO_TPU | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    line = r"the data of step 1, reading .*\[\d*[05]\] has taken 15 seconds, as long as --step_timeout allows"
    assert done.returncode == 75, done.stderr
    assert re.fullmatch(line, done.stderr.splitlines()[-1])


def test_a_coordinator_that_is_not_there():
    ((status, _, err),) = end(start("", "--start_timeout=2", only=1))
    assert status == 2
    assert err.startswith(f"process 1 ({socket.gethostname()}): error: --coordinator: 127.0.0.1:")
    assert "cannot be reached, tried for 2 seconds" in err
    assert len(err.splitlines()) == 1


@pytest.mark.long
def test_a_process_that_does_not_come():
    ((status, _, err),) = end(start("", "--start_timeout=3", only=0))
    assert status == 2
    line = f"process 0 ({socket.gethostname()}): error: --coordinator: 127.0.0.1:"
    assert err.startswith(line)
    assert "not all processes have come within 3 seconds" in err


@pytest.mark.long
def test_a_port_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        told = [f"--coordinator=127.0.0.1:{taken.getsockname()[1]}", "--processes=2", "--process=0"]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *told, "--start_timeout=5", "--do="],
            cwd=ROOT, env=os.environ | NO_TPU, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert "cannot be started" in done.stderr


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("True", id="before the first step"),
        pytest.param("Interrupt()", id="in a recording", marks=pytest.mark.long),
    ],
)
def test_one_that_is_told_to_end_where_it_saves_nothing_ends_all_to_be_started_again(where):
    """The other one waits for it in vain otherwise."""
    stopped = f"""
import contextlib, threading
from deit_jax.run.interrupt import Interrupt
where = {where}
with contextlib.nullcontext() if where is True else where:
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()  # a second one, while it leaves
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    (told, _, err), (other, _, _) = end(start([stopped, "hosts.gather('in vain')"]))
    assert (other, told) == (75, 75)
    assert "interrupted; the same command goes on" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        ("alike(UserError('no room'))", 2, "error: no room\n"),
        pytest.param("Stopped('stopped at step 7')", 75, "stopped at step 7\n", marks=pytest.mark.long),
    ],
)
def test_what_all_end_with_waits_for_those_that_clean_up(error, status, line):
    """Such as a result that is still to be told, or the rows of a run in a bucket."""
    text = f"""
from deit_jax.base.errors import alike
from deit_jax.run.interrupt import Stopped
try:
    raise {error}
finally:
    time.sleep(2 * (hosts.index() == 0))
    print("cleaned", flush=True)
"""
    (first, *said), (other, *silent) = end(start(text))
    assert (first, other) == (status, status)
    assert said == ["cleaned\n", line]
    assert silent == ["cleaned\n", ""]


def test_what_one_has_heard_of_another_is_told_once(monkeypatch):
    monkeypatch.setattr(hosts, "_peers", Two(["process 0: no ro", "another", "no room"]))
    assert [hosts.objections("no room") for _ in range(3)] == [
        ["process 0: no room"],
        ["process 0: no room", "process 1: another"],
        ["no room"],
    ]


def test_processes_of_different_numbers_of_devices_are_told(monkeypatch):
    """They would train, and could save nothing."""
    monkeypatch.setattr(hosts, "_peers", Two(['{"the number of devices": 7}']))
    line = r"^the number of devices: is 8 in process 0 and 7 in process 1; see what ails the one, or leave it out$"
    with pytest.raises(UserError, match=line):
        open_mesh(tiny_config())


@pytest.mark.long
def test_weights_that_differ_are_named():
    text = "import numpy as np; hosts.require_equal('the weights of it', {'a.bias': np.full(3, hosts.index())})"
    statuses, _, told = zip(*end(start(text)), strict=True)
    assert statuses == (2, 2)
    assert "error: the weights of it: is " in "".join(told)


@pytest.mark.long
def test_images_that_cannot_be_decoded_are_counted_once_for_all_processes():
    text = """
from deit_jax.run.corrupt import Corrupt
corrupt = Corrupt(100, 0.03)
for found in ([7, 8 + hosts.index()], [7, 8]):  # three in all
    corrupt.add(found)
    corrupt.check()
corrupt.add([50] * hosts.index())
corrupt.check()
"""
    statuses, _, told = zip(*end(start(text)), strict=True)
    assert statuses == (2, 2)
    assert "error: config.data.max_corrupt: 4 of 100 images could not be decoded, 3.00% are allowed" in "".join(told)
