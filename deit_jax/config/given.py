"""A config as the command line gives it: the file that it names, and the fields that it overrides."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict, FrozenConfigDict

from deit_jax.base.errors import UserError
from deit_jax.config.fields import field_paths, nearest_field
from deit_jax.config.resolve import flatten
from deit_jax.config.schema import UNITS


def take_config(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The value of `--config=...` or `--config ...`, and the other arguments."""
    rest = list(argv)
    for i, argument in enumerate(rest):
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            stop = i + 1 if equals else i + 2
            value = value if equals else "".join(rest[i + 1 : stop])
            return value, rest[:i] + rest[stop:]
    return "", rest


def load_config(source: str) -> ConfigDict:
    """Runs the `get_config` of `FILE[:ARGUMENT]`; `UserError` where there is no such file, or it fails."""
    path, _, argument = source.partition(":")
    if not path.endswith(".py"):
        raise UserError(f"--config: {path} is not a Python file that exists")
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
