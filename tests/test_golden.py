"""The golden files are those of the manifest, and its tolerances those of the tests."""

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_files import FOLDER, MANIFEST, assert_close

ROOT = Path(__file__).parents[1]
TYPES = {"made_by": str, "command": str, "versions": dict, "seed": int | list, "tolerance": dict, "read_by": list}
TYPES |= {"sha256": str, "note": str}
every_file = pytest.mark.parametrize("name", MANIFEST)


def test_every_golden_file_is_in_the_manifest_and_every_script_made_one():
    found = {path.name for path in FOLDER.iterdir() if path.is_file()} - {"MANIFEST.json"}
    scripts = {name for name in found if name.startswith("make_")}
    assert found - scripts == MANIFEST.keys()
    assert scripts == {entry["made_by"] for entry in MANIFEST.values()}


@every_file
def test_entries_are_complete(name):
    entry = MANIFEST[name]
    assert TYPES.keys() - {"note"} <= entry.keys() <= TYPES.keys()
    assert all(isinstance(value, TYPES[field]) and value not in ("", []) for field, value in entry.items())
    assert all(isinstance(seed, int) for seed in np.atleast_1d(entry["seed"]).tolist())
    assert all(re.fullmatch(r"\d+(\.\d+)+(\+cpu)?", version) for version in entry["versions"].values())
    for stated in entry["tolerance"].values():
        assert stated.keys() == {"rtol", "atol", "of_largest"}
        assert all(isinstance(value, float) and 0 <= value < 0.01 for value in stated.values())


@every_file
def test_files_are_what_the_manifest_tells_of(name):
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == MANIFEST[name]["sha256"]


@every_file
def test_the_command_runs_the_script_with_libraries_of_known_versions(name):
    entry = MANIFEST[name]
    script = FOLDER / entry["made_by"]
    assert f"python {script.relative_to(ROOT)}" in entry["command"]
    imported = set(re.findall(r"^(?:import|from) (\w+)", script.read_text(), re.MULTILINE)) - sys.stdlib_module_names
    libraries = {"pillow" if module == "PIL" else module for module in imported if not module.startswith("make_")}
    assert {"python"} | libraries <= entry["versions"].keys()


@every_file
def test_every_tolerance_is_asked_for(name):
    """The tests have no tolerances of their own: they compare with `assert_close`, by the kinds of the manifest."""
    texts = [(ROOT / path).read_text() for path in MANIFEST[name]["read_by"]]
    assert any(f'"{name}"' in text for text in texts)
    asked = {kind for text in texts for kind in re.findall(r'assert_close\(.*, "([^"]+)"', text)}
    assert asked == MANIFEST[name]["tolerance"].keys() or name.endswith(".json")


def test_a_tolerance_is_absolute_relative_or_of_the_largest(monkeypatch):
    theirs = np.array([1.0, 100.0])
    for kind, within in (("rtol", [1e-3, 0.1]), ("atol", [1e-3, 1e-3]), ("of_largest", [0.1, 0.1])):
        stated = {"rtol": 0.0, "atol": 0.0, "of_largest": 0.0} | {kind: 1e-3}
        monkeypatch.setitem(MANIFEST, "file", {"tolerance": {"numbers": stated}})
        for place in np.eye(2):
            assert_close(theirs + 0.9 * place * within, theirs, "file", "numbers")
            with pytest.raises(AssertionError, match="Mismatched elements: 1 / 2"):
                assert_close(theirs + 1.1 * place * within, theirs, "file", "numbers")
