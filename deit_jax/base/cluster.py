"""Who the processes of a run are: told by flags, or by the environment of what starts them."""

import dataclasses
import importlib.util
import itertools
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from deit_jax.base.errors import UserError
from deit_jax.base.text import printable

FLAGS = ("--coordinator", "--processes", "--process")
LOCAL_DEVICES = "--local_devices"
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_OPEN_MPI = ("SIZE", "RANK", "LOCAL_RANK", "LOCAL_SIZE")
_ODD = f"start the processes by srun or mpirun, or give {', '.join(FLAGS)}"
IN_A_JOB = "JOB_COMPLETION_INDEX"
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What is known of the processes before they have met.

    Attributes:
        source: who tells it: flags, environment variables, or what started the processes.
        coordinator: `HOST:PORT` of process 0; None where JAX finds it out.
        processes, process: how many there are, and which of them this is; None where JAX finds it out.
        devices: which of this machine's GPUs are this process's; None: all.
    """

    source: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    devices: tuple[int, ...] | None = None


def find(
    given: Mapping[str, str], environment: Mapping[str, str], *, gpus: int, local_devices: str = ""
) -> Cluster | None:
    """The processes of which flags or else the environment tell; None where there is this one alone.

    Args:
        given: the values of `FLAGS`; "" where a flag is not given.
        gpus: that this process sees.
        local_devices: the value of `LOCAL_DEVICES`: numbers of this process's own GPUs, with commas.

    Raises:
        UserError: of three values that belong together one is missing, or is none; or so it is with the devices; or
            there may be others, and nothing to find them by.
    """
    found = _found(given, environment, 0 if local_devices else gpus)
    if not local_devices:
        return found
    devices = _numbers(local_devices, gpus)
    if not found:
        raise UserError(
            f"{LOCAL_DEVICES}: is for one of several processes, and this one is alone; give {', '.join(FLAGS)}, or "
            f"choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    return dataclasses.replace(found, devices=devices)


def own_name(argv: Sequence[str], environment: Mapping[str, str], devices: Path = Path("/dev")) -> str:
    """What people call this process before it has met the others: its number and its host; "" where it is alone.

    On TPUs and in an Indexed job it is the host, where nothing tells the number, nor whether it is alone.

    Args:
        argv: the command line, of which nothing else need be right.
        devices: where the system has those of this machine.
    """
    given = dict.fromkeys(FLAGS, "")
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = argument.partition("=")
        name = f"--{name.lstrip('-')}"
        if argument.startswith("-") and name in given:
            given[name] = value if equals else following
    host, found = printable(socket.gethostname()), None
    try:
        found = _found(given, environment, 0)
        number = "" if found is None or found.process is None else str(found.process)
    except (UserError, KeyError, ValueError):  # of an environment that is none
        number = given["--process"] if given["--process"].isdecimal() else ""
    if number:
        return f"process {number} ({host})"
    # libtpu may be there to plan for TPUs alone.
    on_tpus = found is not None and any(any(devices.glob(chips)) for chips in ("accel[0-9]*", "vfio/[0-9]*"))
    told = any(given.values()) or any(environment.get(name) for name in VARIABLES[1:])
    return host if on_tpus or (IN_A_JOB in environment and not told) else ""


def _found(given: Mapping[str, str], environment: Mapping[str, str], gpus: int) -> Cluster | None:
    """As `find`, but for devices that are given."""
    if any(given.values()):
        return _of_three(given)
    if any(environment.get(name) for name in VARIABLES[1:]):
        return _of_three({name: environment.get(name, "") for name in VARIABLES})
    if "OMPI_MCA_orte_hnp_uri" in environment:
        size, number, rank_on_host, size_of_host = (f"OMPI_COMM_WORLD_{name}" for name in _OPEN_MPI)
        if _number(environment, size) == 1:
            return None
        processes, process = _numbered(environment, size, number)
        on_host, rank = _numbered(environment, size_of_host, rank_on_host)
        return Cluster("Open MPI", None, processes, process, _share("Open MPI", rank, on_host, gpus))
    if all(name in environment for name in _SLURM):
        if _number(environment, "SLURM_NTASKS") == 1:
            return None
        processes, process = _numbered(environment, "SLURM_NTASKS", "SLURM_PROCID")
        bound = "SLURM_GPUS_PER_TASK" in environment or "gres/gpu" in environment.get("SLURM_TRES_PER_TASK", "")
        listed = environment.get("SLURM_GPUS_ON_NODE", "")
        # Or by a mask, or by who wraps the tasks.
        bound = bound or gpus < (int(listed) if listed.isdecimal() else 0)
        rank, on_host = (0, 1) if bound else (_number(environment, "SLURM_LOCALID"), _slurm_tasks(environment))
        return Cluster("SLURM", None, processes, process, _share("SLURM", rank, on_host, gpus))
    of_job = IN_A_JOB in environment  # which only the pods of an Indexed job have
    # Where there are no TPUs libtpu may be there to plan for them; a pod that has some is told of their hosts.
    on_tpus = not of_job or not {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"}.isdisjoint(environment)
    platforms = environment.get("JAX_PLATFORMS") or ("tpu" if on_tpus else "")
    if platforms.startswith("tpu") and importlib.util.find_spec("libtpu"):
        return Cluster("TPU")
    if of_job:
        if not importlib.util.find_spec("kubernetes"):  # by which JAX asks for the others
            raise UserError(
                f"JOB_COMPLETION_INDEX: is {environment['JOB_COMPLETION_INDEX']}, so that this may be one of several "
                f"pods, which find each other by a package that is not there; pip install kubernetes, or give "
                f"{', '.join(FLAGS)}, in a pod that is alone --coordinator=localhost:1 --processes=1 --process=0"
            )
        return Cluster("Kubernetes")
    return None


def visible_gpus(environment: Mapping[str, str]) -> int:
    """NVIDIA GPUs that this process sees, before JAX has looked."""
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip()])
    return len([path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdecimal()])


def _of_three(values: Mapping[str, str]) -> Cluster | None:
    """Of the coordinator, the number of processes and this one's, by the names that they were given under."""
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise UserError(f"{missing[0]}: missing; {', '.join(values)} belong together, or leave all of them out")
    (where, address), (count_name, count), (index_name, index) = values.items()
    if not re.fullmatch(r"(\[[^]]+\]|[^:]+):\d{1,5}", address):
        raise UserError(f"{where}: {address} is no HOST:PORT; name the host of process 0 and a free port of it")
    for name, value in ((count_name, count), (index_name, index)):
        if not re.fullmatch(r"[0-9]{1,9}", value):
            raise UserError(f"{name}: {value:.40} is no number of processes; set 1, 2, ... of them, numbered from 0")
    processes, process = int(count), int(index)
    if not processes:
        raise UserError(f"{count_name}: is 0; set 1 or more")
    if not process < processes:
        raise UserError(f"{index_name}: is {process}, and {count_name} {processes}; count from 0 to {processes - 1}")
    return Cluster(where, address, processes, process) if processes > 1 else None


