"""What all commands share: flags of their own, configs with overrides, one-line errors, exit codes."""

import contextlib
import functools
import gc
import hashlib
import io
import logging
import math
import os
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from deit_jax.base import cluster, cuda
from deit_jax.base.caches import cache_folder
from deit_jax.base.cluster import own_name
from deit_jax.base.errors import TryAgain, UserError, nearest
from deit_jax.base.storage import place
from deit_jax.base.text import printable
from deit_jax.config.fields import known_as
from deit_jax.config.given import check_overrides, keep_given_units, load_config, name_of, take_flag
from deit_jax.config.reference import in_a_terminal
from deit_jax.config.resolve import flatten, to_dict
from deit_jax.config.schema import Config
from deit_jax.run.interrupt import LINE, Interrupted
from deit_jax.run.versions import settings, versions

Define = Callable[[flags.FlagValues], None]
WEEK = 604_800  # seconds
HELP = {"--help", "-h", "-help", "--helpfull"}
# Flags in which the processes of a run may differ; and of the config what counts is what it has become.
OWN = {"coordinator", "processes", "process", "local_devices", "start_timeout", "step_timeout", "config"}


def parse(usage: str, define: Define, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags that `define` defines, and the arguments beside them, of a command line.

    The flags live in a `FlagValues` of their own: importing a command defines nothing. `--help` prints and exits.

    Raises:
        UserError: an unknown flag, or a value that its flag does not take.
    """
    values, beside = _parsed(define, argv)
    if HELP & set(argv):
        _help(usage, values)
    return values, beside


def _parsed(define: Define, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    values = flags.FlagValues()
    try:
        define(values)  # which for a config parses its overrides
        return values, values(["deit_jax", *(argument for argument in argv if argument not in HELP)])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(f"--{error.flagname}: unknown flag{_nearest_flag(error.flagname, values)}") from error
    except (flags.Error, ValueError) as error:  # the latter of --noFLAG=VALUE
        raise UserError(" ".join(str(error).split())) from error


def parse_with_config(
    usage: str, define: Define, argv: Sequence[str], otherwise: str = ""
) -> tuple[flags.FlagValues, ConfigDict, str]:
    """As `parse`, for a command that takes `--config=FILE[:ARGUMENT]` and `--config.section.field=value`.

    Args:
        otherwise: the config where none is named.

    Returns:
        The flags, the config with the overrides applied, and what a run of it is called.

    Raises:
        UserError: as `parse`; also a config that is missing, fails or is not one, an override of a field that it does
            not have, or arguments beside the flags.
    """
    source, rest = take_flag(argv, "config")
    source = source or otherwise
    if not source:
        if not HELP & set(argv):
            raise UserError("--config: missing; name a file, such as --config=configs/quickstart.py")
        rest = ["--help"]
    config = load_config(source) if source else ConfigDict()
    check_overrides(config, rest)

    def define_all(values: flags.FlagValues) -> None:
        define(values)
        config_flags.DEFINE_config_dict(
            "config",
            config,
            "FILE[:ARGUMENT]: the run; --config.field=value changes it, --config=FILE --help tells the fields",
            values,
            sys_argv=rest,
        )

    values, beside = _parsed(define_all, rest)
    if beside:
        raise UserError(f"{beside[0]}: not a flag; fields are set as --config.field=value")
    keep_given_units(config, config_flags.get_override_values(values["config"]))
    if HELP & set(rest):
        fields = f"\n\nThe fields of {source}, each with its value here:\n\n{in_a_terminal(config.to_dict())}"
        _help(usage, values, fields if source else "")
    return values, config, name_of(source)


def run(main: Callable[[Sequence[str]], int | None], *, goes_on: bool = False) -> None:
    """Runs a command on the process's arguments, and ends the process.

    A user's mistake is one line on stderr and exit status 2, what goes on by the same command one and 75. SIGINT,
    SIGTERM and a closed pipe end it without a word, as a shell has them: 130, 143 and 141.

    Args:
        goes_on: SIGTERM is such an end, even before there is anything to save: of a command that schedulers look after.
    """
    # Orbax tells through absl what is deliberate here, and of failures that reach us as exceptions.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # When one array cannot be read or written it leaves the others on an event loop that it closes.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    heard: list[int] = []  # the exit status that a signal asks for
    sys.unraisablehook = functools.partial(_unraisable, heard)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, it stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may be bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    gc.set_threshold(100_000)  # not 700: until the first step JAX makes a million objects that all stay

    def hear(number: int, frame: FrameType | None) -> NoReturn:
        heard.append(75 if goes_on and number == signal.SIGTERM else 128 + number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell's background has it
            signal.signal(number, hear)
    try:
        status, line = main(sys.argv[1:]) or 0, ""
        sys.stdout.flush()
        if hosts := _hosts():
            hosts.close()
    except BaseException as error:
        hosts = _hosts()
        for number in (signal.SIGINT, signal.SIGTERM) if hosts else ():
            signal.signal(number, signal.SIG_IGN)  # to leave takes seconds, and a word to the others
        # What imports an extension module makes another exception of a signal's.
        if heard and (hosts or heard[0] == 75):  # of several all end, and are to be started again
            status, line = _ending(Interrupted(LINE))
        else:
            status, line = (heard[0], "") if heard else _ending(error)
        line = printable(" ".join(line.split()))
        if hosts and getattr(error, "alike", False):  # each writes its last before the first one leaves
            line = "" if hosts.index() else line
            for number in (signal.SIGINT, signal.SIGTERM):  # who asks again does not wait for the others
                signal.signal(number, lambda *given: os._exit(status))
            with contextlib.suppress(TryAgain):  # of one that was lost meanwhile
                hosts.close()
        elif hosts:
            hosts.end(status, line or f"ended with status {status}")
        elif line and (name := own_name(sys.argv[1:], os.environ)):  # of several that have not met yet
            line = f"{name}: {line}"
    if line:
        with contextlib.suppress(OSError):  # nobody may be reading any more
            print(line, file=sys.stderr, flush=True)
    if status in (0, 2) and not hosts:
        sys.exit(status)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    # At once: a thread that waits for a file for ever would keep an ordinary exit waiting; one that waits in Orbax for
    # another process, after a save that was given up, would make SIGABRT of it.
    os._exit(status)


def _ending(error: BaseException) -> tuple[int, str]:
    """The exit status for what ended a command, and the line that tells it; raises what nobody has foreseen."""
    match error:
        case UserError():
            return 2, f"error: {error}"
        case TryAgain() | Interrupted():
            return 75, str(error)
        case BrokenPipeError():
            return 141, ""
        case OSError():  # of a place that nobody has looked at before
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            return 2, f"error: {where}{error.strerror or error}; see to it, or name another place"
        case KeyboardInterrupt():
            return 130, ""
        case _:
            hosts = _hosts()
            if not hosts and not own_name(sys.argv[1:], os.environ):
                raise error
            if hosts:
                hosts.blame()
            traceback.print_exception(error)
            return 75 if hosts and hosts.late(error) else 1, f"{type(error).__name__}: {error}"


def _hosts() -> ModuleType | None:
    """`parallel.hosts`, where there are several processes; other commands need not wait for JAX to be imported."""
    module = sys.modules.get("deit_jax.parallel.hosts")
    return module if module and module.several() else None


def _unraisable(heard: Sequence[int], unraisable: Any) -> None:
    """Ends the process where a signal came while Python called back, and would be lost."""
    if heard and isinstance(unraisable.exc_value, KeyboardInterrupt):
        os._exit(heard[0])
    # What Orbax left behind, see `run`, fails within it or for want of the loop; a run looks again before it waits.
    frames = (frame.f_code.co_filename for frame, _ in traceback.walk_tb(unraisable.exc_traceback))
    orbax = str(unraisable.exc_value) == "Event loop is closed" or any("orbax/checkpoint" in name for name in frames)
    if not orbax and not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)


def local_path(given: str, flag: str) -> Path:
    """The absolute path of a place of this machine that a flag names; `UserError` where it is another one."""
    if "://" in given:
        raise UserError(f"{flag}: {given} is a URL; name a place of this machine, and copy it from there")
    path = place(given, flag)
    assert isinstance(path, Path)
    return path


def define_hosts(values: flags.FlagValues) -> None:
    """Defines the flags of commands that may run as several processes, which `start_hosts` takes."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, of a run of several", flag_values=values)
    flags.DEFINE_string("processes", "", "how many processes the run has", flag_values=values)
    flags.DEFINE_string("process", "", "which of them this is, from 0", flag_values=values)
    help_text = "numbers of the GPUs that are this process's own, such as 0,1, where others share the machine"
    flags.DEFINE_string("local_devices", "", help_text, flag_values=values)
    help_text = "seconds in which all have to be there"
    flags.DEFINE_float("start_timeout", 300, help_text, 1, WEEK, flag_values=values)
    help_text = "seconds that a step may take (default: 1800; for ever, where there is one process)"
    flags.DEFINE_float("step_timeout", 0, help_text, 0, WEEK, flag_values=values)
    for name in ("start_timeout", "step_timeout"):  # NaN is outside of no bounds
        flags.register_validator(name, math.isfinite, "should be a number of seconds", flag_values=values)


