"""The command line of `deit_jax.main`: what it accepts, and what it says to what it does not."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict
from tiny import replace

import deit_jax
from deit_jax import __main__, cli, main
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.config.fields import field_paths
from deit_jax.config.given import name_of
from deit_jax.config.resolve import resolve, to_dict
from deit_jax.config.schema import Duration
from deit_jax.parallel import hosts
from deit_jax.run import evaluate, train
from deit_jax.run.interrupt import LINE, Interrupted
from deit_jax.run.workdir import Workdir

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
CONFIG = f"--config={QUICKSTART}"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Tests run in an empty folder, and what `cli.run` does to the process is undone."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setattr(cli.os, "_exit", sys.exit)
    logger, hook = logging.getLogger("absl"), sys.unraisablehook
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    level = logger.level
    yield
    logger.setLevel(level)
    logging.getLogger("asyncio").setLevel(logging.NOTSET)
    sys.unraisablehook = hook
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What would have been run: (mode, config, workdir) of each call."""
    calls: list[tuple] = []

    def stand_in(mode: str) -> Callable:
        def called(config: Any, workdir: Any) -> dict[str, Any]:
            calls.append((mode, config, workdir.root if isinstance(workdir, Workdir) else workdir))
            return {"top1": 12.5, "examples": 7}

        return called

    monkeypatch.setattr(train, "train_in", stand_in("train"))
    monkeypatch.setattr(evaluate, "evaluate", stand_in("evaluate"))
    return calls


@pytest.fixture
def setting() -> Iterator[Callable[[str, Any], None]]:
    """Changes a setting of JAX for a test."""
    before: dict[str, Any] = {}

    def change(name: str, value: Any) -> None:
        before[name] = getattr(jax.config, name)
        jax.config.update(name, value)

    yield change
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def refused(
    runs: list[tuple], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[[Sequence[str]], str]:
    """Runs the command with arguments that are a mistake and returns the one line that it prints."""

    def run(arguments: Sequence[str]) -> str:
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.run(main.main)
        out, err = capsys.readouterr()
        assert stop.value.code == 2
        assert out == ""
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        assert runs == []
        assert list(Path.cwd().iterdir()) == []
        return err.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[str], str]:
    """Writes a config file and returns the flag that names it."""

    def write(source: str, name: str = "given.py") -> str:
        (tmp_path / name).write_text(source)
        return f"--config={tmp_path / name}"

    return write


def parsed(*arguments: str) -> ConfigDict:
    return cli.parse_with_config("usage", lambda values: None, [CONFIG, *arguments])[1]


# What is accepted.


@pytest.mark.parametrize("arguments", [["--mode=evaluate", CONFIG], [CONFIG, "--mode", "evaluate"]])
def test_the_mode_is_dispatched(runs, arguments):
    assert main.main(arguments) == 0
    assert [mode for mode, _, _ in runs] == ["evaluate"]


def test_training_is_what_is_done_by_default(runs):
    main.main([CONFIG])
    assert [mode for mode, _, _ in runs] == ["train"]


@pytest.mark.parametrize(
    "spelling", [["--config={}"], ["-config={}"], ["--config", "{}"], ["-config", "{}"]], ids=" ".join
)
def test_the_config_may_be_spelt_in_each_of_absls_ways(runs, spelling):
    main.main([argument.format(QUICKSTART) for argument in spelling])
    assert runs[0][1].data.name == "digits"


@pytest.mark.parametrize(
    ("given", "wanted"), [([], "runs/quickstart"), (["--workdir=here/there"], "here/there"), (["--workdir", "x"], "x")]
)
def test_the_workdir_is_made_absolute(runs, given, wanted):
    main.main([CONFIG, *given])
    assert runs[0][2] == Path.cwd() / wanted


def test_the_config_arrives_resolved_for_the_platform(runs):
    main.main([CONFIG])
    assert runs[0][1].model.dtype == "float32"
    assert runs[0][1].model.attention == "einsum"


def test_the_result_is_the_last_line_of_stdout(runs, capsys):
    main.main([CONFIG])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"top1": 12.5, "examples": 7}


