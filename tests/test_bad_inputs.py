"""Bad configs and flags by the hundred, drawn from a seed: each is refused in one line and leaves nothing behind.

No traceback, no command that hangs, nothing taken without a word, nothing half-written. `make test` takes a share of
the cases, `make test-long` all of them.
"""

import dataclasses
import os
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from endings import content, end, inside

from deit_jax import attention, benchmark, convert, export, main, precompute, predict
from deit_jax.config.fields import field_paths
from deit_jax.config.schema import UNITS, Config, Duration
from deit_jax.run import evaluate, train

HUGE = (10**20, -(10**20), 10**400)
LONG = "x" * 100_000


class Case(NamedTuple):
    """Something bad that a command is given.

    Attributes:
        what: it is, for messages.
        arguments: of the command line.
        named: one of these texts has to be in the line that refuses it.
        files: to be there, by name.
        command: that is given them.
    """

    what: str
    arguments: list[str]
    named: tuple[str, ...] = ()
    files: Mapping[str, bytes] = MappingProxyType({})
    command: Any = main


def share_of(cases: Iterable[Case], share: float) -> list[Case]:
    """Some of the cases, the same each time."""
    cases = list(cases)
    some = np.random.default_rng(0).permutation(len(cases))[: max(1, round(share * len(cases)))]
    return [cases[i] for i in sorted(some)]


def shares(few: float) -> pytest.MarkDecorator:
    """A test of a few cases, and as a long one of all."""
    return pytest.mark.parametrize("share", [few, pytest.param(1.0, marks=pytest.mark.long)], ids=["few", "all"])


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs that would have been run."""
    configs: list[Config] = []

    def stand_in(config: Any, workdir: Any) -> dict[str, Any]:
        configs.append(config)
        return {}

    monkeypatch.setattr(train, "train_in", stand_in)
    monkeypatch.setattr(evaluate, "evaluate", stand_in)
    return configs


def assert_all_refused(cases: Iterable[Case], folder: Path) -> None:
    """Runs each case in the folder, which nothing may change in."""
    faults = []
    with inside(folder):
        for case in cases:
            for name, text in case.files.items():
                (folder / name).write_bytes(text)
            before = content(folder)
            ending = end(case.command.main, case.arguments)
            fault = ending.fault() or ("" if ending.refused else f"taken: {ending.out!r:.200}")
            if not fault and case.named and not any(name in ending.err for name in case.named):
                fault = f"names none of {case.named}: {ending.err!r:.300}"
            if content(folder) != before:
                fault += f"; left {sorted(content(folder).items() ^ before.items())}"
            if fault:
                faults.append(f"{case.what}: {fault}")
    assert not faults, f"{len(faults)} faults\n" + "\n".join(faults)


# Configs.

CONFIG_FILE = """
from deit_jax import recipes
nan, inf = float("nan"), float("inf")

def get_config():
    config = recipes.digits("deit_tiny_patch16_224", hardware="cpu")
    with config.unlocked(), config.ignore_type():
        {}
    return config
