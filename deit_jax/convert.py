"""Copies weights from one format to another, names, layouts and card (model, class names, preprocessing) included.

    python -m deit_jax.convert SRC DST [--model=NAME] [--ema|--noema] [--format=hf]

SRC is a workdir or checkpoint directory (its best checkpoint; @latest, @STEP, #raw, #ema choose otherwise), a
.safetensors, .pth, .pt or .bin file, a folder with config.json, hf://owner/name, or pretrained. DST is

    FILE.safetensors      timm's names and layouts
    DIR with --format=hf  a folder that Hugging Face transformers reads: config.json, model.safetensors, ...
    DIR                   a checkpoint directory as training writes it, with the weights as its only step

Values keep their bits and types. Nothing is ever overwritten: DST must not exist, or be an empty folder.
The last line of the output is a JSON object.
"""

import json
from collections.abc import Sequence
from typing import Any

from absl import flags

from deit_jax import cli
from deit_jax.base.errors import UserError
from deit_jax.base.storage import Place, place, told
from deit_jax.weights import Weights, files, folders, places, read, tables
from deit_jax.weights.orbax import write_variables


def main(argv: Sequence[str]) -> int:
    """Parses the command line, reads, writes, and reports."""

    def define(values: flags.FlagValues) -> None:
        flags.DEFINE_string("model", "", "name of the model, where SRC does not tell", flag_values=values)
        flags.DEFINE_boolean(
            "ema", None, "the averaged weights, or with --noema the raw ones (default: as SRC has it)", values
        )
        flags.DEFINE_enum("format", None, list(WRITERS), "of DST (default: by its name)", flag_values=values)

    given, places_given = cli.parse(__doc__ or "", define, argv)
    if len(places_given) != 2:
        raise UserError(f"SRC DST: two places are needed, {len(places_given)} given; see --help")
    source, destination = places_given[0], place(places_given[1], "DST")
    kind = given.format or ("timm" if destination.suffix == ".safetensors" else "orbax")
    _check_free(destination, kind)
    cli.start_jax()
    weights = read.read_named(source, model=given.model, ema=given.ema)
    try:
        WRITERS[kind](destination, weights)
    except OSError as error:
        reason = told(error, destination, "choose another place")
        raise UserError(f"{destination}: cannot be written: {reason}") from error
    report(source, destination, kind, weights)
    return 0


def write_timm(destination: Place, weights: Weights) -> None:
    """One safetensors file with timm's names; the card in its header."""
    metadata = {places.KEY: json.dumps(weights.card.to_json())}
    files.write_safetensors(destination, tables.scatter(weights.variables, tables.TIMM), metadata)


def write_orbax(destination: Place, weights: Weights) -> None:
    """A checkpoint directory without optimizer; the card beside the weights."""
    write_variables(destination, dict(weights.variables), {"card": weights.card.to_json()})


WRITERS = {"timm": write_timm, "hf": folders.write_folder, "orbax": write_orbax}


def report(source: str, destination: Place, kind: str, weights: Weights) -> None:
    """Prints what was written, for people and as a JSON object."""
    card = weights.card
    result: dict[str, Any] = {
        "model": card.model,
        "source": source,
        "destination": str(destination),
        "format": kind,
        "parameters": sum(int(value.size) for value in weights.variables.values()),
        "dtypes": sorted({str(value.dtype) for value in weights.variables.values()}),
        "arguments": dict(card.arguments),
        "classes": len(card.class_names),
    }
    changed = ", ".join(f"{name}={value}" for name, value in card.arguments.items())
    print(f"{card.model}{f' with {changed}' if changed else ''}: {result['parameters']:,} parameters")
    print(f"from {source}")
    print(f"to   {destination} ({kind}, {', '.join(result['dtypes'])})")
    print(json.dumps(result))


def _check_free(destination: Place, kind: str) -> None:
    """`UserError` where something would be overwritten, or the name does not go with the format."""
    if destination.is_dir() and kind != "timm":
        if any(destination.iterdir()):
            raise UserError(f"{destination}: is a folder with something in it; remove it or choose another name")
    elif destination.exists():
        raise UserError(f"{destination}: exists; remove it or choose another name")
    if kind != "timm" and destination.suffix in files.SUFFIXES:
        raise UserError(f"{destination}: is the name of a file, and format {kind} a folder; choose another name")
    if kind == "timm" and destination.suffix != ".safetensors":
        raise UserError(f"{destination}: format timm is one file; end its name in .safetensors")


if __name__ == "__main__":
    cli.run(main)
