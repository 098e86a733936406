"""Hugging Face transformers' configs as our cards, and back: config.json and preprocessor_config.json."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from deit_jax.errors import UserError
from deit_jax.models import Preprocessing, VisionTransformer, entry, list_models
from deit_jax.weights import tables
from deit_jax.weights.card import Card, Weights
from deit_jax.weights.imagenet import WNIDS, words

MODEL_TYPES = {name: "vit" if name.startswith("ViT") else "deit" for name in tables.HUGGING_FACE}

# transformers' ViTConfig and DeiTConfig, which files may leave out. None: any value will do.
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
}
FIXED = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}


def card_of(config: Mapping[str, Any], processor: Mapping[str, Any] | None, where: str) -> Card:
    """The card of a transformers config.

    Args:
        config, processor: contents of config.json and preprocessor_config.json.
        where: the folder, for error messages.

    Raises:
        UserError: a field asks for what the networks here cannot do.
    """
    architecture = _architecture(config, where)
    for field, value in FIXED.items():
        if config.get(field, value) != value:
            raise UserError(
                f"{where}/config.json: {field} is {config[field]!r}, only {value!r} can be read; take others"
            )
    fields = {**DEFAULTS, **config}
    width = fields["hidden_size"]
    arguments = {
        "image_size": image_size_of(fields["image_size"]),
        "patch_size": _patch_size(fields["patch_size"], where),
        "width": width,
        "depth": fields["num_hidden_layers"],
        "heads": fields["num_attention_heads"],
        "mlp_ratio": _mlp_ratio(fields["intermediate_size"], width),
        "distilled": architecture.startswith("DeiT"),
        "dist_head": architecture != "DeiTForImageClassification",
        "norm_eps": fields["layer_norm_eps"],
    }
    labels = _labels(config, where)
    if labels is not None:
        arguments["num_classes"] = len(labels)
    preprocessing = None if processor is None else _preprocessing(processor, where)
    vit_first = preprocessing is not None and preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5)
    model, overrides = nearest_model(arguments, vit_first=vit_first)
    return Card(model, overrides, _class_names(labels or []), preprocessing)


def resolve(card: Card) -> dict[str, Any]:
    """All arguments of a card's model: its overrides, the registry's, the module's defaults."""
    known = entry(card.model)
    parameters = inspect.signature(known.build.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    return {**defaults, **known.arguments, **card.arguments}


def nearest_model(arguments: Mapping[str, Any], *, vit_first: bool) -> tuple[str, dict[str, Any]]:
    """The model of the registry that takes the fewest overrides to have these arguments, and the overrides.

    Of ViT and DeiT, which are alike in what the arguments leave open; among equals DeiT, or ViT if `vit_first`.
    """
    overrides = {}
    for name in list_models():
        resolved = resolve(Card(name)) if name.startswith(("deit_", "vit_")) else {}
        if resolved.get("distilled") == arguments["distilled"]:
            overrides[name] = {key: value for key, value in arguments.items() if resolved[key] != value}
    # A size that is nobody's is best told from the base model's.
    best = min(overrides, key=lambda n: (len(overrides[n]), n.startswith("vit") != vit_first, "base" not in n))
    return best, overrides[best]


def architecture_of(card: Card) -> str:
    """transformers' class for a network; `UserError` where it has none."""
    if entry(card.model).build is not VisionTransformer:
        raise UserError(f"{card.model}: is no Vision Transformer; write a .safetensors file, which timm reads")
    arguments = resolve(card)
    lacking = {
        "layer scale": arguments["layer_scale"] > 0,
        "patch positions alone": not arguments["class_position"],
        'global_pool="avg"': arguments["global_pool"] != "token",
        "pre_logits": bool(arguments["pre_logits"]),
        "no class token": not arguments["class_token"],
        "no classes": arguments["num_classes"] == 0,
    }
    named = [what for what, lacks in lacking.items() if lacks]
    if named:
        raise UserError(
            f"{card.model}: transformers has no class for a model with {' and '.join(named)}; "
            f"write a .safetensors file, which timm reads"
        )
    if not arguments["distilled"]:
        return "ViTForImageClassification"
    return "DeiTForImageClassificationWithTeacher" if arguments["dist_head"] else "DeiTForImageClassification"


def config_of(weights: Weights, architecture: str) -> dict[str, Any]:
    """The content of config.json for weights whose card names their model."""
    arguments = resolve(weights.card)
    size, classes = arguments["image_size"], arguments["num_classes"]
    names = weights.card.class_names or tuple(f"LABEL_{i}" for i in range(classes))
    names = tuple(map(words, names))
    return {
        "architectures": [architecture],
        "model_type": MODEL_TYPES[architecture],
        "hidden_size": arguments["width"],
        "num_hidden_layers": arguments["depth"],
        "num_attention_heads": arguments["heads"],
        "intermediate_size": int(arguments["width"] * arguments["mlp_ratio"]),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": arguments["norm_eps"],
        "image_size": size if isinstance(size, int) else list(size),
        "patch_size": arguments["patch_size"],
        "num_channels": 3,
        "qkv_bias": True,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "torch_dtype": str(np.dtype(weights.variables["norm.scale"].dtype)),
    }


def processor_of(card: Card) -> dict[str, Any]:
    """What transformers' `DeiTImageProcessor` has to do to prepare images as the evaluation here does."""
    preprocessing = card.preprocessing or entry(card.model).preprocessing
    size = resolve(card)["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "image_processor_type": "DeiTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(max(height, width) / preprocessing.crop_ratio)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _preprocessing(processor: Mapping[str, Any], where: str) -> Preprocessing:
    try:
        content = {"mean": processor["image_mean"], "std": processor["image_std"], "crop_ratio": 1.0}
        if processor.get("do_center_crop"):
            resized, crop = _largest(processor["size"]), _largest(processor["crop_size"])
            content["crop_ratio"] = _crop_ratio(crop, resized)
        return Preprocessing.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where}/preprocessor_config.json: {error} is missing or not understood; mend or remove the file"
        ) from error


def _largest(size: int | Mapping[str, int]) -> int:
    return size if isinstance(size, int) else max(size.values())


def _crop_ratio(crop: int, resized: int) -> float:
    """The ratio by which `int(crop / ratio)` is `resized`."""
    ratio = crop / resized
    return ratio if int(crop / ratio) == resized else math.nextafter(ratio, 0)


def _mlp_ratio(hidden: int, width: int) -> float:
    """The ratio by which `int(width * ratio)` is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _architecture(config: Mapping[str, Any], where: str) -> str:
    """The one of transformers' classes that the weights are of."""
    named = config.get("architectures") or []
    known = [name for name in named if MODEL_TYPES.get(name) == config.get("model_type")]
    if not known:
        raise UserError(
            f"{where}/config.json: model_type {config.get('model_type')!r} with architectures {named} cannot be read; "
            f"take weights of {', '.join(MODEL_TYPES)}"
        )
    return known[0]


def image_size_of(size: int | list[int]) -> int | tuple[int, int]:
    if isinstance(size, int):
        return size
    height, width = size
    return height if height == width else (height, width)


def _patch_size(size: int | list[int], where: str) -> int:
    patch = image_size_of(size)
    if not isinstance(patch, int):
        raise UserError(f"{where}/config.json: patch_size {size} is not square; take weights with square patches")
    return patch


def _labels(config: Mapping[str, Any], where: str) -> list[str] | None:
    """The class names in the order of the logits, None where the config has none."""
    if "id2label" not in config:
        return None
    labels = {int(i): str(name) for i, name in config["id2label"].items()}
    if sorted(labels) != list(range(len(labels))):
        raise UserError(f"{where}/config.json: id2label does not count from 0 to {len(labels) - 1}; mend the file")
    return [labels[i] for i in range(len(labels))]


def _class_names(labels: list[str]) -> tuple[str, ...]:
    """() for labels that say nothing; the identifiers of ImageNet for the names that `write_folder` gives them."""
    if labels == [f"LABEL_{i}" for i in range(len(labels))]:
        return ()
    return WNIDS if labels == [words(name) for name in WNIDS] else tuple(labels)