def test_an_interrupted_run_says_so_and_asks_to_be_restarted(monkeypatch, capsys):
    def interrupted(config, workdir):
        raise Interrupted("interrupted; the same command goes on from step 7 of 11")

    monkeypatch.setattr(train, "train_in", interrupted)
    monkeypatch.setattr(sys, "argv", ["main", CONFIG])
    with pytest.raises(SystemExit) as stop:
        cli.run(main.main)
    assert stop.value.code == 75
    out, err = capsys.readouterr()
    assert (out, err) == ("", "interrupted; the same command goes on from step 7 of 11\n")


def test_a_run_that_ends_well_exits_with_0(runs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main", CONFIG])
    with pytest.raises(SystemExit) as stop:
        cli.run(main.main)
    assert stop.value.code == 0


def test_a_users_mistake_found_by_the_run_is_one_line(monkeypatch, capsys):
    def failing(config, workdir):
        raise UserError("config.data.dir: no such folder;\n  name another")

    monkeypatch.setattr(train, "train_in", failing)
    monkeypatch.setattr(sys, "argv", ["main", CONFIG])
    with pytest.raises(SystemExit) as stop:
        cli.run(main.main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: config.data.dir: no such folder; name another\n"


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def failing(config, workdir):
        raise ZeroDivisionError

    monkeypatch.setattr(train, "train_in", failing)
    monkeypatch.setattr(sys, "argv", ["main", CONFIG])
    with pytest.raises(ZeroDivisionError):
        cli.run(main.main)


@pytest.mark.parametrize("flag", ["start_timeout", "step_timeout"])
@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e9"])
def test_limits_are_seconds(flag, seconds):
    with pytest.raises(UserError, match=f"--{flag}"):
        cli.parse_with_config("", cli.define_hosts, [CONFIG, f"--{flag}={seconds}"])


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("config.x: is wrong; mend it"), 2, "error: config.x: is wrong; mend it"),
        (ZeroDivisionError("by zero"), 1, "ZeroDivisionError: by zero"),
    ],
)
def test_one_of_several_is_named_that_fails_before_it_has_met_the_others(error, status, said, monkeypatch, capsys):
    def failing(argv):
        raise error

    monkeypatch.setattr(sys, "argv", ["main", "--coordinator=a:1", "--processes=2", "--process=1"])
    with pytest.raises(SystemExit) as stop:
        cli.run(failing)
    assert stop.value.code == status
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == f"process 1 ({socket.gethostname()}): {said}"
    assert ("Traceback" in err) == (status == 1)


def test_what_processes_compare(monkeypatch):
    """The flags that decide what is done, but not those by which the processes differ, and the config as it became."""
    told = {}
    monkeypatch.setattr(hosts, "require_same", told.update)

    def define(values):
        flags.DEFINE_string("output", "", "", flag_values=values)
        flags.DEFINE_enum("views", "stream", ["stream", "one"], "", flag_values=values)
        cli.define_hosts(values)

    given, config, _ = cli.parse_with_config("", define, [CONFIG, "--config.seed=7", "--output=x", "--start_timeout=9"])
    assert cli.start_hosts(given, resolve(config)) is True
    assert {name: value for name, value in told.items() if name.startswith("--")} == {
        "--output": "x",
        "--views": "stream",
    }
    assert told["config.seed"] == 7
    assert {"the code of deit_jax", "jax", "Pillow", "config.data.name"} <= told.keys()
    assert (told["JAX_DEFAULT_PRNG_IMPL"], told["JAX_ENABLE_X64"]) == ("threefry2x32", False)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (TryAgain("photos/1.jpg: cannot be read\n now"), 75, "photos/1.jpg: cannot be read now\n"),
        (PermissionError(13, "Permission denied", "a/b"), 2, "error: a/b: Permission denied; see to it, .*\n"),
        (OSError("a fault without a number"), 2, "error: a fault without a number; see to it, .*\n"),
    ],
)
def test_how_a_command_ends(monkeypatch, capsys, error, status, said):
    def failing(argv):
        raise error

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as stop:
        cli.run(failing)
    assert stop.value.code == status
    assert re.fullmatch(said, capsys.readouterr().err)


