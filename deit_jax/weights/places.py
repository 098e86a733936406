"""Where weights are: a run, a file, a folder, the hub, published ones.

What a `spec` can be:

    DIR[@latest|@STEP][#raw|#ema]   a workdir or checkpoint directory: its best checkpoint, or the named one, which
                                    DIR/STEP names as well
    FILE.safetensors                also .pth, .pt, .bin and .ckpt (with torch installed), `#ema` for the average in
                                    them; or the .index.json of several files
    FOLDER                          with config.json and a weight file, in Hugging Face's or timm's layout
    hf://owner/name[@revision]      such a folder on the hub
    pretrained                      the published weights of the model

The first three may be in a bucket, gs://bucket/name. A leading `~` is the user's home.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from deit_jax.base.errors import UserError
from deit_jax.base.forms import parse_json
from deit_jax.base.storage import SCHEME, UNFINISHED, Place, here, is_bucket, is_step, named, told
from deit_jax.models import list_models
from deit_jax.weights import files, folders, hub, tables
from deit_jax.weights.card import Card

KEY = "deit_jax"  # of the card, in a safetensors file's metadata
FLOATING = (np.float32, np.float16, ml_dtypes.bfloat16)


@dataclasses.dataclass(frozen=True)
class Found:
    """What is at a place, as it is there."""

    where: str  # for messages
    tensors: dict[str, Any]
    card: Card
    scheme: tables.Scheme | None = None  # None: to be found out
    imagenet: bool = False  # published, so that a thousand classes without names are those of ImageNet-1k


def find(spec: str, model: str, ema: bool | None) -> Found:
    """What `spec` names; for the arguments and errors see `read_weights`."""
    spec = os.path.expanduser(spec)
    try:
        found = _find(spec, model, ema)
        _check_values(found)
        return found
    except MemoryError as error:
        raise UserError(f"{spec}: does not fit into this machine's memory; take a larger one") from error
    except OSError as error:  # a folder of somebody else's, a name that is too long
        where = named(spec.removeprefix(hub.PREFIX), spec)
        raise UserError(
            f"{spec}: cannot be read: {told(error, where, 'name a place that is yours to read')}"
        ) from error


def _find(spec: str, model: str, ema: bool | None) -> Found:
    path, step, ema = _split(spec, ema)
    if path == "pretrained":
        if not model:
            raise UserError("pretrained: of which model? give its name")
        return dataclasses.replace(_in_file(hub.pretrained(model), ema), imagenet=True)
    if path.startswith(hub.PREFIX):
        return dataclasses.replace(_in_folder(hub.fetch(path), ema), imagenet=hub.of_imagenet(path))
    known = f"name a workdir, a weight file, a folder, {SCHEME}bucket/name of one, {hub.PREFIX}owner/name"
    if "://" in path and not path.startswith(SCHEME):
        raise UserError(f"{path}: is not there; {known}")
    where = named(path, path)
    if not where.exists():
        raise UserError(f"{path}: is not there; {known}")
    if not step and is_step(where.name) and _has_steps(where.parent) and (where / "state").is_dir():
        where, step = where.parent, where.name
    directory = _checkpoints(where)
    if directory:
        return _in_checkpoint(directory, step, ema)
    if step:
        raise UserError(f"{spec}: only a checkpoint directory has steps; leave out @{step}")
    if where.is_dir() and not (where / folders.CONFIG).is_file():
        raise UserError(f"{where}: has neither checkpoints nor {folders.CONFIG}; name a workdir or a weight file")
    with here(where) as local:
        if is_bucket(where) and local.name.endswith(files.INDEX):
            _fetch_shards(where, local)
        found = _in_folder(local, ema) if local.is_dir() else _in_file(local, ema)
    return dataclasses.replace(found, where=path) if is_bucket(where) else found


def _fetch_shards(index: Any, local: Path) -> None:
    """Copies what an index in a bucket names beside the copy of the index, as far as it is there."""
    for name in files.shards(local):
        if (shard := index.with_name(name)).exists():
            shard.fetch(local.with_name(name))


def _split(spec: str, ema: bool | None) -> tuple[str, str | None, bool | None]:
    """Path, step and choice of the average of a spec."""
    address = spec.startswith(hub.PREFIX)
    match = re.fullmatch(r"(.+?)(?:@(latest|best|\d+))?(?:#(raw|ema))?", spec)
    if match is None or os.path.exists(spec):
        return spec, None, ema
    path, step, kind = match.groups()
    if kind and ema not in (None, kind == "ema"):
        raise UserError(f"{spec}: asks for {kind} weights and a flag for the others; leave one out")
    path = spec.removesuffix(f"#{kind}") if address else path
    return path, None if address else step, (kind == "ema") if kind else ema


def _checkpoints(place: Place) -> Place | None:
    """The checkpoint directory that `place` is or, as a workdir, has; `UserError` where it has another program's."""
    if _has_steps(place):
        return place
    inside = place / "checkpoints"
    if not inside.is_dir():
        return None
    names = sorted(child.name for child in inside.iterdir() if not child.name.startswith("."))
    unfinished = all(UNFINISHED in name for name in names)  # of a run that has just begun
    if _has_steps(inside) or unfinished:
        return inside
    if (place / folders.CONFIG).is_file() and folders.weight_file(place):
        return None
    file = next((name for name in names if name.endswith(files.SUFFIXES)), "")
    mend = f"name its weight file, such as {inside / file}" if file else "name a workdir or a weight file"
    raise UserError(f"{inside}: holds no steps of this package, but {names[0]}{', ...' if names[1:] else ''}; {mend}")


