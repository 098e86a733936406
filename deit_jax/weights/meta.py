"""What a saved step holds beside its arrays, as JSON: `meta` (what the run was, and shape, dtype and checksum of every
array) and, where the step was evaluated, `metrics` (its top-1). Both have a checksum of themselves.
"""

import errno
import json
import math
import os
import re
import zlib
from typing import Any

import jax

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.base.forms import parse_json, read_regular, require, whole
from deit_jax.base.storage import Place, is_bucket, told
from deit_jax.step.state import TrainState
from deit_jax.weights.arrays import describe
from deit_jax.weights.card import Card

Meta = dict[str, Any]
METRIC = "top1"
LAYOUT = 1  # of a step's items; to be raised by whoever changes what older versions cannot read


class CorruptCheckpoint(Exception):
    """A checkpoint that cannot be read, or whose arrays are not those that were saved."""


def read_meta(step: Place) -> Meta:
    """What was saved beside the state in the folder of a step.

    Raises:
        UserError: it is a checkpoint of another program, or of another layout.
        CorruptCheckpoint: it cannot be read, or is not of the form.
    """
    items = {path.name for path in step.glob("*") if path.is_dir()} - {"metrics"}
    if items and not {"state", "meta"} & items:
        raise UserError(
            f"{step}: is no checkpoint of deit_jax, it holds {', '.join(sorted(items))}; write its weights as "
            f".safetensors or .pth with what made it, and convert those with deit_jax.convert"
        )
    try:
        meta = _opened(parse_json(read_regular(step / "meta" / "metadata")))
        layout = _check_meta(meta)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise_machines(error, step)
        raise CorruptCheckpoint(f"{step}: cannot be read: its meta: {error}") from error
    if layout > LAYOUT:
        raise UserError(f"{step}: is of layout {layout}, and this version reads {LAYOUT}; update deit_jax")
    if "arrays" not in meta:
        raise UserError(
            f"{step}: is of an older layout, which does not describe its arrays; convert it to .safetensors with "
            f"the deit_jax that wrote it (python -m deit_jax.convert), and begin from that by config.init_from"
        )
    return meta


def complete(meta: Meta, state: TrainState) -> Meta:
    """What is to be saved beside a state: what the run says of it, its layout, form and arrays, and the checksum."""
    return _sealed({**meta, "layout": LAYOUT, "form": form_of(state), "arrays": describe(state)})


def read_top1(step: Place) -> float | None:
    """Of the evaluation in the folder of a step, in percent; None where there was none.

    Raises:
        CorruptCheckpoint: it cannot be read.
    """
    path = step / "metrics" / "metrics"
    if not path.exists():
        return None
    try:
        content = _opened(parse_json(read_regular(path)))
        top1 = content.get(METRIC, "missing") if isinstance(content, dict) else "missing"
        if not isinstance(top1, int | float) or not 0 <= top1 <= 100:
            raise ValueError(f"{METRIC} is {top1!r}, should be a percentage")
    except (OSError, ValueError) as error:
        raise_machines(error, path)
        raise CorruptCheckpoint(f"{path}: is no evaluation: {error}") from error
    return float(top1)


def write_top1(step: Place, top1: float) -> None:
    """Adds its evaluation to the folder of a saved step; `OSError` where it cannot be written."""
    with replacing(step / "metrics" / "metrics") as fresh:
        fresh.write_text(json.dumps(_sealed({METRIC: top1})))


def form_of(tree: Any) -> int:
    """Tells trees apart that hold the same arrays."""
    return zlib.crc32(str(jax.tree.structure(tree)).encode())


def raise_machines(error: Exception, where: Place) -> None:
    """Raises `TryAgain`, or `UserError` without the permission, where an error says nothing of the files."""
    number = error.errno if isinstance(error, OSError) else None
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # TensorStore's
        number = int(code[1])
    if number in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return
    systems = error if isinstance(error, OSError) else OSError(number, os.strerror(number))
    if isinstance(systems, PermissionError):
        raise UserError(f"{where}: cannot be read: {told(systems, where, 'make it yours to read')}") from error
    kind = "bucket" if is_bucket(where) else "disk"
    raise TryAgain(
        f"{where}: cannot be read: {systems.strerror}; the same command goes on when the {kind} is well again"
    ) from error


def _sealed(content: Meta) -> Meta:
    """JSON content with its checksum: a flipped bit would else be believed, or blamed on the user's config."""
    return {**content, "checksum": _sum(content)}


def _opened(content: Any) -> Any:
    """What was sealed, `ValueError` where that has changed; what older versions have written has no checksum."""
    if isinstance(content, dict) and "checksum" in content:
        told = content.pop("checksum")
        require(told == _sum(content), "it is not what was saved")
    return content


def _sum(content: Meta) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _check_meta(meta: Any) -> int:
    """The layout of a meta; `ValueError`, `TypeError` or `KeyError` where it is not of the form."""
    require(isinstance(meta, dict) and isinstance(meta.get("card"), dict), "has no card")
    Card.from_json(meta["card"])
    require(isinstance(meta.get("config", {}), dict), "config is no object")
    require(isinstance(meta.get("data", ""), str) and isinstance(meta.get("jax", ""), str), "data or jax is no text")
    arrays = meta.get("arrays", {})
    require(isinstance(arrays, dict) and all(isinstance(entry, dict) for entry in arrays.values()), "arrays are none")
    for path, entry in arrays.items():
        require(isinstance(entry["dtype"], str) and whole(entry["checksum"], 0, 2**32 - 1), f"{path} has no checksum")
        require(isinstance(entry["shape"], list), f"{path} has no shape")
        require(all(whole(side, 0, 2**40) for side in entry["shape"]), f"{path} has a shape that is none")
    layout = meta.get("layout", LAYOUT)
    require(whole(layout, 1, math.inf), "layout is no number")
    return layout
