"""What flags and the environment tell of the processes of a run."""

import socket

import pytest
from processes import NO_TPU, OPEN_MPI, SLURM

from deit_jax.base.cluster import FLAGS, VARIABLES, Cluster, find, own_name, visible_gpus
from deit_jax.base.errors import UserError

NONE = dict.fromkeys(FLAGS, "")
INDEXED = {"JOB_COMPLETION_INDEX": "3", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}


def given(*values):
    return dict(zip(FLAGS, values, strict=True))


def found(environment, gpus=0, flags=NONE, **more):
    return find(flags, NO_TPU | environment, gpus=gpus, **more)


def test_a_process_alone():
    assert found({}) is None
    assert found({}, flags=given("a:1", "1", "0")) is None
    assert found(SLURM | {"SLURM_NTASKS": "1"}) is None
    assert found({name: value for name, value in SLURM.items() if name != "SLURM_STEP_NODELIST"}) is None
    assert found(OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert found({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}) is None
    assert found(INDEXED, flags=given("localhost:1", "1", "0")) is None
    assert found({VARIABLES[0]: "a:1"}) is None  # an address for a cluster that JAX may know


def test_flags_go_before_variables_and_those_before_clusters():
    variables = dict(zip(VARIABLES, ("b:2", "8", "7"), strict=True))
    assert found(SLURM | variables, flags=given("a:1", "2", "1")) == Cluster("--coordinator", "a:1", 2, 1)
    assert found(SLURM | variables) == Cluster(VARIABLES[0], "b:2", 8, 7)
    assert found(SLURM | OPEN_MPI).source == "Open MPI"  # as JAX has it


@pytest.fixture
def packages(monkeypatch):
    """Those that are there, of the two that tell of others."""
    there: set[str] = set()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name in there)
    return there


def test_pods_of_an_indexed_job_find_each_other_or_say_what_is_missing(packages):
    """Each by itself they would all train the same run, into the same workdir."""
    with pytest.raises(UserError, match=r"^JOB_COMPLETION_INDEX: is 3, .*; pip install kubernetes, or give --coord"):
        found(INDEXED)
    assert own_name([], NO_TPU | INDEXED) == socket.gethostname()
    assert found(INDEXED, flags=given("a:1", "4", "3")) == Cluster("--coordinator", "a:1", 4, 3)
    assert found(INDEXED | dict(zip(VARIABLES, ("a:1", "4", "3"), strict=True))) == Cluster(VARIABLES[0], "a:1", 4, 3)
    packages.add("kubernetes")
    assert found(INDEXED) == Cluster("Kubernetes")


@pytest.mark.parametrize("told", [{"TPU_WORKER_HOSTNAMES": "a,b,c,d"}, {"JAX_PLATFORMS": "tpu,cpu"}])
def test_pods_on_tpus_need_no_package_of_kubernetes(told, packages):
    packages.add("libtpu")
    assert find(NONE, INDEXED | told, gpus=0) == Cluster("TPU")


def test_a_compiler_for_tpus_makes_no_tpu_of_a_pod(packages):
    packages.update(("libtpu", "kubernetes"))
    assert find(NONE, INDEXED, gpus=8) == Cluster("Kubernetes")


def test_a_host_shares_its_gpus_out():
    """JAX would give each process of SLURM and Open MPI a single one."""
    assert found(SLURM, gpus=8) == Cluster("SLURM", None, 6, 3, (4, 5, 6, 7))
    assert found(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8,1", "SLURM_LOCALID": "0"}, gpus=8).devices == tuple(range(8))
    assert found(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "5"}, gpus=8).devices == (5,)
    assert found(OPEN_MPI, gpus=8).devices == (4, 5)
    assert found(SLURM).devices is None  # there are none
    assert found(SLURM, gpus=1).devices == (0,)  # shared out already, one each
    bound = {"SLURM_GPUS_PER_TASK": "4"}, {"SLURM_TRES_PER_TASK": "cpu=8,gres/gpu=4"}, {"SLURM_GPUS_ON_NODE": "8"}
    for variables in bound:
        assert found(SLURM | variables, gpus=4).devices == (0, 1, 2, 3)  # those of the task, which sees no others
    for of_node in ("8", "", "(null)"):
        assert found(SLURM | {"SLURM_GPUS_ON_NODE": of_node}, gpus=8).devices == (4, 5, 6, 7)


@pytest.mark.parametrize(("environment", "source", "count"), [(SLURM, "SLURM", 2), (OPEN_MPI, "Open MPI", 4)])
def test_gpus_that_do_not_divide_are_nobodys(environment, source, count):
    with pytest.raises(
        UserError, match=rf"^{source}: 7 GPUs are not shared out evenly among {count} processes .*local_d"
    ):
        found(environment, gpus=7)
    assert found(environment, 7, local_devices="0,6").devices == (0, 6)