"""


def kinds(cls: type = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a config with its type."""
    for name, kind in typing.get_type_hints(cls).items():
        if kind is Duration:
            yield from ((f"{prefix}{name}_{unit}", float if unit == "epochs" else int) for unit in UNITS)
        elif dataclasses.is_dataclass(kind):
            yield from kinds(typing.cast(type, kind), f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def test_every_field_is_met():
    assert [path for path, _ in kinds()] == list(field_paths())


def wrong_values(kind: Any) -> list[Any]:
    """Values that no field of a type takes."""
    everywhere = [None, [], {}, {"a": 1}, b"1", 1j, [None], {1: 2}]
    nan, inf = float("nan"), float("inf")
    if typing.get_origin(kind) is Literal:
        return [*everywhere, 0, True, "x", str(typing.get_args(kind)[0]).upper() + " ", LONG, "\x1b[2J"]
    if typing.get_origin(kind) is tuple:
        of = len(typing.get_args(kind))
        entries = ["a", None, nan, inf, 10**20, 10**400, True, [0.5]]
        return [*everywhere, 0.5, "0.5", [0.5] * (of + 1), [0.5] * (of - 1), *([0.5] * (of - 1) + [e] for e in entries)]
    return (
        everywhere
        + {
            int: [0.5, 1.0, "1", True, nan, inf, *HUGE],
            float: ["1", nan, inf, -inf, 1e300, -1e300, *HUGE],
            bool: [0, 1, 1.0, "True", nan],
            str: [0, 1.5, True, "\x1b[2J", "a\nb", "\0"],
        }[kind]
    )


def wrong_texts(kind: Any) -> list[str]:
    """What no field of a type takes on the command line."""
    everywhere = ["\x1b[31mx", "a\nb", "\0"]
    if typing.get_origin(kind) is Literal:
        return [*everywhere, "x", "None", "0", LONG]
    if typing.get_origin(kind) is tuple:
        return [*everywhere, "", "1", "x", "None", "(1,)", "(1,1,1,1)", "('a','b')", "(nan,nan)", "(1,", "(" * 500]
    return (
        everywhere
        + {
            int: ["", "x", "nan", "inf", "0.5", "1e3", "None", "[1]", "1 2", "9" * 20, "-" + "9" * 20, "9" * 5000],
            float: ["", "x", "nan", "inf", "-inf", "1e400", "-1e300", "None", "0,5", "[1]", "9" * 400, "9" * 5000],
            bool: ["maybe", "2", "None", "nan", "-1"],
            str: [],
        }[kind]
    )


def some(values: list[Any], most: int, random: np.random.Generator) -> list[Any]:
    """A few of them."""
    return [values[i] for i in random.permutation(len(values))[:most]]


def misspelt(path: str, random: np.random.Generator) -> str:
    """A name that is nearly that of a field."""
    group, dot, name = path.rpartition(".")
    at = int(random.integers(len(name)))
    changed = [name[:at] + name[at + 1 :], name[:at] + name[at] + name[at:], name.upper(), name + "_", "x" + name]
    return group + dot + changed[int(random.integers(len(changed)))]


def with_config(what: str, statement: str, *arguments: str, named: tuple[str, ...] = ()) -> Case:
    """A case of a config that a statement changes."""
    source = CONFIG_FILE.format(statement).encode()
    return Case(what, ["--config=given.py", *arguments], named, {"given.py": source})


def config_cases() -> Iterator[Case]:
    random = np.random.default_rng(1)
    for path, kind in kinds():
        for value in some(wrong_values(kind), 7, random):
            statement = f"config.{path} = {value!r}" if value != 10**400 else f"config.{path} = 10**400"
            yield with_config(f"{statement:.80}", statement, named=(f"config.{path}", "given.py failed"))
        for text in some(wrong_texts(kind), 4, random):
            override = f"--config.{path}={text}"
            yield with_config(f"{override:.80}", "pass", override, named=(path,))
        yield with_config(f"no {path}", f"del config.{path}", named=(f"config.{path}: missing",))
        yield with_config(f"--noconfig.{path}=1", "pass", f"--noconfig.{path}=1", named=(path,))
        name = misspelt(path, random)
        if random.integers(2):
            yield with_config(f"config.{name}", f"config.{name} = 1", named=(f"config.{name}: unknown",))
        else:
            yield with_config(f"--config.{name}", "pass", f"--config.{name}=1", named=(f"config.{name}: unknown",))
    for group in sorted({path.rpartition(".")[0] for path in field_paths()} - {""}):
        for value in (None, 5, "x", [], {}):
            yield with_config(f"{group} = {value!r}", f"config.{group} = {value!r}", named=(f"config.{group}",))
        yield with_config(f"--config.{group}=1", "pass", f"--config.{group}=1", named=(group,))
    yield from contradictions()


def contradictions() -> Iterator[Case]:
    durations = ("total", "log.every", "checkpoint.every", "eval.every", "optim.warmup")
    for name in durations:
        for first, second in (("steps", "epochs"), ("steps", "examples"), ("epochs", "examples")):
            both = [f"--config.{name}_{unit}=3" for unit in (first, second)]
            yield with_config(" ".join(both), "pass", *both, named=(f"config.{name}_{first}",))
        none = [f"--config.{name}_{unit}=0" for unit in UNITS]
        if name != "optim.warmup":
            yield with_config(" ".join(none), "pass", *none, named=(f"config.{name}_steps",))
    for field, *others in (
        ("optim.accumulation=7",),
        ("data.crop_scale=(0.9,0.1)",),
        ("mesh.data=0",),
        ("mesh.data=-2",),
        ("mesh.fsdp=0",),
        ("mesh.tensor=-1",),
        ("model.num_classes=0",),
        ("distillation.top_k=0",),
        ("distillation.store=somewhere",),
        ("distillation.store=s3://a/b", "distillation.kind=hard"),
        ("distillation.teacher.name=", "distillation.kind=hard"),
        ("mixing.label_smoothing=0.1", "loss.kind=binary_cross_entropy", "loss.binarize=True"),
        ("model.attention=cudnn",),
    ):
        given = [f"--config.{text}" for text in (field, *others)]
        named = ("config.distillation.",) if field.startswith("dist") else (f"config.{field.partition('=')[0]}",)
        yield with_config(" ".join(given), "pass", *given, named=named)


@shares(0.04)
def test_configs(share, taken, tmp_path):
    assert_all_refused(share_of(config_cases(), share), tmp_path)
    assert taken == []


BODIES = [
    "",
    "\0",
    "\xff\xfe",
    "def get_config(:",
    "  def get_config(): pass",
    "def get_config():\n\tpass\n        pass",
    "(" * 5000,
    "-" * 100_000 + "1",
    "# coding: no-such-coding\n",
    "1/0",
    "raise Exception",
    "raise Exception('a\\nb\\x1b[2J')",
    "raise Exception('\\udcff')",
    "raise SystemExit",
    "raise SystemExit(0)",
    "import sys; sys.exit('no')",
    "raise MemoryError",
    "raise RecursionError",
    "raise StopIteration",
    "raise OSError(28, 'No space left on device')",
    "raise FileNotFoundError('x')",
    "assert False",
    "import no_such_module",
    "from deit_jax.config import nothing",
    "x = 1",
    "get_config = None",
    "get_config = 5",
    "get_config = {}",
    "def get_config(a, b): pass",
    "def get_config(*, a): pass",
    "def get_config(): yield 1",
    "def get_config(): return get_config()",
    "def get_config(): return 5",
    "def get_config(): return None",
    "def get_config(): return {}",
    "def get_config(): return []",
    "def get_config(): return ConfigDict",
    "def get_config(): return ConfigDict()",
    "def get_config(): return ConfigDict({'a': 1})",
    "def get_config(): return ConfigDict({1: 1})",
    "def get_config(): return ConfigDict({(1, 2): 1})",
    "def get_config(): return ConfigDict({None: 1})",
    "def get_config(): return FrozenConfigDict({})",
    "def get_config(): return FrozenConfigDict({'seed': {}})",
    "def get_config():\n  c = whole()\n  c.again = c\n  return c",
    "def get_config():\n  c = whole()\n  c.model.again = c\n  return c",
    "def get_config():\n  c = whole()\n  c.model = c.optim\n  return c",
    "def get_config():\n  c = whole()\n  c.lock()\n  c.x = 1\n  return c",
    "def get_config():\n  c = whole()\n  c['a b'] = 1\n  return c",
    "def get_config():\n  c = whole()\n  c['\\x1b[2J'] = 1\n  return c",
    "def get_config():\n  c = whole()\n  c['\\udcff'] = 1\n  return c",
    "def get_config():\n  c = whole()\n  c[''] = 1\n  return c",
    "def get_config():\n  c = whole()\n  c['x' * 10**5] = 1\n  return c",
    "def get_config():\n  c = whole()\n  c.model.depth = ConfigDict.__init__\n  return c",
    "def get_config():\n  c = whole()\n  c.model.depth = FieldReference(None, field_type=int)\n  return c",
    "def get_config():\n  c = whole()\n  c.model.depth = placeholder(int)\n  return c",
    "def get_config():\n  c = whole()\n  d = {}\n  for i in range(3000): d = {'a': d}\n  c.deep = d\n  return c",
]
BEGINNING = """from ml_collections import ConfigDict, FrozenConfigDict, FieldReference
from ml_collections.config_dict import placeholder
def whole():
    from deit_jax import recipes
    config = recipes.digits("deit_tiny_patch16_224", hardware="cpu").unlock()
    config._fields = dict(config._fields)
    return config
"""
PLACES = (
    *("", " ", "nowhere.py", "folder.py", "link.py", "pipe.py", "/dev/null", "/dev/zero", "given.txt", ".py", "~/x.py"),
    *("~nobody-at-all/x.py", "http://a/b.py", "given.py/x.py", "n" * 300 + ".py", "n" * 5000 + ".py", "\udcff.py"),
    *("a\0b.py", "given.py:hardware", "given.py:hardware=quantum", "given.py:\udcff", "\n.py", "\x1b.py"),
)


def config_file_cases() -> Iterator[Case]:
    for body in BODIES:
        source = (BEGINNING + body).encode("latin-1" if "\xff" in body else "utf-8")
        for more in ([], ["--config.seed=3"]):
            yield Case(f"{body[:80]!r} {more}", ["--config=given.py", *more], (), {"given.py": source})
    whole = BEGINNING + "def get_config(): return whole()"
    for place in PLACES:
        for given in ([f"--config={place}"], ["--config", place], [f"--config={place}", "--config.seed=1"]):
            yield Case(f"{given!r:.80}", given, (), {"given.py": whole.encode(), "given.txt": b""})


@shares(0.3)
def test_config_files(share, taken, tmp_path):
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "link.py").symlink_to("nowhere.py")
    os.mkfifo(tmp_path / "pipe.py")
    assert_all_refused(share_of(config_file_cases(), share), tmp_path)
    assert taken == []


