"""Weight files as dicts of host arrays: safetensors in and out, torch's pickles in, whole or in shards."""

import logging
import operator
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.base.forms import MAX_BYTES, parse_json, read_json
from deit_jax.base.names import listing
from deit_jax.base.storage import Place
from deit_jax.weights.pickles import read_pickle

Tensors = dict[str, np.ndarray]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".pth.tar")  # Lightning's; the last is timm's, and no archive
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
INDEX = ".index.json"  # ends the name of a file that says which tensor is in which of several files
# Whole numbers are counters, which are no weights but stand beside them.
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
MAX_TENSORS = 20_000
# What torch puts into names: data parallelism (the second for shards), its compiler, recomputation.
WRAPPERS = {"module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module"}


def read_tensors(path: Path, *, ema: bool | None = None) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a file by their names in it, and its metadata: the texts of a header, or the `arch` that timm's
    training script saves.

    Counters are left out (single whole numbers), and what torch's wrappers put into names. float16, bfloat16 and
    float32 come as they are stored; float64 as float32, with a warning.

    Args:
        path: `.safetensors`; `.pth`, `.pt`, `.bin`, `.ckpt`, `.pth.tar`, which take torch to read; or the
            `.index.json` of several such files.
        ema: True for the moving average beside the weights, as training scripts save it; else the weights, or the
            average where it is alone, with a warning.

    Raises:
        UserError: the file is missing, damaged, larger than the machine's memory, or would run code when read; or it
            has no average.
    """
    if path.name.endswith(INDEX):
        tensors, metadata = _read_shards(path, ema)
    else:
        tensors, metadata = _read_file(path, ema)
    return _plain(tensors, path), metadata


def write_safetensors(path: Place, tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str]) -> None:
    """Writes tensors under their names, whole or not at all; `OSError` where the file cannot be written."""
    whole = {name: np.ascontiguousarray(value) for name, value in tensors}
    with replacing(path) as fresh:
        fresh.touch()
        mode = fresh.stat().st_mode  # what the umask leaves; the library's files are for their owner alone
        try:
            # "pt" is what transformers and timm ask of a file: the layouts are torch's.
            safetensors.numpy.save_file(whole, fresh, {"format": "pt", **metadata})
        except safetensors.SafetensorError as error:  # its text is the system's, with the number
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error)) from error
        fresh.chmod(mode)


def shards(index: Path) -> dict[str, set[str]]:
    """The weight files that an index names, beside it, and the names of the tensors that it says are in each.

    Raises:
        UserError: it cannot be read, or names something else than weight files beside it.
    """
    places = read_json(index, dict).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise UserError(f"{index}: has no weight_map that says which tensor is in which file; fetch it anew")
    whole: dict[str, set[str]] = {}
    for tensor, name in places.items():
        if Path(name).name != name or not name.endswith(SUFFIXES):
            raise UserError(f"{index}: names {name!r}, which is no weight file beside it; fetch it anew")
        whole.setdefault(name, set()).add(tensor)
    return whole


def _read_shards(index: Path, ema: bool | None) -> tuple[Tensors, dict[str, str]]:
    """The tensors of all files of an index, each of which has to hold what the index says, and nothing else."""
    files = shards(index)
    missing = [name for name in sorted(files) if not (index.parent / name).is_file()]
    if missing:
        others = f" (nor are {len(missing) - 1} more)" if missing[1:] else ""
        raise UserError(f"{index}: {missing[0]} is not there beside it{others}; fetch all of the {len(files)} files")
    _check_room(index, sum((index.parent / name).stat().st_size for name in files))
    whole: Tensors = {}
    for name, expected in sorted(files.items()):
        tensors, _ = _read_file(index.parent / name, ema)
        differences = {"missing": expected - tensors.keys(), "of another file": tensors.keys() - expected}
        if said := listing({what: dict.fromkeys(sorted(names), "") for what, names in differences.items()}):
            raise UserError(f"{index.parent / name}: is not as {index.name} tells: {said}; fetch all files anew")
        whole |= tensors
    return whole, {}


def _read_file(path: Path, ema: bool | None) -> tuple[Tensors, dict[str, str]]:
    """The tensors of one file as they are named and stored there, and its metadata."""
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: its name ends in none of {', '.join(SUFFIXES)}")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # reading a pipe would wait for ever
            raise UserError(f"{path}: is no regular file; name a weight file")
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name a weight file that is there") from error
    if path.name.endswith(TORCH_SUFFIXES):
        _check_room(path, path.stat().st_size)
        return read_pickle(path, ema=ema)
    if ema:
        raise UserError(f"{path}: a safetensors file has one set of weights, no moving average; leave out the choice")
    metadata = _read_header(path)
    _check_room(path, path.stat().st_size)
    try:
        # Not mapped into memory: the pages would be held beside the copies.
        return safetensors.numpy.load_file(path, backend="pread"), metadata
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: is damaged: {error}; fetch it anew") from error


def _read_header(path: Path) -> dict[str, str]:
    """The metadata; `UserError` where the header is none, or names a tensor twice, which the library lets pass."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        room = path.stat().st_size - 8
        if not 2 <= size <= room:
            raise UserError(f"{path}: is no safetensors file, or cut off within its header; fetch it anew")
        header = file.read(min(size, MAX_BYTES + 1))
    try:
        entries = parse_json(header)
    except ValueError as error:
        raise UserError(f"{path}: its header {error}; write the file anew") from error
    try:
        metadata = entries.pop("__metadata__", {})
        texts = [text for text in metadata.values() if isinstance(text, str)]
        end = max((operator.index(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        others = {name: entry["dtype"] for name, entry in entries.items() if entry["dtype"] not in DTYPES}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: its header is no safetensors header; fetch it anew") from error
    if len(texts) < len(metadata):
        raise UserError(f"{path}: its header has metadata that is no text; write the file anew")
    if end != room - size:
        raise UserError(
            f"{path}: its header tells of {end:,} bytes of tensors, there are {room - size:,}; fetch it anew"
        )
    if others:
        name, kind = next(iter(others.items()))
        raise UserError(f"{path}: {name} is of type {kind}, which is not read; write it as float32 first")
    return metadata


def _check_room(path: Path, size: int) -> None:
    """`UserError` where so many bytes of tensors do not fit into memory: of a sparse file, which takes no room itself,
    there may be any number."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise UserError(
            f"{path}: holds {size / 2**30:,.0f} GiB of tensors, and this machine has {memory / 2**30:,.0f} GiB of "
            f"memory; name other weights, or take a larger machine"
        )


def _plain(tensors: Tensors, path: Path) -> Tensors:
    """Without counters and wrappers; and float64, which nothing here computes in, as float32."""
    if len(tensors) > MAX_TENSORS:
        raise UserError(f"{path}: has {len(tensors):,} tensors, more than any network here; name the weights of one")
    plain: Tensors = {}
    origins: dict[str, str] = {}
    for name, value in tensors.items():
        if value.size == 1 and value.dtype.kind in "iub":
            continue
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in plain:
            raise UserError(f"{path}: a tensor is duplicated: {origins[short]} is there as {name} too; save one")
        plain[short], origins[short] = value, name
    double = [name for name, value in plain.items() if value.dtype == np.float64]
    if double:
        logging.warning("%s: %d tensors are float64, taken as float32: %s, ...", path, len(double), double[0])
    with np.errstate(over="ignore"):  # what becomes infinite is refused with all that is not finite
        return plain | {name: plain[name].astype(np.float32) for name in double}