WAITING = """
import signal, sys, threading, time
from deit_jax import cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores

def main(argv):
    threading.Thread(target=time.sleep, args=(60,)).start()  # as one that waits for a disk
    print("in", flush=True)
    time.sleep(60)

cli.run(main)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_at_once_and_without_a_word(number, status):
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        start = time.perf_counter()
        process.send_signal(number)
        assert process.stderr.read() == ""
        assert process.wait(20) == status
        assert time.perf_counter() - start < 10


@pytest.mark.parametrize(
    "command", ["main", *(pytest.param(other, marks=pytest.mark.long) for other in ("predict", "convert", "benchmark"))]
)
def test_ctrl_c_ends_a_command_that_is_still_importing(command, tmp_path):
    (tmp_path / "absl.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(9)\n")
    # A shell's background ignores the signal, and so would what it starts.
    heard = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    arguments = [sys.executable, "-m", f"deit_jax.{command}", "--help"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    done = subprocess.run([sys.executable, "-c", heard, *arguments], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize(
    ("command", "status"),
    [("main", 75), pytest.param("precompute", 75, marks=pytest.mark.long), ("predict", -signal.SIGTERM)],
)
def test_sigterm_starts_again_what_schedulers_look_after_and_is_still_importing(command, status, tmp_path):
    (tmp_path / "absl.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nraise SystemExit(9)\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[1]}"}
    arguments = [sys.executable, "-m", f"deit_jax.{command}", "--help"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (status, "")


def test_importing_the_package_leaves_signals_alone():
    told = "import signal, deit_jax; print(signal.getsignal(signal.SIGINT) is before)"
    code = f"import signal; signal.signal(2, signal.default_int_handler); before = signal.getsignal(2); {told}"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"


def test_a_reader_that_has_enough_ends_a_command_without_a_word():
    printing = "from deit_jax import cli\ncli.run(lambda argv: [print('x' * 9999) for _ in range(999)] and 0)"
    command = f'{sys.executable} -c "{printing}" | head -c 5'
    done = subprocess.run(["bash", "-c", f"{command}; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("xxxxx141\n", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_may_be_closed(closed, tmp_path):
    working = "from deit_jax import cli; cli.run(lambda argv: print('done') or open('written', 'w').close())"
    done = subprocess.run(
        ["bash", "-c", f'{sys.executable} -c "{working}" {closed}'], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "written").exists()


def test_an_error_that_nobody_reads_keeps_its_status():
    failing = "from deit_jax import cli; from deit_jax.base.errors import TryAgain as E; cli.run(lambda argv: 1 / 0)"
    for error, status in (("TryAgain", 75), ("UserError", 2)):
        code = failing.replace("TryAgain as E", f"{error} as E").replace("1 / 0", "(_ for _ in ()).throw(E('x'))")
        done = subprocess.run(["bash", "-c", f'{sys.executable} -c "{code}" 2>/dev/full'], capture_output=True)
        assert done.returncode == status


LOST = """
import gc, os, signal, sys, time
from deit_jax import cli

signal.signal(signal.SIGINT, signal.default_int_handler)

def back(phase, info):  # an exception of it is lost
    os.kill(os.getpid(), signal.{name})
    time.sleep(1)

def main(argv):
    gc.callbacks.append(back)
    gc.collect()
    time.sleep(30)
    return 0

cli.run(main)
"""

TAKEN = """
import os, signal
from deit_jax import cli

signal.signal(signal.SIGINT, signal.default_int_handler)

def main(argv):
    try:
        os.kill(os.getpid(), signal.{name})
    except KeyboardInterrupt as error:
        raise ImportError("cannot be initialised") from error

