"""Where weights are: a run, a file, a folder, the hub, published ones.

What a `spec` can be:

    DIR[@latest|@STEP][#raw|#ema]   a workdir or checkpoint directory: its best checkpoint, or the named one
    FILE.safetensors                also .pth, .pt and .bin (with torch installed), `#ema` for the average in them
    FOLDER                          with config.json and a weight file, in Hugging Face's or timm's layout
    hf://owner/name[@revision]      such a folder on the hub
    pretrained                      the published weights of the model

A leading `~` is the user's home.
"""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from deit_jax.base.errors import UserError
from deit_jax.models import list_models
from deit_jax.weights import files, folders, hub, tables
from deit_jax.weights.card import Card

KEY = "deit_jax"  # of the card, in a safetensors file's metadata


@dataclasses.dataclass(frozen=True)
class Found:
    """What is at a place, as it is there."""

    where: str  # for messages
    tensors: dict[str, Any]
    card: Card
    scheme: tables.Scheme | None = None  # None: to be found out


def find(spec: str, model: str, ema: bool | None) -> Found:
    """What `spec` names; for the arguments and errors see `read_weights`."""
    spec = os.path.expanduser(spec)
    try:
        return _find(spec, model, ema)
    except OSError as error:  # a folder of somebody else's, a name that is too long
        raise UserError(
            f"{spec}: cannot be read: {error.strerror or error}; name a place that is yours to read"
        ) from error


def _find(spec: str, model: str, ema: bool | None) -> Found:
    path, step, ema = _split(spec, ema)
    if path == "pretrained":
        if not model:
            raise UserError("pretrained: of which model? give its name")
        return _in_file(hub.pretrained(model), ema)
    if path.startswith(hub.PREFIX):
        return _in_folder(hub.fetch(path), ema)
    place = Path(path)
    if "://" in path or not place.exists():
        raise UserError(f"{path}: is not there; name a workdir, a weight file, a folder, {hub.PREFIX}owner/name")
    directory = _checkpoints(place)
    if directory:
        return _in_checkpoint(directory, step, ema)
    if step:
        raise UserError(f"{spec}: only a checkpoint directory has steps; leave out @{step}")
    return _in_folder(place, ema) if place.is_dir() else _in_file(place, ema)


def _split(spec: str, ema: bool | None) -> tuple[str, str | None, bool | None]:
    """Path, step and choice of the average of a spec."""
    address = spec.startswith(hub.PREFIX)
    match = re.fullmatch(r"(.+?)(?:@(latest|best|\d+))?(?:#(raw|ema))?", spec)
    if match is None or Path(spec).exists():
        return spec, None, ema
    path, step, kind = match.groups()
    if kind and ema not in (None, kind == "ema"):
        raise UserError(f"{spec}: asks for {kind} weights and a flag for the others; leave one out")
    path = spec.removesuffix(f"#{kind}") if address else path
    return path, None if address else step, (kind == "ema") if kind else ema


def _checkpoints(place: Path) -> Path | None:
    """The checkpoint directory that `place` is or, as a workdir, has."""
    if (place / "checkpoints").is_dir():
        return place / "checkpoints"
    # Of digits as classes, a folder of photos has such names, too.
    steps = place.is_dir() and any(child.name.isdigit() and (child / "state").is_dir() for child in place.iterdir())
    return place if steps else None


def _in_checkpoint(directory: Path, step: str | None, ema: bool | None) -> Found:
    from deit_jax.weights.orbax import read_variables  # Orbax takes a third of a second, which files need not wait for

    number = int(step) if step and step.isdigit() else step or "best"
    variables, meta = read_variables(directory.absolute(), step=number, ema=ema)
    card = _card(meta["card"], str(directory)) if "card" in meta else Card()
    return Found(str(directory), variables, card, tables.OURS)


def _in_folder(folder: Path, ema: bool | None) -> Found:
    if not (folder / folders.CONFIG).is_file():
        raise UserError(f"{folder}: has neither checkpoints nor {folders.CONFIG}; name a workdir or a weight file")
    file, card = folders.read_folder(folder)
    return dataclasses.replace(_in_file(file, ema), card=card)


def _in_file(file: Path, ema: bool | None) -> Found:
    tensors, metadata = files.read_tensors(file, ema=ema)
    name = metadata.get("arch", "").partition(".")[0]
    card = Card(name if name in list_models() else "")
    if KEY in metadata:
        try:
            card = _card(json.loads(metadata[KEY]), str(file))
        except ValueError as error:
            raise UserError(f"{file}: its metadata {KEY!r} is no JSON; write the file anew") from error
    return Found(str(file), tensors, card)


def _card(content: Any, where: str) -> Card:
    try:
        return Card.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{where}: the card in it cannot be read: {reason}; write it anew") from error
