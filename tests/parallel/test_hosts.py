"""How processes find each other, compare what they have, and end together; without a run."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from processes import NO_TPU, PROGRAM, ROOT, end, start

from deit_jax.base.errors import UserError
from deit_jax.parallel.cluster import FLAGS, VARIABLES, Cluster, find, visible_gpus

NONE = dict.fromkeys(FLAGS, "")
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[001-003]",
    "SLURM_NTASKS": "6",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
    "SLURM_NODEID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}


def given(*values):
    return dict(zip(FLAGS, values, strict=True))


def found(environment, gpus=0, flags=NONE):
    return find(flags, NO_TPU | environment, gpus=gpus)


def test_a_process_alone():
    assert found({}) is None
    assert found({}, flags=given("a:1", "1", "0")) is None
    assert found(SLURM | {"SLURM_NTASKS": "1"}) is None
    assert found({name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}) is None
    assert found(OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert found({"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    assert found({VARIABLES[0]: "a:1"}) is None  # an address for a cluster that JAX may know


def test_flags_go_before_variables_and_those_before_clusters():
    variables = dict(zip(VARIABLES, ("b:2", "8", "7"), strict=True))
    assert found(SLURM | variables, flags=given("a:1", "2", "1")) == Cluster("--coordinator", "a:1", 2, 1)
    assert found(SLURM | variables) == Cluster(VARIABLES[0], "b:2", 8, 7)
    assert found(SLURM | OPEN_MPI).source == "Open MPI"  # as JAX has it


def test_a_host_shares_its_gpus_out():
    """JAX would give each process of SLURM and Open MPI a single one."""
    assert found(SLURM, gpus=8) == Cluster("SLURM", devices=(4, 5, 6, 7))
    assert found(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8,1", "SLURM_LOCALID": "0"}, gpus=8).devices == tuple(range(8))
    assert found(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "5"}, gpus=8).devices == (5,)
    assert found(OPEN_MPI, gpus=8).devices == (4, 5)
    assert found(SLURM).devices is None  # there are none
    assert found(SLURM, gpus=1).devices == (0,)  # shared out already, one each
    for bound in ({"SLURM_GPUS_PER_TASK": "4"}, {"SLURM_TRES_PER_TASK": "cpu=8,gres/gpu=4"}):
        assert found(SLURM | bound, gpus=4).devices is None


def test_gpus_that_a_process_sees():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2,5,"}) == 2
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (("", "2", "1"), r"--coordinator: missing; --coordinator, --processes, --process belong together"),
        (("a:1", "2", ""), r"--process: missing"),
        (("a", "2", "1"), r"--coordinator: a is no HOST:PORT"),
        (("a:b", "2", "1"), r"--coordinator: a:b is no HOST:PORT"),
        (("a:1", "two", "1"), r"--processes: two is no number"),
        (("a:1", "2", "-1"), r"--process: -1 is no number"),
        (("a:1", "2", "2"), r"--process: is 2, and --processes 2; count from 0 to 1"),
    ],
)
def test_flags_that_do_not_belong_together(values, says):
    with pytest.raises(UserError, match=says):
        found({}, flags=given(*values))


def test_variables_that_do_not_belong_together():
    with pytest.raises(UserError, match=r"JAX_COORDINATOR_ADDRESS: missing; .*JAX_PROCESS_ID belong together"):
        found({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"})


def test_they_meet_and_gather():
    do = "assert hosts.gather(str(hosts.index())) == ['0', '1', '2'] and hosts.all_agree(True) is True"
    do += "; assert hosts.all_agree(hosts.index() != 1) is False; hosts.require_same({'x': 1, 'y': [2]})"
    for i, (status, out, err) in enumerate(end(start(do, count=3))):
        assert (status, out, err) == (0, f"done {i}\n", "")


@pytest.mark.parametrize("cluster", ["SLURM", "Open MPI", "variables"])
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
    said = [error for _, _, err in ends for error in err.splitlines() if error.endswith(line)]
    assert len(said) in (1, 2)  # by the one that was first, and by process 0 of another


def test_a_mistake_in_one_ends_all_with_its_status():
    do = ["time.sleep(60)", "raise UserError('config.x: is wrong; mend it')"]
    begun = time.monotonic()
    (first, _, heard), (second, _, said) = end(start(do))
    host = socket.gethostname()
    assert (first, second) == (2, 2)
    assert said == f"process 1 ({host}): error: config.x: is wrong; mend it\n"
    assert heard == (
        f"process 0 ({host}): process 1 ({host}) ended with status 2: error: config.x: is wrong; mend it\n"
    )
    assert time.monotonic() - begun < 30


@pytest.mark.long
def test_an_exception_keeps_its_traceback_and_ends_all():
    (first, _, heard), (second, _, said) = end(start(["time.sleep(60)", "1 / 0"], step_timeout=20))
    assert (first, second) == (1, 1)
    assert "Traceback" in said
    assert "ended with status 1: ZeroDivisionError: division by zero" in heard


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)])
def test_one_that_is_lost_is_named_in_time(number, lost):
    """Also where the other waits for it where Python has no say."""
    wait = "print('here', flush=True); hosts.gather('again')"
    do = [wait, wait]
    do[lost] = "print('here', flush=True); time.sleep(100)"
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
    assert took < 8 + 6
    lines = [line for line in err.splitlines() if line.startswith(f"process {1 - lost} ({host}): ")]
    assert len(lines) == 1
    assert f"process {lost} ({host})" in lines[0]
    assert "here was its work" in lines[0]


def test_one_that_hangs_is_named_with_its_stacks():
    """While it still gives signs of life: in what it does, and in the words of those that wait for it."""
    do = ["hosts.gather('x')", "hosts.at('the data of step 7')\ndef hang(): time.sleep(100)\nhang()"]
    (first, _, heard), (second, _, said) = end(start(do, step_timeout=4))
    assert (first, second) == (75, 75)
    both = heard + said
    assert "in hang" in said or "the data of step 7" in heard
    assert "has taken 4 seconds, as long as --step_timeout allows" in both
    assert "the data of step 7" in both


def test_a_coordinator_that_is_not_there():
    ((status, _, err),) = end(start("", "--start_timeout=2", only=1))
    assert status == 2
    assert "error: --coordinator: 127.0.0.1:" in err
    assert "cannot be reached, tried for 2 seconds" in err
    assert len(err.splitlines()) == 1


def test_a_process_that_does_not_come():
    ((status, _, err),) = end(start("", "--start_timeout=3", only=0))
    assert status == 2
    assert "not all processes have come within 3 seconds" in err


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


def test_one_that_is_told_to_end_before_its_first_step_ends_all_to_be_started_again():
    texts = ["time.sleep(60)", "os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)"]
    (other, _, _), (told, _, err) = end(start(texts))
    assert (other, told) == (75, 75)
    assert "interrupted; the same command goes on" in err


def test_who_agrees_to_stop_waits_for_those_that_clean_up():
    text = """
from deit_jax.run.interrupt import Stopped
try:
    raise Stopped("stopped at step 7")
finally:
    time.sleep(4 * (hosts.index() == 0))
    print("cleaned", flush=True)
"""
    (first, *said), (other, *silent) = end(start(text))
    assert (first, other) == (75, 75)
    assert said == ["cleaned\n", "stopped at step 7\n"]
    assert silent == ["cleaned\n", ""]


def test_weights_that_differ_are_named():
    text = "import numpy as np; hosts.require_equal('the weights of it', {'a.bias': np.full(3, hosts.index())})"
    statuses, _, told = zip(*end(start(text)), strict=True)
    assert statuses == (2, 2)
    assert "error: the weights of it: is " in "".join(told)
