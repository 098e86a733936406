"""Damaged files by the hundred, drawn from a seed: what reads them back is right, says a word, or refuses in one line.

No traceback, no command that hangs, no number that is another without a word, nothing half-written. `make test` takes a
share of the cases, those of whole runs aside; `make test-long` takes all of them.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from endings import Ending, content, end, inside
from tiny import distilled_config, tiny_config, write_teacher
from trained_models import NAMES, PREPROCESSING, small_model, stand_in, write_photos
from weight_samples import sample

from deit_jax import convert, main, precompute, predict
from deit_jax.config.schema import Config
from deit_jax.run import evaluate, plots, train
from deit_jax.run.build import Run
from deit_jax.weights import Card
from deit_jax.weights.files import read_tensors

ROOT = Path(__file__).parents[1]

OTHER_FORMS = (
    *(
        "{}",
        "[]",
        "5",
        "null",
        '"x"',
        "true",
        "",
        " ",
        "{",
        "[" * 10_000,
        "[" * 10_000 + "]" * 10_000,
        '{"a":' * 10_000,
    ),
    *(
        "NaN",
        '{"step": NaN}',
        "9" * 5000,
        '{"a": 1, "a": 2}',
        "\x00",
        "\ufeff{}",
        "[{}]",
        "[null]",
        "[[1]]",
        "-0",
        "1e999",
    ),
)


class Damage(NamedTuple):
    """A change of a file: what it is, and how it is done to a path by a generator of random numbers."""

    what: str
    do: Callable[[Path, np.random.Generator], None]


def _replaced(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _emptied(path: Path, random: np.random.Generator) -> None:
    path.write_bytes(b"")


def _cut(path: Path, random: np.random.Generator) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(random.integers(max(1, len(data))))])


def _flipped(path: Path, random: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    for at in random.integers(len(data), size=int(random.integers(1, 4))) if data else ():
        data[at] ^= 1 << int(random.integers(8))
    path.write_bytes(data)


def _noise(path: Path, random: np.random.Generator) -> None:
    path.write_bytes(random.bytes(int(random.integers(1, 5000))))


def _longer(path: Path, random: np.random.Generator) -> None:
    path.write_bytes(path.read_bytes() + random.bytes(int(random.integers(1, 50))))


def _folder(path: Path, random: np.random.Generator) -> None:
    _replaced(path)
    path.mkdir()


def _dangling(path: Path, random: np.random.Generator) -> None:
    _replaced(path)
    path.symlink_to("nowhere")


def _circle(path: Path, random: np.random.Generator) -> None:
    _replaced(path)
    path.symlink_to(path.name)


def _pipe(path: Path, random: np.random.Generator) -> None:
    _replaced(path)
    os.mkfifo(path)


def _gone(path: Path, random: np.random.Generator) -> None:
    _replaced(path)


def _other_form(path: Path, random: np.random.Generator) -> None:
    path.write_text(OTHER_FORMS[int(random.integers(len(OTHER_FORMS)))])


def _other_value(path: Path, random: np.random.Generator) -> None:
    """One value somewhere in the JSON is another, or is missing."""
    tree = json.loads(path.read_text().splitlines()[-1] if path.suffix == ".jsonl" else path.read_text())
    if isinstance(tree, dict):
        tree.pop("checksum", None)  # which tells; older versions wrote none
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(tree)
    if places:
        node, key = places[int(random.integers(len(places)))]
        odd = [None, {}, [], "x", -1, 0.5, True, 10**17, "\x1b[2J", [[]], "n" * 300, {"a": {}}, 1e300]
        at = int(random.integers(len(odd) + 1))
        if at == len(odd):
            del node[key]
        else:
            node[key] = odd[at]
    path.write_text(json.dumps(tree))


BYTES = [Damage(f.__name__[1:], f) for f in (_emptied, _cut, _flipped, _noise, _longer, _folder, _dangling)]
BYTES += [Damage(f.__name__[1:], f) for f in (_circle, _pipe, _gone, _cut, _flipped)]
TEXT = [*BYTES, *(Damage(f.__name__[1:], f) for f in (*[_other_form] * 4, *[_other_value] * 6))]


class Case(NamedTuple):
    """A file of something written, a damage, and the command that reads it back.

    Attributes:
        exact: what comes of it has to be as without the damage, or a word said: false for facts without a checksum.
    """

    file: str
    damage: Damage
    seed: int
    command: str
    exact: bool

    def __str__(self) -> str:
        return f"{self.command} with {self.file} {self.damage.what} ({self.seed})"


def cases(files: Sequence[tuple[str, Sequence[str], bool]], damages: Sequence[Damage] = ()) -> list[Case]:
    """For each (file, commands, exact): every damage."""
    every: list[Case] = []
    for name, commands, exact in files:
        text = Path(name).name == "metadata" or Path(name).suffix in (".json", ".jsonl") or Path(name).name == "metrics"
        for damage in damages or (TEXT if text else BYTES):
            for command in commands:
                every.append(Case(name, damage, len(every), command, exact))
    return every


def shares(few: int, many: int) -> pytest.MarkDecorator:
    """A test of a few cases, and as a long one of many."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.long)], ids=["few", "many"])


