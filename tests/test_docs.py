"""What the documents name and what the scripts import is there."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "benchmarks/README.md",
    *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]
ELSEWHERE = {"mine.py"}  # what a reader makes
SCRIPTS = sorted(
    p.relative_to(ROOT) for folder in ("benchmarks", "configs", "tests/golden") for p in ROOT.glob(f"{folder}/**/*.py")
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_are_named_exist(document):
    text = (ROOT / document).read_text()
    paths = re.findall(r"`((?:deit_jax|docs|tests|configs|benchmarks|launch)/[^`\s]*|[\w/]+\.(?:py|md|sh))`", text)
    known = [
        path.relative_to(ROOT)
        for folder in ("deit_jax", "tests", "docs", "benchmarks", "configs", "launch")
        for path in (ROOT / folder).rglob("*")
    ]
    lost = {p for p in paths if not (ROOT / p).exists() and not any(k.match(p) for k in known)}
    assert lost <= ELSEWHERE


def test_the_architecture_names_files_in_their_rooms():
    rooms = re.findall(r"^- `(\w+)`: (.*(?:\n  .*)*)", (ROOT / "docs/architecture.md").read_text(), re.M)
    named = [(room, file) for room, text in rooms for file in re.findall(r"`(\w+\.py)`", text)]
    assert len(named) > 40
    assert len(rooms) == 9
    assert [f"{room}/{file}" for room, file in named if not (ROOT / "deit_jax" / room / file).exists()] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_what_scripts_import_of_the_package_is_there(script):
    """By reading: they may import torch, too, and do their work."""
    for node in ast.walk(ast.parse((ROOT / script).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "deit_jax":
            module = importlib.import_module(node.module)
            for name in node.names:
                file = f"{node.module}.{name.name}"
                assert hasattr(module, name.name) or importlib.util.find_spec(file), f"{script} imports {file}"
