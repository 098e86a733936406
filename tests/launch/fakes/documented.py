"""What the fakes have in common: the commands and flags that the real programs document, and a record of calls.

`documented.json` has them, with the versions whose `--help` they were read from.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

TABLES = json.loads(Path(__file__).with_name("documented.json").read_text())
KINDS = ("values", "switches", "optional")


class Refused(Exception):
    """A command line that the real program would not take."""


@dataclass(frozen=True)
class Call:
    command: str  # its words, such as "compute tpus tpu-vm ssh"
    flags: dict[str, str]
    positionals: list[str]


def parse(program: str, arguments: list[str]) -> Call:
    """The parts of a command line; raises `Refused` where the program's table does not have them."""
    table = TABLES[program]
    commands = [c for c in table["commands"] if arguments[: len(c.split())] == c.split()]
    if not commands:
        raise Refused(f"{' '.join(arguments[:4])}: no such command")
    command = max(commands, key=len)
    entry = table["commands"][command]
    known = {kind: (entry.get(kind, "") + " " + table.get("everywhere", {}).get(kind, "")).split() for kind in KINDS}
    flags, positionals = _split(arguments[len(command.split()) :], known, entry.get("interspersed", True))
    least, most = entry["positionals"]
    if not least <= len(positionals) <= most:
        raise Refused(f"{command}: {len(positionals)} arguments, takes {least} to {most}: {positionals}")
    for name in entry.get("required", "").split():
        if name not in flags:
            raise Refused(f"{command}: {name} must be given")
    for group in entry.get("one_of", []):
        if len(flags.keys() & set(group.split())) != 1:
            raise Refused(f"{command}: exactly one of {group} must be given")
    return Call(command, flags, positionals)


def _split(arguments: list[str], known: dict[str, list[str]], interspersed: bool) -> tuple[dict[str, str], list[str]]:
    flags: dict[str, str] = {}
    rest = list(arguments)
    positionals = []
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word == "--" or not word.startswith("-"):
            positionals += [word] if word != "--" else []
            if not interspersed or word == "--":
                return flags, positionals + rest
        elif name in known["values"] and (equals or rest):
            flags[name] = value if equals else rest.pop(0)
        elif (name in known["switches"] and not equals) or name in known["optional"]:
            flags[name] = value
        else:
            raise Refused(f"unrecognized argument: {word}")
    return flags, positionals


def called(program: str) -> tuple[Call, Path]:
    """This process's command line, noted in `$FAKES/calls`, and the folder `$FAKES`; ends the process if refused."""
    world = Path(os.environ["FAKES"])
    with (world / "calls").open("a") as file:
        file.write(json.dumps([program, *sys.argv[1:]]) + "\n")
    try:
        return parse(program, sys.argv[1:]), world
    except Refused as error:
        sys.exit(f"ERROR: (fake {program}) {error}")
