"""Runs of several processes on this machine, each with CPU devices of its own, as `launch/local.py` starts them."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deit_jax.run.metrics import read_rows

ROOT = Path(__file__).parents[1]
NO_TPU = {"JAX_PLATFORMS": "cpu"}
# What starts processes tells each of them so.
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
PATIENCE = 300  # seconds that a run may take
TOTAL = 30
# A run that has everything and takes seconds: 30 steps of 32 images.
FLAGS = [
    "--config=configs/quickstart.py",
    "--config.model.name=deit_tiny_distilled_patch16_224",
    "--config.model.width=24",
    "--config.model.depth=2",
    "--config.model.heads=2",
    "--config.model.patch_size=4",
    "--config.data.image_size=8",
    "--config.data.threads=1",
    "--config.distillation.token=True",
    "--config.batch_size=32",
    "--config.mixing.group=8",
    f"--config.total_steps={TOTAL}",
    "--config.log.every_steps=1",
    "--config.eval.every_steps=15",
    "--config.eval.batch_size=48",
    "--config.checkpoint.every_steps=5",
    "--config.ema.decay=0.9",
    "--config.log.progress=False",
    "--config.log.tensorboard=False",
]


@dataclasses.dataclass
class Ended:
    """How a run ended: its exit status, what it printed, and the seconds that it took after what came `during` it."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.out.splitlines()[-1])


def command(processes: int, devices: int, flags: Sequence[str], *, module: str = "deit_jax.main") -> list[str]:
    shape = [f"--processes={processes}", f"--devices_per_process={devices}", f"--module={module}"]
    return [sys.executable, "launch/local.py", *shape, "--", *flags]


def run(
    processes: int,
    devices: int,
    flags: Sequence[str],
    *,
    module: str = "deit_jax.main",
    during: Callable[[subprocess.Popen], None] = lambda process: None,
    patience: float = PATIENCE,
) -> Ended:
    """Runs a command to its end; `during` is called with the launcher, whose children are the processes."""
    process = subprocess.Popen(
        command(processes, devices, flags, module=module),
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": os.environ.get("XLA_FLAGS", "")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        during(process)
        begun = time.monotonic()
        out, err = process.communicate(timeout=patience)
    finally:
        if process.poll() is None:
            for child in children(process):
                os.kill(child, signal.SIGKILL)
            process.kill()
    return Ended(process.returncode, out, err, time.monotonic() - begun)


def children(process: subprocess.Popen) -> list[int]:
    """The process ids of a launcher's processes, in their order."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()] if path.exists() else []


def send_at(workdir: Path, step: int, index: int, number: int) -> Callable[[subprocess.Popen], None]:
    """What sends a signal to one of the processes once there is a row of `step`."""

    def send(process: subprocess.Popen) -> None:
        while process.poll() is None:
            rows = read_rows(workdir / "metrics.jsonl")
            if rows and rows[-1]["step"] >= step:
                os.kill(children(process)[index], number)
                return
            time.sleep(0.01)

    return send


def losses(workdir: Path) -> list[float]:
    return [row["train/loss"] for row in read_rows(workdir / "metrics.jsonl")]


# A command of several processes, without a run: it does what its argument says.
# Its stdout is its own: what Gloo prints there, in pieces of several threads, goes to stderr.
PROGRAM = """
import os, signal, sys, time
sys.stdout = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from absl import flags
from deit_jax import cli
from deit_jax.base.errors import UserError
from deit_jax.parallel import hosts

def main(argv):
    def define(values):
        flags.DEFINE_string("do", "", "", flag_values=values)
        cli.define_hosts(values)
    given, _ = cli.parse("", define, argv)
    hosts.start(cli.find_cluster(given), start_timeout=given.start_timeout, step_timeout=given.step_timeout)
    hosts.at("its work")
    exec(given.do, globals() | locals())
    print("done", hosts.index(), flush=True)

cli.run(main)
"""


class Two:
    """This process, and another one that has told so much."""

    def __init__(self, told=()):
        self.heard, self._told = [], iter(told)

    def gather(self, value):
        self.heard.append(value)
        return [value, next(self._told, value)]

    def name(self, process):
        return f"process {process}"


def a_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(do, *flags, environment=(), count=2, only=None, step_timeout=30):
    """The processes, or one of them, each with what it does; one text for all, or one for each."""
    texts = [do] * count if isinstance(do, str) else do
    address = f"127.0.0.1:{a_port()}"
    started = []
    for i, text in enumerate(texts):
        if only not in (i, None):
            continue
        told = [f"--coordinator={address}", f"--processes={count}", f"--process={i}"] if not environment else []
        own = environment[i] if environment else {}
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, *told, f"--step_timeout={step_timeout}", *flags, f"--do={text}"],
                cwd=ROOT,
                env=os.environ | NO_TPU | own,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def end(processes, timeout=PATIENCE):
    """(exit status, stdout, stderr) of each."""
    ends = []
    for process in processes:
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        ends.append((process.returncode, out, err))
    return ends