def some(cases: Sequence[Case], count: int) -> list[Case]:
    """So many of the cases, the same each time."""
    return [cases[i] for i in sorted(np.random.default_rng(0).permutation(len(cases))[:count])]


Commands = dict[str, tuple[Any, list[str]]]


def digest(file: Path) -> str:
    """Of the tensors in a file, whose header may be in any order."""
    tensors = sorted(read_tensors(file)[0].items())
    return hashlib.sha256(b"".join(name.encode() + value.tobytes() for name, value in tensors)).hexdigest()


def numbers(ending: Ending) -> Any:
    """What a command found, without what may differ: times, places, how many images it mended."""
    last = ending.out.splitlines()[-1:] or ["{}"]
    told = json.loads(last[0])
    written = digest(Path("out.safetensors")) if Path("out.safetensors").exists() else ""
    free = ("images_per_second", "corrupt_images", "rollbacks", "skipped", "recorded", "destination", "bytes")
    found = {name: value for name, value in told.items() if name not in free}
    return found, written, [line for line in ending.out.splitlines() if "%  " in line]


def assert_right_or_said(pristine: Path, cases: Sequence[Case], commands: Commands, folder: Path) -> None:
    """Damages a copy of what is in a folder for each case, and runs its command beside it.

    Each has a folder of its own, since libraries remember what they have read where. After a refusal nothing may have
    changed, but that checkpoints were moved aside.
    """
    wanted, faults = {}, []
    for name in sorted({case.command for case in cases}):
        with _copied(pristine, folder):
            command, arguments = commands[name]
            ending = end(command.main, arguments)
            assert ending.status == 0, (name, ending)
            wanted[name] = numbers(ending)
    for case in cases:
        with _copied(pristine, folder):
            case.damage.do(Path(case.file), np.random.default_rng(case.seed))
            before = content(Path())
            command, arguments = commands[case.command]
            ending = end(command.main, arguments)
            if fault := ending.fault() or _wrong(case, ending, wanted[case.command], before, content(Path())):
                faults.append(f"{case}: {fault}")
    assert not faults, f"{len(faults)} faults of {len(cases)}\n" + "\n".join(faults)


@contextlib.contextmanager
def _copied(pristine: Path, folder: Path) -> Iterator[None]:
    """Relative places are in a copy that is removed in the end."""
    copy = folder / secrets.token_hex(8)
    shutil.copytree(pristine, copy, symlinks=True)
    with inside(copy):
        yield
    shutil.rmtree(copy)


def _wrong(case: Case, ending: Ending, wanted: Any, before: dict[str, str], after: dict[str, str]) -> str:
    """In words, what is wrong with what came of a damage; "" where nothing is."""
    said = ending.warnings or ending.err or "changed since" in ending.out or "differs from" in ending.out
    if ending.refused:
        moved = {name.replace("/corrupt", "/checkpoints"): digest for name, digest in after.items()}
        changed = {name for name, _ in moved.items() ^ before.items()} - {"run/.lock"}  # which each run removes
        if changed:
            return f"refused ({ending.err.strip()[:200]}) and left {sorted(changed)[:6]}"
        return ""
    left = [name for name in after if Path(name).name.startswith(".") and name not in before]
    if left:
        return f"left {left}"
    if case.exact and not said and numbers(ending) != wanted:
        return f"without a word {numbers(ending)} for {wanted}"
    return ""


# A run.


