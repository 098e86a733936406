"""Folders as transformers and timm keep models: configs and a weight file."""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deit_jax.base.atomic import replacing
from deit_jax.base.errors import UserError
from deit_jax.base.forms import read_json
from deit_jax.base.storage import Place
from deit_jax.models import Preprocessing, resolve
from deit_jax.weights import files, huggingface, processors, tables
from deit_jax.weights.card import Card, Weights

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# In the order in which transformers looks for them; an index tells of several files.
WEIGHT_FILES = tuple(name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", files.INDEX))
# Arguments of timm's Vision Transformers by ours, and those of any network that change nothing in evaluation.
TIMM_ARGUMENTS = {name: name for name in ("patch_size", "depth", "mlp_ratio", "class_token")}
TIMM_ARGUMENTS |= {"embed_dim": "width", "num_heads": "heads"}
TIMM_INCIDENTAL = r"img_size|(\w+_)?drop_(path_)?rate|(strict|dynamic)_img_size|weight_init|pretrained_\w+"


def read_folder(folder: Path) -> tuple[Path, Card]:
    """The weight file of a folder in Hugging Face's or timm's layout, and what its configs say.

    Raises:
        UserError: no weight file is there, or a config tells of a network that there is none of here.
    """
    config = read_json(folder / CONFIG, dict)
    processor = read_json(folder / PROCESSOR, dict) if (folder / PROCESSOR).is_file() else None
    file = weight_file(folder)
    if file is None:
        raise UserError(
            f"{folder}: has {CONFIG} but none of {', '.join(WEIGHT_FILES)}; fetch one, or name the weight file itself"
        )
    try:
        if "architecture" in config:
            card = timm_card(config, str(folder / CONFIG))
        else:
            card = huggingface.card_of(config, processor, str(folder))
    except UserError:
        raise
    except Exception as error:  # whatever fields of other types make the arithmetic run into
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"{folder / CONFIG}: cannot be understood: {reason}; mend it") from error
    try:
        resolve(card.model, card.arguments)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}; mend it") from error
    if card.preprocessing is None and "architecture" not in config:
        logging.warning("%s: has no %s; images are prepared as for %s", folder, PROCESSOR, card.model)
    return file, card


def weight_file(folder: Path) -> Path | None:
    """The file with a folder's weights, or the index of several."""
    return next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)


def timm_card(config: Mapping[str, Any], where: str) -> Card:
    """The card of a timm config.json; `UserError` where its model is none of those here, or is changed."""
    model = config["architecture"].partition(".")[0]
    try:
        resolved = resolve(model, {})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    # In early repositories the fields of pretrained_cfg stand by themselves.
    own, published = config.get("model_args") or {}, config.get("pretrained_cfg") or config
    arguments = _timm_arguments(config, own, resolved, where)
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
        _timm_labels(config.get("label_names") or published.get("label_names") or published.get("labels") or ()),
        preprocessing,
    )


def _timm_arguments(
    config: Mapping[str, Any], own: Mapping[str, Any], resolved: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """A timm config's arguments of its model by our names, but for the image size.

    Args:
        own: its model_args, which hold all that its `create_model` was told.
        resolved: the arguments that the model has here.
    """
    same = {name: own.get(name, config.get(name)) for name in ("num_classes", "global_pool")}
    arguments = {ours: own[theirs] for theirs, ours in TIMM_ARGUMENTS.items() if theirs in own and ours in resolved}
    arguments |= {name: value for name, value in same.items() if value is not None and name in resolved}
    pools = arguments.get("global_pool") == "avg"
    neutral = {"in_chans": 3, "fc_norm": pools, "global_pool": "avg"}
    others = [
        f"{name}={value!r}"
        for name, value in {**own, **same}.items()
        if value is not None and neutral.get(name) != value
        if TIMM_ARGUMENTS.get(name, name) not in arguments and not re.fullmatch(TIMM_INCIDENTAL, name)
    ]
    if others:
        raise UserError(f"{where}: model_args has {', '.join(sorted(others))}, which cannot be read; take others")
    return arguments


def _timm_labels(labels: Any) -> tuple[str, ...]:
    """Class names from a list, or from names by index; none where indices are left out."""
    if isinstance(labels, str):
        raise TypeError("label_names is a text, no list")
    if not isinstance(labels, Mapping):
        labels = dict(enumerate(labels))
    names = {int(index): str(name) for index, name in labels.items()}
    counted = sorted(names) == list(range(len(names)))
    return huggingface.class_names([names[index] for index in sorted(names)]) if counted else ()


def write_folder(folder: Place, weights: Weights) -> None:
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
