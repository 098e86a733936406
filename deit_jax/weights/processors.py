"""Hugging Face transformers' preprocessor_config.json as our preprocessing, and back."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from deit_jax.base.errors import UserError
from deit_jax.models import Preprocessing, entry, resolve
from deit_jax.weights.card import Card

# Pillow's numbers, which the configs use. 3 is what everything here is resized by.
FILTERS = {0: "nearest", 1: "Lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "Hamming"}
BILINEAR, BICUBIC = 2, 3


def preprocessing_of(processor: Mapping[str, Any], where: str) -> Preprocessing:
    """What a processor does to images; what cannot be done here just so is told as a warning.

    Resizing is bicubic here and keeps the proportions: a processor that squashes photos into a square becomes one that
    cuts out the whole short side.

    Args:
        processor: content of preprocessor_config.json.
        where: the folder, for messages.

    Raises:
        UserError: a field is missing, not understood, or asks for what cannot be done here.
    """
    file = f"{where}/preprocessor_config.json"
    try:
        factor = processor.get("rescale_factor", 1 / 255)
        if not processor.get("do_rescale", True) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
            raise UserError(f"{file}: pixels are scaled by 1/255 here; remove the file if the weights go without")
        normalize = processor.get("do_normalize", True)
        mean, std = (processor["image_mean"], processor["image_std"]) if normalize else ((0,) * 3, (1,) * 3)
        crop_ratio, otherwise = _crop(processor)
        preprocessing = Preprocessing.from_json({"mean": mean, "std": std, "crop_ratio": crop_ratio})
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UserError(f"{file}: cannot be understood: {reason}; mend or remove the file") from error
    kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type"))
    resample = processor.get("resample", BILINEAR if kind.startswith("ViT") else BICUBIC)  # by the class's default
    if resample != BICUBIC:
        otherwise = [f"by the {FILTERS.get(resample, resample)} filter", *otherwise]
    warn_of_resizing(file, otherwise, crop_ratio)
    if _is_deits(processor):
        logging.warning(
            "%s: images keep their proportions here, as DeiT's authors have it; by this file transformers resizes them "
            "to a square of %d pixels, so that its answers may be others",
            *(file, processor["size"]),
        )
    return preprocessing


def warn_of_resizing(where: str, otherwise: Sequence[str], crop_ratio: float) -> None:
    """Tells how the weights in `where` were shown their images `otherwise` than images are prepared here, if they were.

    Args:
        otherwise: in words, after "resizes images".
    """
    if otherwise:
        logging.warning(
            "%s: the original resizes images %s; here they are resized by the bicubic filter in their own proportions, "
            "and the centre is cut out (crop ratio %s)",
            *(where, " and ".join(otherwise), crop_ratio),
        )


def processor_of(card: Card) -> dict[str, Any]:
    """What transformers' `DeiTImageProcessor` has to do to prepare images as the evaluation here does."""
    preprocessing = card.preprocessing or entry(card.model).preprocessing
    size = resolve(card.model, card.arguments)["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "image_processor_type": "DeiTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(max(height, width) / preprocessing.crop_ratio)},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _crop(processor: Mapping[str, Any]) -> tuple[float, list[str]]:
    """The crop ratio, and in words what resizing is otherwise."""
    if not processor.get("do_resize", True):
        return 1.0, ["not at all"]
    size = processor["size"]
    # ConvNextImageProcessor's, for the convolutional networks: it squashes from 384 pixels on.
    crop_pct = processor.get("crop_pct")
    if crop_pct and _largest(size) < 384:
        return crop_pct, []
    in_proportion = isinstance(size, Mapping) and "shortest_edge" in size and not crop_pct
    if processor.get("do_center_crop"):
        otherwise = [] if in_proportion or _is_deits(processor) else ["to a square"]
        return crop_ratio(_largest(processor["crop_size"]), _largest(size)), otherwise
    return 1.0, [] if in_proportion else ["to a square"]


def _is_deits(processor: Mapping[str, Any]) -> bool:
    """Whether a number alone is what is cut from, as in DeiT's files: its authors keep the proportions, which
    transformers, by the same file, does not."""
    whole = isinstance(processor.get("size"), int) and not processor.get("crop_pct")
    return whole and bool(processor.get("do_resize", True) and processor.get("do_center_crop"))


def _largest(size: int | Mapping[str, int]) -> int:
    return size if isinstance(size, int) else max(size.values())


def crop_ratio(crop: int, resized: int) -> float:
    """The ratio by which `int(crop / ratio)` is `resized`."""
    ratio = crop / resized
    return ratio if int(crop / ratio) == resized else math.nextafter(ratio, 0)
