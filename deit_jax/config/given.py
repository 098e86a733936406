"""A config as the command line gives it: the file that it names, and the fields that it overrides."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from deit_jax.base.errors import UserError, nearest
from deit_jax.base.forms import read_json
from deit_jax.base.storage import Place, place
from deit_jax.config.fields import field_paths, nearest_field
from deit_jax.config.resolve import LATER, flatten
from deit_jax.config.schema import UNITS


def take_flag(argv: Sequence[str], flag: str) -> tuple[str, list[str]]:
    """The value of `--FLAG=...` or `--FLAG ...`, and the other arguments."""
    rest = list(argv)
    for i, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            stop = i + 1 if equals else i + 2
            value = value if equals else "".join(rest[i + 1 : stop])
            return value, rest[:i] + rest[stop:]
    return "", rest


def load_config(source: str) -> ConfigDict:
    """Runs the `get_config` of `FILE.py[:ARGUMENT]`, or of one that is packaged, by its name; or reads the
    `config.json` of a run.

    Raises:
        UserError: there is no such file, or it fails.
    """
    if source.endswith(".json"):
        return _config_of_run(place(source, "--config"))
    path, _, argument = source.partition(":")
    if re.fullmatch(r"\w+", path):
        path = _packaged(path)
    if not path.endswith(".py"):
        raise UserError(f"--config: {path} is neither a Python file nor the config.json of a run")
    try:
        if not Path(path).is_file():  # reading a pipe would wait for ever
            raise ValueError
        text = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"--config: {path} is not a Python file that exists") from error
    module = ModuleType("deit_jax_config")
    module.__file__ = path
    try:
        # Not an import: that would leave bytecode, and take it for a file that was changed within the same second.
        exec(compile(text, path, "exec"), vars(module))
        config = module.get_config(*([argument] if argument else []))
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config gave {type(config).__name__}, should give a ConfigDict")
        if isinstance(config, FrozenConfigDict):
            config = ConfigDict(config)  # so that the command line can change it
        if not all(isinstance(path, str) for path, _ in flatten(config.to_dict())):
            raise TypeError("a field's name is no text")
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever a file raises that ends itself, RecursionError of a config in itself
        raise UserError(f"--config: {path} failed with {type(error).__name__}: {error}") from error
    return config


def _packaged(name: str) -> str:
    """The file of a config that comes with the package, by its name: here, if this is a checkout, or installed."""
    checkout, installed = (Path(__file__).parents[above] / "configs" for above in (2, 1))
    folder = installed if installed.is_dir() else checkout
    known = sorted(path.stem for path in folder.glob("*.py"))
    if name not in known:
        raise UserError(f"--config: {name} is no file, and no config that is packaged{nearest(name, known)}")
    return str(folder / f"{name}.py")


def name_of(source: str) -> str:
    """What the run of a config is called: as the file, or for the `config.json` of a run as its folder."""
    if source.endswith(".json"):
        return place(source, "--config").parent.name
    return Path(source.partition(":")[0]).stem


def _config_of_run(path: Place) -> ConfigDict:
    def typed(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: typed(field) for name, field in value.items()}
        return tuple(value) if isinstance(value, list) else value  # JSON has no tuples, and a config no lists

    content = typed(read_json(path, dict, mend="name the config that the run was started with by --config"))
    for name, value in LATER.items():  # of fields that came later than the run
        section, _, field = name.rpartition(".")
        group = content.setdefault(section, {}) if section else content
        if isinstance(group, dict):
            group.setdefault(field, value)
    return ConfigDict(content)


def check_overrides(config: ConfigDict, argv: Sequence[str]) -> None:
    """Raises `UserError` for a field that no config has, or that this one lacks: absl's own error is a traceback."""
    given = {path for path, _ in flatten(config.to_dict())}
    for argument in argv:
        override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if not override or override[1] in given:
            continue
        if override[1] in field_paths():
            raise UserError(
                f"config.{override[1]}: missing; start from a recipe (deit_jax.config.recipes), which has it"
            )
        raise UserError(f"config.{override[1]}: unknown field{nearest_field(override[1])}")


def keep_given_units(config: ConfigDict, overrides: Collection[str]) -> None:
    """A duration given in one unit on the command line loses the units that the config file gave it."""
    for path in overrides:
        group_path, _, leaf = path.rpartition(".")
        name, _, unit = leaf.rpartition("_")
        if unit not in UNITS:
            continue
        group = config[group_path] if group_path else config
        for other in UNITS:
            sibling = f"{group_path}.{name}_{other}".lstrip(".")
            if sibling not in overrides and f"{name}_{other}" in group:
                group[f"{name}_{other}"] = type(group[f"{name}_{other}"])(0)
