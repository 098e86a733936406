"""launch/Dockerfile, read: it cannot be built without a daemon and a network."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "launch/Dockerfile"
TEXT = re.sub(r"\\\n\s*", "", FILE.read_text())
STEPS = [line.split(" ", 1) for line in TEXT.splitlines() if line and not line.startswith("#")]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def steps(name):
    return [rest for step, rest in STEPS if step == name]


def test_the_steps_are_docker_s():
    assert {step for step, _ in STEPS} <= {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT"}
    assert STEPS[0][0] == "FROM"


def test_the_base_is_pinned_and_its_python_is_ours():
    (base,) = steps("FROM")
    image, tag = base.split(":")
    assert image == "python"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"] == ">=3.11,<3.14"
    assert re.fullmatch(r"3\.1[123]-slim-\w+", tag)


def test_what_is_copied_is_there_and_let_through():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    copied = set()
    for line in steps("COPY"):
        *sources, target = line.split()
        assert len(sources) == 1 or target.endswith("/")
        copied |= set(sources)
    assert all((ROOT / source).exists() for source in copied)
    assert copied == let_through
    assert "*" in ignored


def test_the_package_needs_nothing_else():
    """The metadata that setuptools reads, and the folder of configs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = " ".join(steps("COPY")).split()
    assert {project["readme"], *project["license-files"], "pyproject.toml", "deit_jax", "configs"} <= set(copied)


def test_libraries_are_pinned_and_come_before_the_code():
    (install,) = [line for line in steps("RUN") if "pip install" in line]
    words = shlex.split(install.partition("pip install")[2])
    assert {"--no-cache-dir", "--constraint=constraints.txt"} <= set(words)
    order = [f"{step} {rest}" for step, rest in STEPS]
    assert order.index(f"RUN {install}") < order.index("COPY deit_jax deit_jax")
    assert not re.search(r"torch|tensorflow", TEXT)


def test_it_runs_as_nobody_special_and_starts_training():
    order = [step for step, _ in STEPS]
    assert order.index("USER") > max(i for i, step in enumerate(order) if step == "RUN")
    (user,) = steps("USER")
    assert f"useradd --create-home --uid=1000 {user}" in TEXT
    (place,) = steps("WORKDIR")
    assert place.startswith(f"/home/{user}/")
    # Runs without a workdir of their own go to runs/, below this folder.
    assert order.index("USER") > [f"{step} {rest}" for step, rest in STEPS].index(f"RUN chown {user} .")
    assert steps("ENTRYPOINT") == ['["python", "-m", "deit_jax.main"]']


@pytest.mark.parametrize("extra", ["tpu", "cuda12", "cuda13"])
def test_the_extras_that_it_names_are_there(extra):
    assert extra in EXTRAS
    assert extra in FILE.read_text()