cli.run(main)
"""


@pytest.mark.parametrize("program", [LOST, TAKEN], ids=["in a callback", "in an import"])
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_is_heard_wherever_it_comes(program, name, status):
    done = subprocess.run([sys.executable, "-c", program.format(name=name)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize(("name", "status", "line"), [("SIGINT", 130, ""), ("SIGTERM", 75, f"{LINE}\n")])
@pytest.mark.parametrize("module", ["main", pytest.param("precompute", marks=pytest.mark.long)])
def test_what_schedulers_end_before_it_has_begun_goes_on(module, name, status, line):
    Path("own.py").write_text(
        f"import os, signal\nsignal.signal(signal.SIGINT, signal.getsignal(signal.SIGTERM))\n"
        f"os.kill(os.getpid(), signal.{name})\n{QUICKSTART.read_text()}"
    )
    command = [sys.executable, "-m", f"deit_jax.{module}", "--config=own.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", line)


def test_names_that_are_no_text_can_be_printed():
    printing = "import os; from deit_jax import cli; cli.run(lambda argv: print(os.fsdecode(bytes([223]))))"
    done = subprocess.run([sys.executable, "-c", printing], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"\\udcdf\n")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("s3://bucket/run", "is a URL of s3, which is not read; name a folder or file of this machine, or"),
        ("~nobody-of-this-name/run", "no such home folder"),
        (os.fsdecode(b"r\xdfn"), "is no UTF-8"),
    ],
)
def test_places_that_are_none_are_refused(refused, given, said):
    message = refused([CONFIG, f"--workdir={given}"])
    assert message.startswith("--workdir: ")
    assert said in message


def test_a_home_folder_may_be_meant(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    main.main([CONFIG, "--workdir=~/runs/a"])
    assert runs[0][2] == tmp_path / "runs" / "a"


def test_help_says_how_to_launch_and_which_flags_there_are(capsys):
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as stop:
            main.main([flag])
        out = capsys.readouterr().out
        assert stop.value.code == 0
        for text in ("python -m deit_jax.main --config=", "--workdir", "--mode", "75"):
            assert text in out


def test_help_of_a_config_tells_its_fields(capsys):
    with pytest.raises(SystemExit):
        main.main([CONFIG, "--config.optim.weight_decay=0.25", "--help"])
    out = capsys.readouterr().out
    for path in field_paths():
        assert f"\n  --config.{re.sub('_(steps|epochs|examples)$', '_', path)}" in out
    assert "--config.optim.weight_decay=0.25  (a number at least 0)\n      of matrices and kernels" in out
    assert "--config.total_epochs=80" in out


def test_help_and_mistakes_wait_for_no_jax():
    code = "import sys, deit_jax.main; print(sorted({'jax', 'numpy', 'PIL', 'grain'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_commands_define_their_flags_nowhere_but_in_their_own_call(runs):
    for _ in range(2):  # absl refuses to define a flag twice in one place
        assert main.main([CONFIG, "--mode=evaluate"]) == 0


# Overrides.


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config.optim.learning_rate=0.25", "--config.seed=3"],
        ["--config.optim.learning_rate", "0.25", "--config.seed", "3"],
        ["-config.optim.learning_rate=.25", "--config.seed=7", "--config.seed=3"],
    ],
)
def test_fields_are_set_with_equals_or_with_a_space(arguments):
    config = parsed(*arguments)
    assert (config.optim.learning_rate, config.seed) == (0.25, 3)


def test_overrides_may_stand_before_the_config(runs):
    main.main(["--config.seed=3", CONFIG, "--config.model.depth=1"])
    assert (runs[0][1].seed, runs[0][1].model.depth) == (3, 1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("--config.log.progress", True),
        ("--config.log.progress=true", True),
        ("--config.log.progress=False", False),
        ("--config.log.progress=0", False),
        ("--noconfig.log.progress", False),
    ],
)
def test_booleans(argument, value):
    assert parsed(argument).log.progress is value


@pytest.mark.parametrize(
    "arguments",
    [["--config.data.crop_scale=(0.25, 1)"], ["--config.data.crop_scale=0.25", "--config.data.crop_scale=1"]],
)
def test_tuples(arguments):
    assert resolve(parsed(*arguments)).data.crop_scale == (0.25, 1.0)


def test_strings_and_negative_numbers():
    config = parsed("--config.data.train_split=train[:90%]", "--config.data.dir=", "--config.mesh.data", "-1")
    assert (config.data.train_split, config.data.dir, config.mesh.data) == ("train[:90%]", "", -1)


@pytest.mark.parametrize(
    ("argument", "duration"),
    [
        ("--config.total_steps=7", Duration(7, 0, 0)),
        ("--config.total_epochs=2", Duration(0, 2, 0)),
        ("--config.total_epochs=0.5", Duration(0, 0.5, 0)),
        ("--config.total_examples=99", Duration(0, 0, 99)),
    ],
)
def test_a_unit_given_for_a_duration_replaces_the_others(argument, duration):
    assert resolve(parsed(argument)).total == duration


@pytest.mark.parametrize("section", ["log", "eval", "checkpoint"])
@pytest.mark.parametrize("unit", ["steps", "epochs", "examples"])
def test_so_it_does_in_every_section(section, unit):
    given = resolve(parsed(f"--config.{section}.every_{unit}=3"))
    wanted = Duration(**({"steps": 0, "epochs": 0.0, "examples": 0} | {unit: 3}))
    others = {"log", "eval", "checkpoint"} - {section}
    assert getattr(given, section).every == wanted
    assert {name: getattr(given, name) for name in others} == {
        name: getattr(resolve(parsed()), name) for name in others
    }


def test_a_duration_may_be_switched_off():
    assert resolve(parsed("--config.optim.warmup_steps=0")).optim.warmup == Duration(0, 0, 0)


def test_two_units_given_for_one_duration_contradict(refused):
    message = refused([CONFIG, "--config.total_steps=5", "--config.total_epochs=2"])
    assert message.startswith("config.total_steps and config.total_epochs: both are set")


# A config's argument.


@pytest.mark.parametrize(("hardware", "dtype"), [("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")])
def test_hardware_is_an_argument_of_the_config(runs, hardware, dtype):
    main.main([f"{CONFIG}:hardware={hardware}"])
    assert runs[0][1].model.dtype == dtype
    assert runs[0][2].name == "quickstart"


def test_data_may_be_one_too(runs, config_file):
    flag = config_file(
        "from deit_jax import recipes\n"
        "def get_config(argument=None):\n"
        "    chosen = recipes.arguments(argument, hardware='auto', dataset='imagenet2012')\n"
        "    return recipes.deit('deit_tiny_patch16_224', **chosen)\n"
    )
    main.main([f"{flag}:hardware=tpu,dataset=cifar10", "--config.seed=3"])
    config = runs[0][1]
    assert (config.data.name, config.data.eval_split, config.model.dtype) == ("cifar10", "test", "bfloat16")
    assert config.seed == 3


def test_a_config_file_is_read_anew_each_time(config_file, monkeypatch):
    """Neither from bytecode that looks as new as the source, nor from memory; and no bytecode is left beside it."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for seed in (1, 2):
        flag = config_file(
            "from deit_jax import recipes\n"
            f"def get_config():\n    c = recipes.deit('deit_tiny_patch16_224')\n    c.seed = {seed}\n    return c\n"
        )
        path = Path(flag.removeprefix("--config="))
        os.utime(path, (1_000_000_000, 1_000_000_000))
        assert cli.parse_with_config("", lambda values: None, [flag])[1].seed == seed
    assert [entry.name for entry in path.parent.iterdir() if entry.name != "empty"] == ["given.py"]