# Flags.

WEIGHTS = "--weights=nowhere"
# Of each command: what else it takes to get to its flags, and those flags by kind.
FLAGS: dict[Any, tuple[list[str], dict[str, str]]] = {
    main: (
        ["--config=given.py"],
        {"workdir": "place", "mode": "choice", "topology": "text", "slices": "number", "utilisation": "number"},
    ),
    precompute: (
        ["--config=given.py", "--output=out", "--config.distillation.kind=hard", "--config.distillation.store=no"],
        {"output": "place", "views": "choice", "check": "switch"},
    ),
    convert: (["nowhere", "out"], {"model": "text", "ema": "switch", "format": "choice"}),
    predict: (
        [WEIGHTS, "photo.jpg"],
        {"weights": "source", "model": "text", "ema": "switch", "top": "number", "json": "switch", "features": "place"}
        | {"batch_size": "number", "threads": "number", "dtype": "choice"},
    ),
    attention: (
        [WEIGHTS, "--output=out", "photo.jpg"],
        {"weights": "source", "model": "text", "ema": "switch", "output": "place", "block": "integer"},
    ),
    export: (
        [WEIGHTS, "--output=out"],
        {"weights": "source", "model": "text", "ema": "switch", "output": "place", "dtype": "choice"},
    ),
    benchmark: (
        ["train", "--model=no-such-model", "--batch_size=8", "--batches=1"],
        {"model": "text", "batch_size": "number", "image_size": "number", "dtype": "choice", "attention": "choice"}
        | {"parts": "choice", "remat": "switch", "batches": "number", "output": "place"},
    ),
}
NO_NUMBERS = ("", " ", "x", "nan", "inf", "1.5", "1e3", "None", "1 2", "9" * 5000, "\udcff", "[1]")
WRONG = {
    "integer": NO_NUMBERS,
    "number": (*NO_NUMBERS, "0", "-1", "-" + "9" * 20),
    "choice": ("", " ", "x", "None", "0", "\udcff", "\x1b[2J", LONG),
    "switch": ("", "maybe", "2", "None"),
    "place": ("http://a/b", "gs://a", "~nobody-at-all/x", "\udcff", "n" * 300, LONG, "file/x", "pipe/x", "/dev/null/x"),
    "source": (
        *(
            "",
            "http://a/b",
            "hf://",
            "hf://a",
            "hf://../..",
            "hf://a/b/c/d",
            "pretrained",
            "~nobody-at-all/x",
            "\udcff",
        ),
        *(
            "n" * 300,
            LONG,
            "file",
            "pipe",
            "link",
            "folder",
            "file@3",
            "#ema",
            "@latest",
            "@#",
            "\x1b[2J\n",
            "/dev/zero",
        ),
    ),
    "text": (),
}


