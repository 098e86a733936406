"""The fields of a config for people: in a terminal (`--config=FILE --help`) and as docs/config.md.

What a field means stands in the docstrings of `schema.py` alone, what its numbers may be in `ranges.py`.
"""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from deit_jax.config.ranges import range_in_words
from deit_jax.config.resolve import flatten
from deit_jax.config.schema import UNITS, Config, Duration

_PREFACE = """# The fields of a config

Every field of every config, with the value that the recipe of DeiT-Ti on ImageNet gives it, `configs/deit_tiny.py`. Set
one by `--config.PATH=VALUE`; the same of any config file, with its own values, is told by `--config=FILE --help`. A
length of training has three fields, `_steps`, `_epochs` and `_examples`, of which one is set; a unit given on the
command line replaces that of the config. What [training](training.md), [augmentation](augmentation.md),
[distillation](distillation.md) and [many devices](scaling.md) make of them is told there.

This file is made from the docstrings of `deit_jax/config/schema.py`, by `python -m deit_jax.config.reference`.
"""
_DURATION = "or _steps, _epochs, _examples; 0: unset"


@dataclasses.dataclass(frozen=True)
class Field:
    """A field, or a duration: three of them, of which one is set.

    Attributes:
        path: dotted; of a duration without its unit.
        value: in a config.
        admits: what it may be, in words.
        meaning: a sentence or two.
    """

    path: str
    value: str
    admits: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class Section:
    """A group of fields; `title` is its path, "" for those of the config itself."""

    title: str
    meaning: str
    fields: list[Field]


def sections(config: Mapping[str, Any]) -> Iterator[Section]:
    """All fields in the order of the schema, with the values of a nested mapping, which may lack some."""
    yield from _sections(Config, dict(flatten(config)), "")


def in_a_terminal(config: Mapping[str, Any], width: int = 100) -> str:
    """Each field as it is set on the command line, with what it may be and means."""
    lines = []
    for section in sections(config):
        lines += ["", textwrap.fill(f"{section.title or 'the run'}: {section.meaning}", width), ""]
        for field in section.fields:
            lines.append(f"  --config.{field.path}={field.value}  ({field.admits})")
            lines.append(textwrap.fill(field.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines).strip("\n")


def as_markdown() -> str:
    """docs/config.md: a table for each section, with the values of DeiT-Ti's recipe."""
    from deit_jax.config import recipes  # which needs the models

    lines = [_PREFACE]
    for section in sections(recipes.deit("deit_tiny_patch16_224").to_dict()):
        lines += [f"## {section.title or 'The run'}\n\n{section.meaning}\n"]
        lines += ["| field | value | may be | meaning |\n| --- | --- | --- | --- |"]
        for field in section.fields:
            cells = f"`{field.path}`", f"`{field.value}`" if field.value else '""', field.admits, field.meaning
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _sections(cls: type, values: Mapping[str, Any], prefix: str) -> Iterator[Section]:
    sentence, meanings = _documented(cls)
    fields, below = [], []
    for name, kind in typing.get_type_hints(cls).items():
        path, meaning = prefix + name, meanings[name]
        if kind is Duration:
            unit = next((unit for unit in UNITS if values.get(f"{path}_{unit}")), UNITS[0])
            fields.append(Field(f"{path}_{unit}", _shown(values.get(f"{path}_{unit}")), _DURATION, meaning))
        elif dataclasses.is_dataclass(kind):
            below.append((typing.cast(type, kind), f"{path}."))
        else:
            fields.append(Field(path, _shown(values.get(path)), _admitted(kind, path), meaning))
    yield Section(prefix.rstrip("."), sentence, fields)
    for group, start in below:
        yield from _sections(group, values, start)


def _documented(cls: type) -> tuple[str, dict[str, str]]:
    """What a class's docstring says of it, and of each attribute."""
    sentence, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("\n\nAttributes:\n")
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    return " ".join(sentence.split()), {name: " ".join(meaning.split()) for name, meaning in entries}


def _admitted(kind: Any, path: str) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(value or '""' for value in arguments)
    if origin is tuple:
        return f"{len(arguments)} numbers {range_in_words(path + '.0')}".strip()
    if kind is bool:
        return "True, False"
    if kind is str:
        return "text"
    return f"{'a whole number' if kind is int else 'a number'} {range_in_words(path)}".strip()


def _shown(value: Any) -> str:
    """As the command line takes it; None is of a field that is missing."""
    if value is None:
        return "MISSING"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_shown(number) for number in value) + ")"
    if isinstance(value, float):
        return f"{value:.4g}" if float(f"{value:.4g}") == value else repr(value)
    return str(value)


if __name__ == "__main__":
    print(as_markdown(), end="")