def test_the_config_of_a_run_stands_in_its_workdir(tmp_path, runs):
    """Of a run to evaluate none has to be named; --config takes it, too, and goes on where it lies."""
    given = [CONFIG, "--config.data.crop_scale=(0.5, 1)", "--config.optim.weight_decay=0"]
    main.main([*given, f"--workdir={tmp_path / 'runs' / 'mine'}"])
    ((_, config, workdir),) = runs
    workdir.mkdir(parents=True)
    stored = to_dict(config)
    del stored["optim"]["decay_rate"], stored["cosub"]  # of a time before there were these
    (workdir / "config.json").write_text(json.dumps(stored))
    main.main(["--mode", "evaluate", "--workdir", f"{workdir}/"])
    main.main(["--mode=evaluate", f"--workdir={workdir}", "--config.eval.batch_size=64"])
    main.main([f"--config={workdir / 'config.json'}", f"--workdir={workdir}"])
    assert runs[1] == ("evaluate", config, workdir)
    assert runs[2] == ("evaluate", replace(config, "eval", batch_size=64), workdir)
    assert runs[3] == ("train", config, workdir)
    assert name_of(str(workdir / "config.json")) == "mine"
    assert name_of("configs/deit_tiny.py:hardware=tpu") == "deit_tiny"