def find_cluster(given: flags.FlagValues) -> cluster.Cluster | None:
    """What the flags of `define_hosts`, or else the environment, tell of the processes; see `cluster.find`."""
    named = {name: str(given[name.removeprefix("--")].value) for name in cluster.FLAGS}
    gpus = cluster.visible_gpus(os.environ)
    return cluster.find(named, os.environ, gpus=gpus, local_devices=given.local_devices)


def start_hosts(given: flags.FlagValues, config: Config) -> bool:
    """Finds the other processes of the run, if there are any; see `parallel.hosts.start`.

    Returns:
        Whether this is the first of them, which alone writes and speaks.

    Raises:
        UserError: they do not find each other, or have another command line, config or code.
    """
    from deit_jax.data import slow_reads
    from deit_jax.parallel import hosts

    limits = {"start_timeout": given.start_timeout, "step_timeout": given.step_timeout}
    hosts.start(find_cluster(given), **limits, about=slow_reads)
    flags_told = {f"--{name}": given[name].value for name in given if name.partition(".")[0] not in OWN}
    fields = {f"config.{path}": value for path, value in flatten(to_dict(config))}
    hosts.require_same(flags_told | fields | {"the code of deit_jax": _code()} | versions() | settings())
    if hosts.index():  # the first one speaks, but for the images and chunks that only the others read
        logging.basicConfig(format=f"{hosts.name(hosts.index())}: %(message)s")
        logging.getLogger().setLevel(logging.ERROR)
        for module in ("deit_jax.data.pipeline", "deit_jax.distill.store"):
            logging.getLogger(module).setLevel(logging.WARNING)
    return hosts.index() == 0