@pytest.fixture(scope="module", autouse=True)
def _compiled_once() -> Iterator[None]:
    """Steps are traced and compiled once for each config, however often a run is built; no picture is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_figure", lambda *arguments, **options: None)
        for module in (train, evaluate, precompute):
            patch.setattr(module, "build", _remembered(module.build, lambda config, mesh, source: (config, source)))
        for module in (train, evaluate):
            key = lambda config, predict, source, mesh: (config, source)  # noqa: E731
            patch.setattr(module, "Evaluator", _remembered(module.Evaluator, key))
        patch.setattr(
            Run, "train_step", _remembered(Run.train_step, lambda run, teacher=None: (run.config, run.source))
        )
        yield


def _remembered(make: Callable, key: Callable[..., tuple[Config, Any]]) -> Callable:
    made: dict[Any, Any] = {}

    def remember(*arguments: Any) -> Any:
        config, source = key(*arguments)
        known = repr(config), source.fingerprint, source.class_names
        if known not in made:
            made[known] = make(*arguments)
        return made[known]

    return remember


CONFIG_FILE = """
from ml_collections import ConfigDict
from tiny import distilled_config, tiny_config, write_teacher
from deit_jax.config.resolve import to_dict

def get_config():
    return ConfigDict(to_dict({}))
"""


def small_config(make: Callable[..., Config] = tiny_config, *given: Any, **more: Any) -> tuple[Config, str]:
    """A config of 8 steps that keeps all checkpoints, and the file that gives it."""
    fields = {"total_steps": 8, "checkpoint__keep": 9, "eval__every_steps": 4, "checkpoint__every_steps": 2} | more
    arguments = ", ".join([*map(repr, given), *(f"{name}={value!r}" for name, value in fields.items())])
    return make(*given, **fields), CONFIG_FILE.format(f"{make.__name__}({arguments})")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was killed after step 6 of 8."""
    folder = tmp_path_factory.mktemp("pristine")
    workdir = folder / "run"
    train.train(small_config()[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "8")
    (workdir / "rollbacks.json").write_text('[{"from": 0, "to": 1, "skipped": 1}]')
    (workdir / ".lock").write_text("process 7 on nowhere")
    (folder / "config.py").write_text(small_config()[1])
    write_photos(folder / "photos", ["a.png"])
    return folder


RUN_COMMANDS: Commands = {
    "resume": (main, ["--config=config.py", "--workdir=run"]),
    "evaluate": (main, ["--config=config.py", "--workdir=run", "--mode=evaluate"]),
    "predict": (predict, ["--weights=run", "photos/a.png"]),
    "convert": (convert, ["run", "out.safetensors"]),
    "fine-tune": (main, ["--config=config.py", "--workdir=new", "--config.init_from=run"]),
}


def run_cases(run: Path) -> list[Case]:
    own, reading = ("resume",), ("resume", "evaluate", "predict", "convert")
    step = run / "run" / "checkpoints" / "6"
    arrays = [str(path.relative_to(run)) for path in sorted((step / "state").rglob("*")) if path.is_file()]
    small = [name for name in arrays if "/d/" not in name] + [name for name in arrays if "/d/" in name][:6]
    every = cases(
        [
            *((f"run/{name}", own, True) for name in ("metrics.jsonl", "run.json", "config.json", ".lock")),
            ("run/rollbacks.json", own, False),
            ("run/checkpoints/6/meta/metadata", reading, False),
            ("run/checkpoints/4/metrics/metrics", ("resume", "predict"), False),
            *((name, ("predict", "convert"), True) for name in small),
        ]
    )
    every += cases([(name, own, True) for name in small[::3]])
    # TensorStore waits for a pipe in the place of its files, and nobody has one there by mistake.
    every = [case for case in every if case.damage.what != "pipe" or "/state/" not in case.file]
    folders = ("run/checkpoints", "run/checkpoints/6", "run/checkpoints/6/state", "run/checkpoints/6/meta")
    whole = [damage for damage in BYTES if damage.what in ("folder", "dangling", "circle", "pipe", "gone")]
    every += cases([(name, reading, False) for name in folders], whole)
    return every + cases([("run/checkpoints/6/meta/metadata", ("fine-tune",), False)], TEXT[::6])


@pytest.mark.long
def test_runs(run, tmp_path):
    assert_right_or_said(run, some(run_cases(run), 90), RUN_COMMANDS, tmp_path)


# Weights.


WEIGHT_COMMANDS: Commands = {
    "of a file": (convert, ["w.safetensors", "out.safetensors"]),
    "of a folder": (convert, ["hf", "out.safetensors"]),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same weights as a file with a card, and as a folder in Hugging Face's layout."""
    folder = tmp_path_factory.mktemp("weights")
    given = sample(image_size=10)
    convert.write_timm(folder / "w.safetensors", given)
    convert.WRITERS["hf"](folder / "hf", given)
    return folder


def _other_header(path: Path, random: np.random.Generator) -> None:
    """One value somewhere in the header of a safetensors file is another, or is missing."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = path.with_name("header.json")
    header.write_bytes(data[8 : 8 + size])
    (_other_value if random.integers(4) else _other_form)(header, random)
    new = header.read_bytes()
    header.unlink()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + size :])


def _other_card(path: Path, random: np.random.Generator) -> None:
    """One value somewhere in the card is another, or is missing."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, card = json.loads(data[8 : 8 + size]), path.with_name("card.json")
    card.write_text(header["__metadata__"]["deit_jax"])
    _other_value(card, random)
    header["__metadata__"]["deit_jax"] = card.read_text()
    card.unlink()
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + size :])