@pytest.mark.parametrize(
    ("given", "module", "becomes"),
    [
        (["train", "quickstart", "--workdir=x"], "main", ["--mode=train", "--config=quickstart", "--workdir=x"]),
        (["train", "--config=a.py"], "main", ["--mode=train", "--config=a.py"]),
        (["evaluate", "runs/a"], "main", ["--mode=evaluate", "--workdir=runs/a"]),
        (["replay", "runs/a", "--step=3"], "main", ["--mode=replay", "--workdir=runs/a", "--step=3"]),
        (["predict", "runs/a", "a.jpg"], "predict", ["runs/a", "a.jpg"]),
        (["precompute", "a.py", "--output=x"], "precompute", ["--config=a.py", "--output=x"]),
        (["benchmark", "train"], "benchmark", ["train"]),
    ],
)
def test_one_command_for_all(monkeypatch, given, module, becomes):
    calls = []
    monkeypatch.setattr(sys, "argv", ["/usr/bin/deit_jax", *given])
    monkeypatch.setattr(cli, "run", lambda main, **options: calls.append((main, sys.argv[1:], options)))
    __main__.main()
    assert calls == [
        (getattr(deit_jax, module).main, becomes, {"goes_on": module in ("main", "precompute")}),
    ]


def test_the_one_command_tells_of_all_and_knows_no_other(monkeypatch, capsys):
    for arguments in ([], ["--help"], ["-h"]):
        monkeypatch.setattr(sys, "argv", ["deit_jax", *arguments])
        __main__.main()
        out = capsys.readouterr().out
        assert all(re.search(rf"^    {name} ", out, re.MULTILINE) for name in __main__.COMMANDS)
    monkeypatch.setattr(sys, "argv", ["deit_jax", "benchmrk"])
    with pytest.raises(SystemExit, match="2"):
        __main__.main()
    assert capsys.readouterr().err == "error: benchmrk: unknown command; did you mean benchmark?\n"


