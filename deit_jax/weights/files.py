"""Weight files as dicts of host arrays: safetensors in and out, torch's pickles in."""

import argparse
import codecs
import json
import logging
import operator
import os
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError

Tensors = dict[str, np.ndarray]

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".pth.tar")  # the last is timm's, and no archive
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
# Under which a training script's file keeps the weights: facebook's, timm's.
RAW, AVERAGE = ("model", "state_dict"), ("model_ema", "state_dict_ema")
MAX_HEADER = 100_000_000  # bytes, as the safetensors library has it
DTYPES = ("F64", "F32", "F16", "BF16", "I64")  # I64 for counters, which are no weights but stand beside them
TORCH_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64")
COUNTER = ".num_batches_tracked"  # of batch normalisations, by which torch counts what nothing here reads
_SCALAR, _ARRAY = np.float64().__reduce__()[0], np.zeros(1).__reduce__()[0]
# Plain data that training scripts save beside weights, and where a pickle says that it is from.
HARMLESS = [
    (argparse.Namespace, "argparse.Namespace"),
    (pathlib.PosixPath, "pathlib.PosixPath"),
    (pathlib.PosixPath, "pathlib._local.PosixPath"),
    (codecs.encode, "_codecs.encode"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_ARRAY, "numpy.core.multiarray._reconstruct"),
    (_ARRAY, "numpy._core.multiarray._reconstruct"),
    (np.ndarray, "numpy.ndarray"),
    *((kind, f"{kind.__module__}.{kind.__name__}") for kind in (np.dtype, *map(type, map(np.dtype, "?bBhHiIlLefd")))),
]


def read_tensors(path: Path, *, ema: bool | None = None) -> tuple[Tensors, dict[str, str]]:
    """The tensors of a file by their names in it, counters left out, and its metadata: the texts of a header, or the
    `arch` that timm's training script saves.

    float16, bfloat16 and float32 come as they are stored; float64 as float32, with a warning.

    Args:
        path: `.safetensors`, or `.pth`, `.pt`, `.bin`, `.pth.tar`, which take torch to read.
        ema: True for the moving average beside the weights, as training scripts save it; else the weights.

    Raises:
        UserError: the file is missing, damaged, or would run code when read; or it has no average.
    """
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: its name ends in none of {', '.join(SUFFIXES)}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; name a weight file that is there") from error
    if path.name.endswith(TORCH_SUFFIXES):
        tensors, metadata = _read_torch(path, ema)
        return _plain(tensors, path), metadata
    if ema:
        raise UserError(f"{path}: a safetensors file has one set of weights, no moving average; leave out the choice")
    metadata = _read_header(path)
    try:
        # Not mapped into memory: the pages would be held beside the copies.
        return _plain(safetensors.numpy.load_file(path, backend="pread"), path), metadata
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: is damaged: {error}; fetch it anew") from error


def write_safetensors(path: Path, tensors: Iterable[tuple[str, np.ndarray]], metadata: Mapping[str, str]) -> None:
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


def _read_header(path: Path) -> dict[str, str]:
    """The metadata; `UserError` where the header is none, or names a tensor twice, which the library lets pass."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        room = path.stat().st_size - 8
        if not 2 <= size <= min(room, MAX_HEADER):
            raise UserError(f"{path}: is no safetensors file, or cut off within its header; fetch it anew")
        header = file.read(size)
    try:
        entries = json.loads(header, object_pairs_hook=_unique)
        metadata = entries.pop("__metadata__", {})
        texts = [text for text in metadata.values() if isinstance(text, str)]
        end = max((operator.index(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        others = sorted({entry["dtype"] for entry in entries.values()} - set(DTYPES))
    except _Twice as error:
        raise UserError(f"{path}: its header has {error} twice; write the file anew") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(f"{path}: its header is no safetensors header; fetch it anew") from error
    if len(texts) < len(metadata):
        raise UserError(f"{path}: its header has metadata that is no text; write the file anew")
    if end != room - size:
        raise UserError(
            f"{path}: its header tells of {end:,} bytes of tensors, there are {room - size:,}; fetch it anew"
        )
    if others:
        raise UserError(f"{path}: has tensors of type {', '.join(others)}; write them as float32 first")
    return metadata


class _Twice(Exception):
    """A JSON object has a key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    whole = dict(pairs)
    if len(whole) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Twice(next(key for key in keys if keys.count(key) > 1))
    return whole


def _plain(tensors: Tensors, path: Path) -> Tensors:
    """Without counters; and float64, which nothing here computes in, as float32."""
    tensors = {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}
    double = [name for name, value in tensors.items() if value.dtype == np.float64]
    if double:
        logging.warning("%s: %d tensors are float64, taken as float32: %s, ...", path, len(double), double[0])
    return tensors | {name: tensors[name].astype(np.float32) for name in double}


def _read_torch(path: Path, ema: bool | None) -> tuple[Tensors, dict[str, str]]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: takes torch to read: pip install 'deit_jax[torch]', or use a safetensors file"
        ) from error
    try:
        # torch may warn that checking sparse tensors takes long; they are refused below.
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch has no exception of its own for what it cannot read
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if culprit:
            raise UserError(
                f"{path}: refused: holds {culprit[1]}, which is no plain data and could run code when it is read; "
                f"save the model's state_dict() alone, or take the weights as safetensors"
            ) from error
        # torch speaks in RuntimeErrors; what else a foreign file makes its reader run into says nothing.
        reason = f": {str(error).partition(chr(10))[0]}" if isinstance(error, RuntimeError) else ""
        raise UserError(f"{path}: is damaged or no file of torch's{reason}; fetch it anew") from error
    state = _unwrapped(content, path, ema)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            what = "is no tensor" if isinstance(name, str) else "is no name"
            raise UserError(f"{path}: {name} {what}; save the model's state_dict() alone")
        kind = str(value.dtype).removeprefix("torch.")
        if value.layout is not torch.strided or kind not in TORCH_DTYPES:
            sparse = "" if value.layout is torch.strided else "sparse "
            raise UserError(f"{path}: {name} is of type {sparse}{kind}; save it as plain float32 first")
    arch = content.get("arch")
    metadata = {"arch": arch} if state is not content and isinstance(arch, str) else {}
    return {name: _to_numpy(value) for name, value in _unprefixed(state, path).items()}, metadata


def _unwrapped(content: Any, path: Path, ema: bool | None) -> dict[Any, Any]:
    """The state dict in what a training script saved."""
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds {type(content).__name__}, no state dict; save the model's state_dict()")
    for key in AVERAGE if ema else RAW:
        if isinstance(content.get(key), dict):
            return content[key]
    if ema:
        raise UserError(f"{path}: has no moving average ({' or '.join(AVERAGE)}); take the raw weights")
    return content


def _unprefixed(state: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Without what torch's data parallelism (`module.`) and compiler (`_orig_mod.`) put in front."""
    plain: dict[str, str] = {}
    for name in state:
        first = plain.setdefault(re.sub(r"^((module|_orig_mod)\.)+", "", name), name)
        if first != name:
            raise UserError(f"{path}: a tensor is duplicated: {first} is there as {name} too; save one of them")
    return {short: state[name] for short, name in plain.items()}


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # numpy has none of its own
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