def test_gpus_that_a_flag_gives():
    flags = given("a:1", "2", "1")
    assert found({}, 8, flags, local_devices="4,5") == Cluster("--coordinator", "a:1", 2, 1, (4, 5))
    assert found(SLURM, 8, local_devices="7").devices == (7,)
    for listed in ("4,", "all", "1,1", "-1"):
        with pytest.raises(UserError, match=rf"--local_devices: {listed} is no list of GPUs; .* such as 0,1"):
            found({}, 8, flags, local_devices=listed)
    with pytest.raises(UserError, match=r"--local_devices: 8 is none of the 8 GPUs"):
        found({}, 8, flags, local_devices="0,8")
    with pytest.raises(UserError, match=r"--local_devices: is for one of several processes, .* CUDA_VISIBLE_DEVICES"):
        found({}, 8, local_devices="0")


def test_what_a_process_is_called_before_it_has_met_others():
    host = socket.gethostname()
    told = ["--config=x.py", "--coordinator=a:1", "--processes", "4", "--process=3"]
    assert own_name(told, NO_TPU) == f"process 3 ({host})"
    assert own_name([*told[:-1], "--process"], NO_TPU) == ""  # nobody knows
    assert own_name(["--process=1"], NO_TPU) == f"process 1 ({host})"  # the others that belong to it are missing
    assert own_name([], NO_TPU | SLURM) == f"process 3 ({host})"
    assert own_name([], NO_TPU | OPEN_MPI) == f"process 2 ({host})"
    assert own_name(["--config=x.py"], NO_TPU) == ""
    assert own_name(["-process=1"], NO_TPU) == f"process 1 ({host})"  # as flags may be written
    assert own_name(["--process", "--x"], NO_TPU) == ""
    assert own_name(["--process=3"], NO_TPU | INDEXED) == f"process 3 ({host})"
    assert own_name(["--coordinator=a:1", "--processes=1", "--process=0"], NO_TPU | INDEXED) == ""
    broken = {"OMPI_MCA_orte_hnp_uri": "x"}, SLURM | {"SLURM_NTASKS": ""}
    assert [own_name([], NO_TPU | environment) for environment in broken] == ["", ""]


@pytest.mark.parametrize("chip", ["accel0", "vfio/1"])
def test_a_host_of_tpus_is_called_by_its_name_and_a_planner_of_them_is_not(packages, tmp_path, chip):
    packages.add("libtpu")
    (tmp_path / "vfio").mkdir()
    assert own_name([], {}, tmp_path) == ""
    (tmp_path / chip).touch()
    assert own_name([], {}, tmp_path) == socket.gethostname()
    assert own_name([], NO_TPU, tmp_path) == ""


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
        (("a:1", "9" * 20, "1"), r"--processes: 9{20} is no number"),
        (("a:1", "2", "-1"), r"--process: -1 is no number"),
        (("a:1", "0", "0"), r"--processes: is 0; set 1 or more"),
        (("a:1", "2", "2"), r"--process: is 2, and --processes 2; count from 0 to 1"),
    ],
)
def test_flags_that_do_not_belong_together(values, says):
    with pytest.raises(UserError, match=says):
        found({}, flags=given(*values))


def test_variables_that_do_not_belong_together():
    with pytest.raises(UserError, match=r"JAX_COORDINATOR_ADDRESS: missing; .*JAX_PROCESS_ID belong together"):
        found({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"})


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (
            SLURM | {"SLURM_NTASKS": ""},
            r"^SLURM_NTASKS: is '', which is no number; start .* by srun or mpirun, or give",
        ),
        (SLURM | {"SLURM_NTASKS": "0"}, r"^SLURM_PROCID: is 3, and SLURM_NTASKS 0; start"),
        (SLURM | {"SLURM_PROCID": "6"}, r"^SLURM_PROCID: is 6, and SLURM_NTASKS 6; start"),
        (SLURM | {"SLURM_LOCALID": "x"}, r"^SLURM_LOCALID: is 'x'"),
        (SLURM | {"SLURM_NODEID": ""}, r"^SLURM_NODEID: is ''"),
        (
            SLURM | {"SLURM_STEP_TASKS_PER_NODE": "?"},
            r"^SLURM_STEP_TASKS_PER_NODE: is '\?', which is no list of numbers",
        ),
        ({"OMPI_MCA_orte_hnp_uri": "x"}, r"^OMPI_COMM_WORLD_SIZE: is ''"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "4"}, r"^OMPI_COMM_WORLD_RANK: is 4, and OMPI_COMM_WORLD_SIZE 4"),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "0"}, r"^OMPI_COMM_WORLD_LOCAL_RANK: is 2, and"),
    ],
)
def test_variables_of_a_cluster_that_are_odd_are_one_line(environment, says):
    with pytest.raises(UserError, match=says):
        found(environment, gpus=8)