def _numbered(environment: Mapping[str, str], count_name: str, index_name: str) -> tuple[int, int]:
    """How many there are and which of them this is, as what started the processes has it."""
    count, index = _number(environment, count_name), _number(environment, index_name)
    if not index < count:
        raise UserError(f"{index_name}: is {index}, and {count_name} {count}; {_ODD}")
    return count, index


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise UserError(f"{name}: is {value!r}, which is no number; {_ODD}")
    return int(value)


def _numbers(listed: str, gpus: int) -> tuple[int, ...]:
    """The numbers of GPUs in a list of them such as `0,1`."""
    names = listed.split(",")
    if not all(name.isdecimal() for name in names) or len(set(names)) < len(names):
        raise UserError(f"{LOCAL_DEVICES}: {listed} is no list of GPUs; write their numbers, such as 0,1")
    numbers = tuple(map(int, names))
    if gpus and max(numbers) >= gpus:
        raise UserError(f"{LOCAL_DEVICES}: {max(numbers)} is none of the {gpus} GPUs; they are counted from 0")
    return numbers


def _share(source: str, rank: int, on_host: int, gpus: int) -> tuple[int, ...] | None:
    """The GPUs of one of several processes on a host: JAX would give each a single one, whatever there are.

    Where there are fewer, what starts the processes has shared them out already.
    """
    if gpus < on_host:
        return tuple(range(gpus)) or None
    if gpus % on_host:
        raise UserError(
            f"{source}: {gpus} GPUs are not shared out evenly among {on_host} processes of a host; start fewer, or "
            f"give each its own by {LOCAL_DEVICES}"
        )
    each = gpus // on_host
    return tuple(range(rank * each, (rank + 1) * each))


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    """Tasks of the step on this node, of a list such as `8(x3),4`."""
    name = "SLURM_STEP_TASKS_PER_NODE" if environment.get("SLURM_STEP_TASKS_PER_NODE") else "SLURM_TASKS_PER_NODE"
    listed = environment.get(name, "1")
    nodes: list[int] = []
    for tasks, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", listed):
        nodes += [int(tasks)] * int(times or 1)
    if not nodes:
        raise UserError(f"{name}: is {listed!r}, which is no list of numbers; {_ODD}")
    return nodes[min(_number({"SLURM_NODEID": "0", **environment}, "SLURM_NODEID"), len(nodes) - 1)]