def flag_cases() -> Iterator[Case]:
    for command, (basis, known) in FLAGS.items():
        yield from flag_cases_of(command, basis, known)


def flag_cases_of(command: Any, basis: list[str], known: dict[str, str]) -> Iterator[Case]:
    name, random = command.__name__.rpartition(".")[2], np.random.default_rng(2)
    files = {"given.py": CONFIG_FILE.format("pass").encode()}

    def case(*given: str, named: tuple[str, ...] = (), without: str = "") -> Case:
        kept = [argument for argument in basis if not (without and argument.startswith(f"--{without}="))]
        return Case(f"{name} {' '.join([*kept, *given])!r:.200}", [*kept, *given], named, files, command)

    for flag, kind in known.items():
        for text in WRONG[kind]:
            named = () if kind in ("place", "source") else (flag,)
            yield case(f"--{flag}={text}", named=named, without=flag)
        if kind != "switch":
            yield case(f"--{flag}", named=(flag,), without=flag)
        yield case(f"--no{flag}=1", named=(flag,))
        yield case(f"--{misspelt(flag, random)}_=1", named=(flag,))
        yield case(f"--{flag}=nowhere", f"--{flag}=", "--unknown_flag")
    for odd in ("-", "---", "--=", "-=x", "--\udcff", "-x", "--flagfile=", "--flagfile=nowhere"):
        yield case(odd, "--unknown_flag")
    for odd in ("--", "--flagfile=link", "--flagfile=folder", "--flagfile=file"):
        yield case("--unknown_flag", odd)
    for odd in ("", "\udcff", "\x1b[2J", "~nobody-at-all/x", "http://a/b", LONG, "pipe", "link", "{}", "[", "**"):
        yield case(odd)
        yield Case(f"{name} {odd!r:.80} alone", [odd], (), {}, command)
    yield Case(f"{name} without anything", [], (), {}, command)


@pytest.fixture
def odd_places(tmp_path: Path) -> Path:
    """A folder with an empty file, an empty folder, a link that leads nowhere, and a pipe."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@shares(0.15)
def test_flags(share, taken, odd_places):
    assert_all_refused(share_of(flag_cases(), share), odd_places)
    assert taken == []
