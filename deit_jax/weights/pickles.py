"""torch's pickles as dicts of host arrays: plain data alone, whatever a training script has put around the weights."""

import argparse
import codecs
import logging
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from deit_jax.base.errors import UserError

# Under which training scripts keep the weights, and their moving average: those of facebook, timm, torch's tutorials,
# Lightning, torchvision and others.
RAW = ("model", "state_dict", "model_state_dict", "net", "params")
AVERAGE = ("model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "params_ema", "ema")
FLOATING = ("float64", "float32", "float16", "bfloat16")
WHOLE = ("int64", "int32", "int16", "int8", "uint8", "bool")  # counters, which are no weights but stand beside them
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


def read_pickle(path: Path, *, ema: bool | None = None) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a file by their names in it, and the `arch` that timm's training script saves.

    Arguments and errors as of `deit_jax.weights.files.read_tensors`.
    """
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
    state = _state_dict(content, path, ema)
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            what = "is no tensor" if isinstance(name, str) else "is no name"
            raise UserError(f"{path}: {name} {what}; save the model's state_dict() alone")
        kind = str(value.dtype).removeprefix("torch.")
        if value.is_meta:
            raise UserError(f"{path}: {name} is on the device meta, without its numbers; save the weights themselves")
        if value.layout is not torch.strided or kind not in FLOATING + WHOLE:
            sparse = "" if value.layout is torch.strided else "sparse "
            raise UserError(f"{path}: {name} is of type {sparse}{kind}; save it as plain float32 first")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} repeats what is stored once; save it as {name}.contiguous()")
    arch = content.get("arch")
    metadata = {"arch": arch} if state is not content and isinstance(arch, str) else {}
    return {name: _to_numpy(value) for name, value in state.items()}, metadata


def _state_dict(content: Any, path: Path, ema: bool | None) -> Mapping[Any, Any]:
    """The state dict in what a training script saved."""
    import torch

    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: holds {type(content).__name__}, no state dict; save the model's state_dict()")
    sets = {
        key: value
        for key, value in content.items()
        if isinstance(value, dict) and any(isinstance(tensor, torch.Tensor) for tensor in value.values())
    }
    averages = [key for key in AVERAGE if key in sets]
    if ema and not averages:
        raise UserError(f"{path}: has no moving average ({', '.join(AVERAGE[:-1])} or {AVERAGE[-1]}); take the weights")
    raw = [key for key in RAW if key in sets] or [key for key in sets if key not in averages]
    if ema is None and averages and not raw:
        logging.warning("%s: has no weights but the moving average (%s), which is taken", path, averages[0])
    elif not ema and not raw and averages:
        raise UserError(f"{path}: has the moving average ({averages[0]}) alone, no raw weights; leave out the choice")
    elif not ema and len(raw) > 1 and raw[0] not in RAW:
        raise UserError(
            f"{path}: has weights of several kinds, {', '.join(map(str, raw))}; save one state_dict() alone"
        )
    chosen = averages if ema or not raw else raw
    return sets[chosen[0]] if chosen else content


def _to_numpy(tensor: Any) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # numpy has none of its own
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
