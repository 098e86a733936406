"""The rules of the house that no single module can keep: who may import whom, and what is never imported."""

import ast
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import deit_jax

PACKAGE = Path(__file__).parents[1] / "deit_jax"
FILES = sorted(PACKAGE.rglob("*.py"))

COMMANDS = {
    *("main", "predict", "attention", "export", "serve", "convert", "precompute", "preview", "benchmark", "report"),
}
# A room, or a file of the top shelf, may import the rooms and files of earlier floors, not its neighbours.
FLOORS = [
    {"base"},
    {"models", "parallel", "data"},
    {"config", "step"},
    {"weights"},
    {"distill"},
    {"run"},
    {"classifier"},
    {"cli", "trained"},
    COMMANDS | {"__main__", "library"},
    {"__init__"},
]
FLOOR = {unit: i for i, units in enumerate(FLOORS) for unit in units}
ROOMS = set.union(*FLOORS[:6])
# Numeric code takes plain arguments: who reads a config.
READERS = {
    "config": {"distill", "run", "cli", "library", "__init__"} | COMMANDS,
    "cli": COMMANDS | {"__main__", "library"},
}


def imports(path: Path, *, lazy: bool = True) -> Iterator[str]:
    """Dotted names that a file imports; `from a import b` gives `a.b`. Without `lazy`, functions are left out."""
    todo: list[ast.AST] = [ast.parse(path.read_text(), path)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # One dot is the file's folder, every further dot the folder above it.
            above = path.relative_to(PACKAGE.parent).parts[: -node.level] if node.level else ()
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)
        if lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            todo.extend(ast.iter_child_nodes(node))


def attributes(path: Path) -> set[str]:
    """Dotted names, such as `nnx.merge`, that a file uses."""
    return {
        ast.unparse(node) for node in ast.walk(ast.parse(path.read_text(), path)) if isinstance(node, ast.Attribute)
    }


def where(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def unit(path: Path) -> str:
    """The file or folder directly under the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_unit_has_a_floor():
    assert {unit(path) for path in FILES} <= FLOOR.keys()
    rooms = {path.parent.name for path in FILES} - {PACKAGE.name}
    assert rooms == ROOMS
    assert len(rooms) <= 9
    assert len(list(PACKAGE.glob("*.py"))) <= len(COMMANDS) + 6


def test_imports_point_downwards():
    wrong = []
    for path in FILES:
        for name in imports(path):
            root, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if root != "deit_jax" or target in ("__version__", unit(path)):
                continue
            # What is no unit is a name that the package re-exports: inside, it is imported from where it lives.
            below = target in FLOOR and FLOOR[target] < FLOOR[unit(path)]
            if not below or unit(path) not in READERS.get(target, FLOOR):
                wrong.append(f"{where(path)} imports {name}")
    assert wrong == []


def test_orbax_is_known_to_one_file():
    users = {where(path) for path in FILES if any(name.split(".")[0] == "orbax" for name in imports(path))}
    assert users <= {"weights/orbax.py"}


def test_modules_are_built_from_parameters_in_one_place():
    """`nnx.merge` checks only the number of leaves; one function checks names and shapes before it."""
    builders = ("nnx.merge", "replace_by_pure_dict")
    users = {where(path) for path in FILES for name in attributes(path) | set(imports(path)) if name.endswith(builders)}
    assert users <= {"models/params.py"}


def test_places_are_made_at_one_door():
    """`base.storage` makes them: `Path("gs://b/x")` is a relative folder `gs:`, and to append there is to overwrite."""
    rooms = (
        "run/",
        "distill/",
        "weights/orbax.py",
        "weights/meta.py",
        "weights/places.py",
        "main.py",
        "precompute.py",
        "convert.py",
    )
    wrong = []
    for path in FILES:
        calls = [node for node in ast.walk(ast.parse(path.read_text(), path)) if isinstance(node, ast.Call)]
        for call in calls if where(path).startswith(rooms) else ():
            name = ast.unparse(call.func).rpartition(".")[2]
            appends = name == "open" and any(isinstance(a, ast.Constant) and "a" in str(a.value) for a in call.args)
            if name in ("Path", "PosixPath") or (appends and where(path) != "run/metrics.py"):
                wrong.append(f"{where(path)}: {ast.unparse(call)}")
    assert wrong == []


def test_no_file_is_called_utils():
    assert [where(path) for path in FILES if path.stem in ("utils", "util", "helpers", "common")] == []


def test_no_module_imports_tensorflow_or_torch_at_the_top():
    heavy = {"tensorflow", "torch"}
    assert [where(p) for p in FILES if heavy & {name.split(".")[0] for name in imports(p, lazy=False)}] == []


def test_importing_everything_asks_for_neither_tensorflow_nor_torch():
    """The finder sees every attempt, so that the test says the same whether or not they are installed."""
    code = """
import importlib, json, sys

class Finder:
    asked = set()
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "torch"):
            self.asked.add(name)

sys.meta_path.insert(0, Finder())
import deit_jax
# Rooms and commands are attributes of the package, before anything has imported them.
assert deit_jax.models.VisionTransformer and deit_jax.predict.main and deit_jax.recipes.deit
assert not hasattr(deit_jax, "nothing")
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(Finder.asked)))
"""
    modules = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES]
    modules = [name.removesuffix(".__init__") for name in modules]
    run = subprocess.run([sys.executable, "-W", "error", "-c", code, *modules], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == []


def test_the_version_is_stated_once():
    assert deit_jax.__version__ == importlib.metadata.version("deit_jax")