def weight_cases() -> list[Case]:
    """Nobody has checksums of these: other bytes of the same form are other weights, a card is what it says."""
    tensors = [Damage("with another header", _other_header)] * 20
    card = [Damage("with another card", _other_card)] * 40
    every = cases([("w.safetensors", ("of a file",), False)], [*card, *tensors, *BYTES * 5])
    every += cases([("hf/model.safetensors", ("of a folder",), False)], [*tensors, *BYTES * 3])
    configs = [(f"hf/{name}", ("of a folder",), False) for name in ("config.json", "preprocessor_config.json")]
    return every + cases(configs, TEXT * 4)


@shares(100, 1000)
def test_weights(count, weights, tmp_path):
    assert_right_or_said(weights, some(weight_cases(), count), WEIGHT_COMMANDS, tmp_path)


# A recorded teacher, a program and pictures.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store, and the config that it is of, which teaches from its weights."""
    folder = tmp_path_factory.mktemp("recorded")
    write_teacher(folder / "teacher")
    taught = {"distillation__kind": "soft", "distillation__top_k": 3, "distillation__teacher__evaluate": False}
    config, text = small_config(distilled_config, folder / "teacher", **taught)
    (folder / "config.py").write_text(text.replace("PosixPath", ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precompute, "CHUNKS", 4)
        precompute.Recording(config, "stream").write(folder / "store")
    return folder


STORE_COMMANDS: Commands = {
    "check": (precompute, ["--config=config.py", "--output=store", "--check"]),
    "go on": (precompute, ["--config=config.py", "--output=store"]),
}


def store_cases(folder: Path) -> list[Case]:
    names = [str(path.relative_to(folder)) for path in sorted((folder / "store").rglob("*")) if path.is_file()]
    every = cases([(name, tuple(STORE_COMMANDS), False) for name in names])
    return [case for case in every if case.damage.what != "pipe" or case.file == "store/store.json"]  # see run_cases


@shares(1, 14)
def test_stores(count, recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(precompute, "CHUNKS", 4)
    assert_right_or_said(recorded, some(store_cases(recorded), count), STORE_COMMANDS, tmp_path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos in formats of every kind."""
    folder = tmp_path_factory.mktemp("pictures")
    write_photos(folder / "photos", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "other.png"])
    return folder


@shares(3, 120)
def test_pictures(count, pictures, tmp_path, monkeypatch):
    """What a damaged picture shows nobody knows: the others are told as they were."""
    stand_in(monkeypatch, small_model(), Card("deit_tiny_patch16_224", {}, NAMES, PREPROCESSING))
    commands: Commands = {"predict": (predict, ["--weights=x", "--top=1", "photos/other.png", "photos"])}
    names = [f"photos/a.{suffix}" for suffix in ("png", "jpg", "webp", "gif", "bmp")]
    every = cases([(name, ("predict",), False) for name in names], BYTES * 6)
    assert_right_or_said(pictures, some(every, count), commands, tmp_path)
