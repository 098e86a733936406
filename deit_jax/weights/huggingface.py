"""Hugging Face transformers' config.json as our cards, and back."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deit_jax.base.errors import UserError
from deit_jax.models import VisionTransformer, entry, list_models, resolve
from deit_jax.models.resnet import EXPANSION
from deit_jax.weights import tables
from deit_jax.weights.card import SINGLE_LABEL, Card, Weights
from deit_jax.weights.imagenet import WNIDS, words
from deit_jax.weights.processors import preprocessing_of, processor_of

KEY = "deit_jax"  # of the whole card in config.json, which transformers leaves alone
MODEL_TYPES = {name: name.partition("For")[0].lower() for name in tables.HUGGING_FACE}

# transformers' configs of each type, which files may leave out.
_TRANSFORMER: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": _TRANSFORMER,
    "deit": _TRANSFORMER,
    "regnet": {
        "embedding_size": 32,
        "hidden_sizes": (128, 192, 512, 1088),
        "depths": (2, 6, 12, 2),
        "groups_width": 64,
    },
    "resnet": {"embedding_size": 64, "hidden_sizes": (256, 512, 1024, 2048), "depths": (3, 4, 6, 3)},
}
# What alone can be read; a file may leave these out too.
_FIXED: dict[str, Any] = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3}
_FIXED_CNN: dict[str, Any] = {"hidden_act": "relu", "num_channels": 3}
FIXED: dict[str, dict[str, Any]] = {
    "vit": _FIXED,
    "deit": _FIXED,
    "regnet": _FIXED_CNN | {"layer_type": "y", "downsample_in_first_stage": True},
    "resnet": _FIXED_CNN
    | {"layer_type": "bottleneck", "downsample_in_first_stage": False, "downsample_in_bottleneck": False},
}
SAME_LABELS = 0.95  # of ImageNet's, from which on they are these


def card_of(config: Mapping[str, Any], processor: Mapping[str, Any] | None, where: str) -> Card:
    """The card of a transformers config.

    The card that `config_of` puts into it is taken where both files still say the same, so that nothing is lost on
    the way; else what they say.

    Args:
        config, processor: contents of config.json and preprocessor_config.json.
        where: the folder, for error messages.

    Raises:
        UserError: a field asks for what the networks here cannot do.
    """
    if KEY in config:
        try:
            own = Card.from_json(config[KEY])
            if _says(config, own, processor):
                return own
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{where}/config.json: {KEY} cannot be read: {error}; remove it from the file") from error
    architecture = _architecture(config, where)
    kind = MODEL_TYPES[architecture]
    for field, value in FIXED[kind].items():
        if config.get(field, value) != value:
            raise UserError(
                f"{where}/config.json: {field} is {config[field]!r}, only {value!r} can be read; take others"
            )
    fields = {**DEFAULTS[kind], **config}
    preprocessing = None if processor is None else preprocessing_of(processor, where)
    if kind in ("regnet", "resnet"):
        arguments, family = _convolutional(fields, kind), [kind]
    else:
        arguments, family = _transformer(fields, architecture, where), ["deit_", "vit_"]
        # Alike in all that the config says. As every file of ViT has it, and none of DeiT:
        if preprocessing is not None and preprocessing.mean == preprocessing.std == (0.5, 0.5, 0.5):
            family = ["vit_", "deit_"]
    labels = _labels(config, where)
    if labels is not None:
        arguments["num_classes"] = len(labels)
    model, overrides = nearest_model(arguments, family)
    return Card(model, overrides, class_names(labels or []), preprocessing, _problem_type(config))


def _says(config: Mapping[str, Any], card: Card, processor: Mapping[str, Any] | None) -> bool:
    """Whether the files say of the weights what they say when they are written for this card."""
    architecture = architecture_of(card)
    kind, written = MODEL_TYPES[architecture], _fields(card, architecture)
    # transformers leaves out what is its default.
    compared = {**DEFAULTS[kind], **FIXED[kind], "architectures": None, "model_type": None, "id2label": None}
    images = processor_of(card)
    return (
        _problem_type(config) == card.problem_type
        and all(config.get(field, default) == written[field] for field, default in compared.items())
        and all(value == images[field] for field, value in (processor or {}).items() if field in images)
    )


def _transformer(fields: Mapping[str, Any], architecture: str, where: str) -> dict[str, Any]:
    width = fields["hidden_size"]
    return {
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


def _convolutional(fields: Mapping[str, Any], kind: str) -> dict[str, Any]:
    widths, shared = fields["hidden_sizes"], {"depths": tuple(fields["depths"]), "stem_width": fields["embedding_size"]}
    if kind == "regnet":
        return shared | {"widths": tuple(widths), "group_width": fields["groups_width"]}
    return shared | {"widths": tuple(width // EXPANSION for width in widths)}


def nearest_model(arguments: Mapping[str, Any], family: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The model of the registry that takes the fewest overrides to have these arguments, and the overrides.

    Args:
        family: beginnings of the names that come into question; of equals the first.
    """
    overrides = {}
    for name in list_models():
        resolved = resolve(name, {}) if name.startswith(tuple(family)) else {}
        if resolved and resolved.get("distilled") == arguments.get("distilled"):
            overrides[name] = {key: value for key, value in arguments.items() if resolved[key] != value}
    # A size that is nobody's is best told from the base model's.
    best = min(overrides, key=lambda n: (len(overrides[n]), not n.startswith(family[0]), "base" not in n))
    return best, overrides[best]