def _code() -> str:
    """A digest of this package's files."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def start_jax() -> str:
    """Makes JAX ready, and returns where it runs: `cpu`, `gpu` or `tpu`.

    Compiled steps outlive the process, where JAX's own settings do not say otherwise. Says on stderr, in a line, what
    keeps an NVIDIA GPU from being used.

    Raises:
        UserError: there is no platform of those that JAX_PLATFORMS names.
    """
    import jax  # not at the top: it takes half a second, and a mistake in the command line is told before

    if module := sys.modules.get("deit_jax.parallel.hosts"):
        module.at("the start of JAX", compiling=True)
    notes = []
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        try:
            jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        except UserError as error:
            notes.append(f"what is compiled is not kept: {error}")
    wanted = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
    on_nvidia = not wanted or any(name in wanted for name in ("cuda", "gpu"))
    try:
        platform = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # the latter without a word, where no plugin gives a platform
        reason = (
            (on_nvidia and cuda.problem(works=False))
            or " ".join(str(error).split())
            or f"nothing installed gives JAX_PLATFORMS={wanted}"
        )
        raise UserError(
            f"JAX cannot start: {reason}; install the extra for this machine (cuda12, cuda13 or tpu), or set "
            f"JAX_PLATFORMS=cpu"
        ) from error
    if on_nvidia and (problem := cuda.problem(works=platform == "gpu")):
        notes.append(f"{problem}; running on {platform}")
    hosts = _hosts()
    for note in hosts.notes("; ".join(notes)) if hosts else notes:
        print(f"note: {note}", file=sys.stderr)
    return platform


def _help(usage: str, values: flags.FlagValues, more: str = "") -> NoReturn:
    """Prints how a command is used, a line a flag, and whatever more there is to say; exits."""
    lines = []
    for name in sorted(values):
        flag = values[name]
        if name != flag.name or name.startswith("config."):  # an alias, or a field
            continue
        default = f" [{flag.default}]" if flag.default not in (None, "", [], False) and name != "config" else ""
        shown = f"[no]{name}" if flag.boolean else name
        lines.append(textwrap.fill(f"--{shown}: {flag.help}{default}", 100, subsequent_indent="    "))
    print(usage.strip(), "", *lines, sep="\n", end=f"{more}\n")
    raise SystemExit(0)


def _nearest_flag(name: str, values: flags.FlagValues) -> str:
    """`; did you mean --a?`: where there is a config, it may have a field that goes by this name."""
    if "config" in values and (fields := known_as(name)):
        return f"; did you mean {' or '.join(f'--config.{field}' for field in fields)}?"
    return nearest(name, [name for name in values if len(name) > 1 and not name.startswith("no")])