def _has_steps(directory: Place) -> bool:
    # Of digits as classes, a folder of photos has such names, too.
    return directory.is_dir() and any(
        is_step(child.name) and any((child / part).is_dir() for part in ("state", "meta"))
        for child in directory.iterdir()
    )


def _in_checkpoint(directory: Place, step: str | None, ema: bool | None) -> Found:
    from deit_jax.weights.orbax import read_variables  # Orbax takes a third of a second, which files need not wait for

    number = int(step) if step and step.isdigit() else step or "best"
    variables, meta = read_variables(directory.absolute(), step=number, ema=ema)
    card = _card(meta["card"], str(directory)) if "card" in meta else Card()
    return Found(str(directory), variables, card, tables.OURS)


def _in_folder(folder: Path, ema: bool | None) -> Found:
    file, card = folders.read_folder(folder)
    return dataclasses.replace(_in_file(file, ema), card=card)


def _in_file(file: Path, ema: bool | None) -> Found:
    tensors, metadata = files.read_tensors(file, ema=ema)
    name = metadata.get("arch", "").partition(".")[0]
    card = Card(name if name in list_models() else "")
    if KEY in metadata:
        try:
            card = _card(parse_json(metadata[KEY]), str(file))
        except ValueError as error:
            raise UserError(f"{file}: its metadata {KEY!r} {error}; write the file anew") from error
    return Found(str(file), tensors, card, imagenet=hub.is_published(file))


def _card(content: Any, where: str) -> Card:
    try:
        return Card.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{where}: the card in it cannot be read: {reason}; write it anew") from error


def _check_values(found: Found) -> None:
    """`UserError` for a tensor that holds no numbers to compute with: the one place where all weights come in."""
    for name, value in found.tensors.items():
        if value.dtype not in FLOATING:
            raise UserError(
                f"{found.where}: {name} is of type {value.dtype}, and weights are floating-point numbers; "
                f"save it as float32, or take other weights"
            )
        if not np.isfinite(value).all():
            raise UserError(
                f"{found.where}: {name} has values that are NaN or beyond float32; the weights are damaged, so take "
                f"earlier ones"
            )