@pytest.mark.parametrize("name", [pytest.param("deit_jax", marks=pytest.mark.long), "bin/deit_jax"])
def test_the_one_command_from_the_shell(name, tmp_path):
    """As a module, and as what an installation puts beside Python."""
    start = [str(Path(sys.executable).with_name("deit_jax"))] if "/" in name else [sys.executable, "-m", "deit_jax"]
    done = subprocess.run([*start, "train", "quickstart", "--md=train"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: --md: unknown flag; did you mean mode?\n")


def test_configs_that_are_packaged_have_names(runs, tmp_path):
    for given in (CONFIG, "--config=quickstart", "--config=quickstart:hardware=auto"):
        main.main([given])
    first, *others = runs
    assert [other[1:] for other in others] == [first[1:]] * 2


def test_a_config_file_may_look_at_its_own_path(config_file):
    flag = config_file(
        "from pathlib import Path\nfrom deit_jax import recipes\n"
        "def get_config():\n"
        "    c = recipes.deit('deit_tiny_patch16_224')\n    c.data.dir = str(Path(__file__).parent)\n    return c\n"
    )
    config = cli.parse_with_config("", lambda values: None, [flag])[1]
    assert config.data.dir == str(Path(flag.removeprefix("--config=")).parent)


# What is refused: one line on stderr, exit status 2, nothing run and nothing written.


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--config: missing; name a file, such as --config="),
        (["--mode=evaluate"], "--config: missing; "),
        (["--config"], "--config: missing; "),
        (["--config="], "--config: missing; "),
        (["--config.seed=3"], "--config: missing; "),
        (["--config.seed=3", "--noconfig.log.progress", "--config.what=1"], "--config: missing; "),
        (["--config=nowhere.py"], "--config: nowhere.py is not a Python file that exists"),
        (["--config=."], "--config: . is neither a Python file nor the config.json of a run"),
        (
            ["--config=no/config.json"],
            "no/config.json: cannot be read: No such file or directory; name the config that",
        ),
        (["--mode=evaluate"], "--config: missing; name a file"),
        (
            ["--config=quickstrat"],
            "--config: quickstrat is no file, and no config that is packaged; did you mean",
        ),
        (["--mode=replay", "--workdir=no"], "no/config.json: cannot be read: "),
        ([CONFIG, CONFIG], "flag --config="),
        ([CONFIG, "stray"], "stray: not a flag; fields are set as --config.field=value"),
        ([CONFIG, "seed=3"], "seed=3: not a flag; "),
        ([CONFIG, "--", "--mode=train"], "--mode=train: not a flag; "),
        ([CONFIG, "--config.log.progress", "False"], "False: not a flag; "),
        ([CONFIG, "--wrkdir=x"], "--wrkdir: unknown flag; did you mean workdir?"),
        ([CONFIG, "--md", "train"], "--md: unknown flag; did you mean mode?"),
        ([CONFIG, "--seed=3"], "--seed: unknown flag; did you mean --config.seed?"),
        ([CONFIG, "--lr=3"], "--lr: unknown flag; did you mean --config.optim.learning_rate?"),
        ([CONFIG, "--config.optim.lr=3"], "config.optim.lr: unknown field; did you mean optim.learning_rate?"),
        ([CONFIG, "--mode=trian"], "flag --mode=trian: value should be one of <train|evaluate|plan|replay>"),
        ([CONFIG, "--workdir"], "Missing value for flag --workdir"),
        ([CONFIG, "--flagfile=nowhere"], "nowhere"),
        ([CONFIG, "--config.batch_siz=3"], "config.batch_siz: unknown field; did you mean batch_size"),
        (
            [CONFIG, "--config.optim.lerning_rate", "3"],
            "config.optim.lerning_rate: unknown field; did you mean optim.le",
        ),
        ([CONFIG, "--noconfig.log.progres"], "config.log.progres: unknown field; did you mean log.progress"),
        ([CONFIG, "--config.model={}"], "config.model: unknown field; did you mean model."),
        ([CONFIG, "--config.batch_size=abc"], "flag --config.batch_size=abc: "),
        ([CONFIG, "--config.batch_size=3.5"], "flag --config.batch_size=3.5: "),
        ([CONFIG, "--config.batch_size="], "flag --config.batch_size=: "),
        ([CONFIG, "--config.batch_size"], "Missing value for flag --config.batch_size"),
        ([CONFIG, "--config.log.progress=maybe"], "flag --config.log.progress=maybe: "),
        ([CONFIG, "--config.data.crop_scale=(0.1"], "config.data.crop_scale: is "),
        ([CONFIG, "--config.data.crop_scale=5"], "config.data.crop_scale: is (5,), should be 2 numbers"),
        ([CONFIG, "--config.ema.decay=2"], "config.ema.decay: is 2.0, should be from 0 to "),
        ([CONFIG, "--config.optim.learning_rate=nan"], "config.optim.learning_rate: is nan, should be a finite"),
        ([CONFIG, "--config.seed=4294967296"], "config.seed: is 4294967296, should be from 0 to 4294967295"),
        ([CONFIG, "--config.model.dtype=float16"], "config.model.dtype: is 'float16', should be one of "),
        ([CONFIG, "--config.total_steps=0"], "config.total_steps: no unit of total is set"),
        ([CONFIG, "--config.batch_size=33", "--config.optim.accumulation=2"], "config.optim.accumulation: 2 does not"),
        ([f"{CONFIG}:hardware=tpux"], "--config: unknown hardware 'tpux'; did you mean tpu"),
        ([f"{CONFIG}:hw=tpu"], "--config: argument 'hw=tpu', should be name=value"),
        ([f"{CONFIG}:tpu"], "--config: argument 'tpu', should be name=value"),
    ],
    ids=lambda value: " ".join(value).replace(str(QUICKSTART), "FILE") if isinstance(value, list) else "",
)
def test_bad_arguments(refused, arguments, says):
    assert says in refused(arguments)


COMPLETE = "from deit_jax import recipes\ndef get_config():\n    config = recipes.deit('deit_tiny_patch16_224')\n"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def get_config(:\n", "failed with SyntaxError: "),
        ("x = 1\n\0", "failed with "),
        ("1 / 0\n", "failed with ZeroDivisionError: division by zero"),
        ("import no_such_module\n", "failed with ModuleNotFoundError: No module named 'no_such_module'"),
        ("def get_config():\n    raise ValueError('two\\n  lines')\n", "failed with ValueError: two lines"),
        ("get_cfg = None\n", "get_config"),
        ("def get_config(a, b):\n    pass\n", "failed with TypeError: "),
        ("def get_config():\n    pass\n", "gave NoneType, should give a ConfigDict"),
        ("def get_config():\n    return {'seed': 0}\n", "gave dict, should give a ConfigDict"),
        ("from ml_collections import ConfigDict as get_config\n", "config.seed: missing; start from a recipe"),
        (COMPLETE + "    config.optim.lerning_rate = 1.0\n    return config\n", "config.optim.lerning_rate: unknown"),
        (COMPLETE + "    del config.ema\n    return config\n", "config.ema: missing; "),
        (
            COMPLETE + "    config.model.dtype = 'half'\n    return config\n",
            "config.model.dtype: is 'half', should be ",
        ),
        (COMPLETE + "    raise SystemExit('no')\n", "failed with SystemExit: no"),
        ("raise GeneratorExit('no')\n", "failed with GeneratorExit: no"),
    ],
)
def test_config_files_that_fail(refused, config_file, source, says):
    flag = config_file(source)
    message = refused([flag])
    assert says in message
    assert flag.removeprefix("--config=") in message or message.startswith("config.")


