"""Folders as transformers and timm keep models: configs and a weight file."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deit_jax.atomic import replacing
from deit_jax.errors import UserError
from deit_jax.models import Preprocessing, entry, resolve
from deit_jax.weights import files, huggingface, processors, tables
from deit_jax.weights.card import Card, Weights

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def read_folder(folder: Path) -> tuple[Path, Card]:
    """The weight file of a folder in Hugging Face's or timm's layout, and what its configs say.

    Raises:
        UserError: no weight file is there, or a config tells of a network that there is none of here.
    """
    config = _read_json(folder / CONFIG)
    processor = _read_json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else None
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: has {CONFIG} but none of {', '.join(WEIGHT_FILES)}; name the weight file itself")
    try:
        if "architecture" in config:
            return file, timm_card(config, str(folder / CONFIG))
        card = huggingface.card_of(config, processor, str(folder))
    except UserError:
        raise
    except Exception as error:  # whatever fields of other types make the arithmetic run into
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{folder / CONFIG}: cannot be understood: {reason}; mend it") from error
    if card.preprocessing is None:
        logging.warning("%s: has no %s; images are prepared as for %s", folder, PROCESSOR, card.model)
    return file, card


def timm_card(config: Mapping[str, Any], where: str) -> Card:
    """The card of a timm config.json; `UserError` where its model is none of those here, or is changed."""
    model = config["architecture"].partition(".")[0]
    entry(model)
    own, published = config.get("model_args") or {}, config.get("pretrained_cfg") or {}
    changed = set(own) - {"img_size", "num_classes", "global_pool"}
    if changed:
        raise UserError(
            f"{where}: model_args has {', '.join(sorted(changed))}, which cannot be read; take plain {model}"
        )
    resolved = resolve(model, {})
    arguments = {name: {**config, **own}[name] for name in ("num_classes", "global_pool") if name in {**config, **own}}
    size = own.get("img_size") or published.get("input_size", [])[1:]
    if size:
        arguments["image_size"] = huggingface.image_size_of(size)
    known = {"mean", "std", "crop_pct"} <= published.keys()
    preprocessing = Preprocessing.from_json({**published, "crop_ratio": published["crop_pct"]}) if known else None
    if preprocessing:
        interpolation, mode = published.get("interpolation", "bicubic"), published.get("crop_mode", "center")
        otherwise = [f"by the {interpolation} filter"] if interpolation != "bicubic" else []
        otherwise += [f"in crop mode {mode!r}"] if mode != "center" else []
        processors.warn_of_resizing(where, otherwise, preprocessing.crop_ratio)
    return Card(
        model,
        {name: value for name, value in arguments.items() if resolved.get(name, value) != value},
        tuple(config.get("label_names") or ()),
        preprocessing,
    )


def write_folder(folder: Path, weights: Weights) -> None:
    """Writes a folder that transformers' `from_pretrained` reads, whole or not at all.

    Args:
        folder: must not exist, or be empty.
        weights: with a card that names the model.

    Raises:
        UserError: transformers has no class for this network.
        OSError: the folder cannot be written.
    """
    architecture = huggingface.architecture_of(weights.card)
    config = huggingface.config_of(weights, architecture)
    with replacing(folder) as fresh:
        fresh.mkdir()
        (fresh / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (fresh / PROCESSOR).write_text(json.dumps(processors.processor_of(weights.card), indent=2) + "\n")
        tensors = tables.scatter(weights.variables, tables.HUGGING_FACE[architecture])
        files.write_safetensors(fresh / WEIGHT_FILES[0], tensors, {})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}; fetch it anew") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no JSON object; fetch it anew")
    return content