def architecture_of(card: Card) -> str:
    """transformers' class for a network; `UserError` where it has none."""
    if entry(card.model).build is not VisionTransformer:
        raise UserError(f"{card.model}: is no Vision Transformer; write a .safetensors file, which timm reads")
    arguments = resolve(card.model, card.arguments)
    lacking = {
        "layer scale": arguments["layer_scale"] > 0,
        "patch positions alone": not arguments["class_position"],
        'global_pool="avg"': arguments["global_pool"] != "token",
        "pre_logits": bool(arguments["pre_logits"]),
        "no class token": not arguments["class_token"],
        "fixed positions": arguments["positions"] != "learned",
        "no classes": arguments["num_classes"] == 0,
    }
    named = [what for what, lacks in lacking.items() if lacks]
    if named:
        raise UserError(
            f"{card.model}: transformers has no class for a model with {' and '.join(named)}; write a .safetensors file"
        )
    if not arguments["distilled"]:
        return "ViTForImageClassification"
    return "DeiTForImageClassificationWithTeacher" if arguments["dist_head"] else "DeiTForImageClassification"


def config_of(weights: Weights, architecture: str) -> dict[str, Any]:
    """The content of config.json for weights whose card names their model; the card is in it for `card_of`."""
    dtype = str(np.dtype(weights.variables["norm.scale"].dtype))
    return {**_fields(weights.card, architecture), "torch_dtype": dtype, KEY: weights.card.to_json()}


def _fields(card: Card, architecture: str) -> dict[str, Any]:
    """What config.json says of the network and its classes."""
    arguments = resolve(card.model, card.arguments)
    size, classes = arguments["image_size"], arguments["num_classes"]
    names = [words(name) for name in card.class_names] or [f"LABEL_{i}" for i in range(classes)]
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
        "problem_type": card.problem_type or None,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


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


def _problem_type(config: Mapping[str, Any]) -> str:
    """Of a card: "" also for what training with transformers writes of classifiers."""
    kind = config.get("problem_type")
    return "" if kind in (None, SINGLE_LABEL) else str(kind)


def _labels(config: Mapping[str, Any], where: str) -> list[str] | None:
    """The class names in the order of the logits, None where the config has none."""
    if "id2label" not in config:
        return None
    labels = {int(i): str(name) for i, name in config["id2label"].items()}
    if sorted(labels) != list(range(len(labels))):
        raise UserError(f"{where}/config.json: id2label does not count from 0 to {len(labels) - 1}; mend the file")
    return [labels[i] for i in range(len(labels))]


def class_names(labels: list[str]) -> tuple[str, ...]:
    """() for labels that say nothing; ImageNet's identifiers for its names in their order.

    Published files have all synonyms ("tench, Tinca tinca"), in slightly different editions; the first is compared.
    """
    if labels == [f"LABEL_{i}" for i in range(len(labels))]:
        return ()
    if len(labels) == len(WNIDS):
        pairs = zip(labels, map(words, WNIDS), strict=True)
        if sum(_first(label) == _first(name) for label, name in pairs) >= SAME_LABELS * len(WNIDS):
            return WNIDS
    return tuple(labels)


def _first(label: str) -> str:
    """ "crane" of "crane (bird)" and of "Crane, heron"."""
    return re.split(r",| \(", label)[0].strip().lower()