def test_an_argument_that_a_config_does_not_take(refused, config_file):
    message = refused([config_file(COMPLETE + "    return config\n") + ":hardware=tpu"])
    assert "given.py failed with TypeError: get_config() takes 0 positional arguments but 1 was given" in message


def test_an_override_of_a_field_that_the_file_lacks(refused, config_file):
    for lost, field in (("ema", "ema.decay"), ("seed", "seed"), ("log.every_steps", "log.every_steps")):
        flag = config_file(COMPLETE + f"    del config.{lost}\n    return config\n")
        assert refused([flag, f"--config.{field}=0"]).startswith(f"config.{field}: missing; start from a recipe")


def test_a_folder_that_is_named_like_a_config(refused, tmp_path):
    (tmp_path / "folder.py").mkdir()
    assert "is not a Python file that exists" in refused([f"--config={tmp_path / 'folder.py'}"])


@pytest.mark.parametrize(
    ("platform", "command"),
    [
        ("cuda", ["deit_jax.main", CONFIG]),
        pytest.param("tpu", ["deit_jax.main", CONFIG], marks=pytest.mark.long),
        pytest.param("cuda", ["deit_jax.convert", "a", "b"], marks=pytest.mark.long),
    ],
)
def test_a_platform_that_is_not_there_is_one_line(platform, command, tmp_path):
    command = [sys.executable, "-m", *command]
    environment = {**os.environ, "JAX_PLATFORMS": platform}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: JAX cannot start: ")
    assert "install the extra for this machine (cuda12, cuda13 or tpu)" in done.stderr
    assert done.stderr.count("\n") == 1


LEFT_BEHIND = """
import types
@types.coroutine
def wait():
    yield
async def read():
    try:
        await wait()
    except BaseException as error:
        raise Exception("cannot read index 7") from error
"""


@pytest.mark.parametrize(
    ("file", "told"), [("/lib/orbax/checkpoint/_src/reader.py", False), ("/lib/others/reader.py", True)]
)
def test_what_orbax_leaves_behind_is_not_told(file, told, monkeypatch, capsys):
    """One read of an array fails, and those beside it are thrown away while they wait."""

    def leave(arguments: Sequence[str]) -> None:
        space: dict[str, Any] = {}
        exec(compile(LEFT_BEHIND, file, "exec"), space)
        left = space["read"]()
        left.send(None)
        del left

    monkeypatch.setattr(sys, "argv", ["main"])
    with pytest.raises(SystemExit):
        cli.run(leave)
    assert ("cannot read index 7" in capsys.readouterr().err) == told


@pytest.mark.parametrize(("wanted", "asked"), [("tpu", False), ("cpu", False), ("cuda,cpu", True), (None, True)])
def test_nvidia_is_asked_about_where_it_is_wanted(wanted, asked, setting, monkeypatch, capsys):
    monkeypatch.setattr(cli.cuda, "problem", lambda works: "the driver is old")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    setting("jax_platforms", wanted)
    assert cli.start_jax() == "cpu"
    assert capsys.readouterr().err == ("note: the driver is old; running on cpu\n" if asked else "")


def test_without_a_home_folder_nothing_is_kept(setting, monkeypatch, capsys):
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", no_home)
    setting("jax_compilation_cache_dir", None)
    assert cli.start_jax() == "cpu"
    assert jax.config.jax_compilation_cache_dir is None
    assert capsys.readouterr().err.startswith("note: what is compiled is not kept: there is no home folder")


@pytest.mark.parametrize(
    "arguments", [["--config=nowhere.py"], pytest.param([CONFIG, "--config.optim.b3=0.5"], marks=pytest.mark.long)]
)
def test_from_the_shell(arguments):
    """The same from without, where absl, JAX and warnings would add lines of their own."""
    command = [sys.executable, "-W", "error", "-m", "deit_jax.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []
