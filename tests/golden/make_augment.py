"""Writes augment.npz: what timm 1.0.31 draws for images and makes of them.

    python tests/golden/make_augment.py

Keys: `image/NAME`, uint8 pictures; `operation/IMAGE/NAME/ARGUMENT/INTERPOLATION`, one operation of timm's on one of
them; `view/NUMBER`, JSON of what a whole transform drew for a picture, and `pixels/NUMBER`, uint8 [SIZE, SIZE, 3], what
it made of it; `drawn/SPEC` JSON of the operations drawn for many images, each a list of (name, argument);
`policy/NAME` JSON of AutoAugment's pairs of (name, probability, level).

Zero bits of Posterize are black, as up to Pillow 12; Pillow 13 refuses them. Made with timm 1.0.31, torchvision 0.29.1,
Pillow 13.0.0 and NumPy 2.4.6.
"""

import contextlib
import functools
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import auto_augment, create_transform
from torchvision import transforms
from torchvision.transforms import functional

SIZE = 32
FILL = (124, 116, 104)
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
WARPS = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
ARGUMENTS = {
    "AutoContrast": [None],
    "Equalize": [None],
    "Invert": [None],
    "Rotate": [-27.0, 3.7, 30.0],
    "Posterize": [0, 1, 2, 4, 7, 8],
    "Solarize": [0, 26, 128, 256],
    "SolarizeAdd": [0, 99, 128],
    **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), (0.1, 0.19, 1.0, 1.81)),
    **dict.fromkeys(("ShearX", "ShearY"), (-0.27, 0.1, 0.3)),
    **dict.fromkeys(("TranslateXRel", "TranslateYRel"), (-0.405, 0.1, 0.45)),
    "Desaturate": [None],
    "GaussianBlur": [0.1, 0.3, 1.0, 2.0],
}
# Augmentation, interpolation, colour jitter.
WHOLE = [
    ("rand-m9-mstd0.5-inc1", "bicubic", None),
    ("rand-m9-mstd0.5-inc1", "random", None),
    ("rand-m7-n4-p0.8-mstd101", "bilinear", None),
    ("3a", "bicubic", 0.3),
    ("original", "random", None),
    ("v0-mstd1", "bicubic", None),
    (None, "bilinear", 0.4),
]
DRAWN = {"rand-m9-mstd0.5-inc1": 10_000, "rand-m5-n3-p0.3-mstd101": 3000, "original-mstd0.5": 3000, "v0": 3000}
DRAWN |= {"3a": 3000, "rand-m14-mmax12-mstd2": 3000}


def draw(height: int, width: int, seed: int) -> np.ndarray:
    """Waves with edges and a little noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    frequency, phase = generator.uniform(0.05, 0.9, (2, 3)), generator.uniform(0, 6, 3)
    waves = np.sin(x[..., None] * frequency[0] + phase) * np.cos(y[..., None] * frequency[1] - phase)
    pixels = 127 + 90 * waves + 60 * ((x // 7 + y // 5) % 2)[..., None] + generator.normal(0, 2, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def extremes(height: int, width: int) -> np.ndarray:
    """A horizontal gradient, a channel of one level, one of two; black and white corners."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.linspace(0, 255, width)
    image[..., 1] = 77
    image[..., 2] = np.where(np.arange(height)[:, None] % 5 < 2, 200, 3)
    image[:7, :5], image[-6:, -8:] = 255, 0
    return image


PILLOW_POSTERIZE, PILLOW_BLUR = ImageOps.posterize, ImageFilter.GaussianBlur


def posterize(image: Image.Image, bits: int) -> Image.Image:
    return PILLOW_POSTERIZE(image, bits) if bits > 0 else Image.new("RGB", image.size)


class Recorder:
    """What transforms of timm's and torchvision's draw for one image, filled in while they are called."""

    def __init__(self, *steps: Any, carry_out: bool = True):
        self.view: dict[str, Any] = {"box": None, "flip": False, "interpolation": "bicubic", "operations": []}
        self._carry_out = carry_out
        for step in steps:
            for group in getattr(step, "policy", [getattr(step, "ops", [])]):
                for op in group:
                    op.aug_fn = functools.partial(self._operate, op.name)

    def _operate(self, name: str, image: Image.Image, *args: Any, fillcolor: Any, resample: Any) -> Image.Image:
        resample = random.choice(resample) if isinstance(resample, tuple) else resample
        ours = name.replace("Increasing", "").replace("Original", "").replace("BlurRand", "Blur")
        if ours != "GaussianBlur":  # which draws the radius itself
            value = args[0] if args and ours != "Desaturate" else None
            self._note(ours, value, resample.name.lower() if ours in WARPS else "")
        if not self._carry_out and ours != "GaussianBlur":
            return image
        return auto_augment.NAME_TO_OP[name](image, *args, fillcolor=fillcolor, resample=resample)

    def _note(self, name: str, value: float | None, interpolation: str = "") -> None:
        self.view["operations"].append((name, value, interpolation))

    def _crop(self, top: int, left: int, height: int, width: int, *resize: Any) -> None:
        self.view["box"] = top, left, height, width
        if resize:
            self.view["interpolation"] = resize[1].value

    def _blur(self, radius: float) -> ImageFilter.GaussianBlur:
        self._note("GaussianBlur", radius)
        return PILLOW_BLUR(radius)

    @contextlib.contextmanager
    def listening(self) -> Iterator[dict[str, Any]]:
        told: dict[str, Callable[..., None]] = {
            "resized_crop": self._crop,
            "crop": self._crop,
            "hflip": lambda: self.view.update(flip=True),
            "adjust_brightness": lambda factor: self._note("Brightness", factor),
            "adjust_contrast": lambda factor: self._note("Contrast", factor),
            "adjust_saturation": lambda factor: self._note("Color", factor),
        }
        with contextlib.ExitStack() as stack:
            for name, note in told.items():
                function = functools.partial(_noted, getattr(functional, name), note)
                stack.enter_context(mock.patch.object(functional, name, function))
            stack.enter_context(mock.patch.object(ImageFilter, "GaussianBlur", self._blur))
            stack.enter_context(mock.patch.object(ImageOps, "posterize", posterize))
            yield self.view


def _noted(function: Callable, note: Callable[..., None], image: Image.Image, *args: Any, **options: Any) -> Any:
    note(*args)
    return function(image, *args, **options)


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def whole(image: np.ndarray, transform: transforms.Compose) -> tuple[dict[str, Any], np.ndarray]:
    """What a transform draws for a picture and makes of it, uint8 [SIZE, SIZE, 3]."""
    with Recorder(*transform.transforms).listening() as view:
        made = np.asarray(transform(Image.fromarray(image)))
    return view, made.transpose(1, 2, 0) if len(made) == 3 else made  # timm's are channels first


def timms(augment: str | None, interpolation: str, jitter: float | None, size: int = SIZE) -> transforms.Compose:
    return create_transform(
        size,
        is_training=True,
        use_prefetcher=True,  # uint8 at the end
        auto_augment=augment,
        interpolation=interpolation,
        color_jitter=jitter,
        re_prob=0.0,
    )


def torchvisions(crop: str, size: int = SIZE) -> transforms.Compose:
    """facebook's simple random crop of DeiT-III, or with black the one usual for CIFAR."""
    mode = {"simple": "reflect", "pad": "constant"}[crop]
    return transforms.Compose(
        [
            transforms.Resize(size, interpolation=functional.InterpolationMode.BICUBIC),
            transforms.RandomCrop(size, padding=4, padding_mode=mode),
            transforms.RandomHorizontalFlip(),
        ]
    )


def policy(spec: str) -> Any:
    """timm's RandAugment or AutoAugment at bicubic interpolation."""
    settings = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    kind = auto_augment.rand_augment_transform if spec.startswith("rand") else auto_augment.auto_augment_transform
    return kind(spec, settings)


def entries(spec: str) -> list[list[tuple[str, float, float]]]:
    """The name, probability and level of each operation of an AutoAugment policy."""
    pairs = policy(spec).policy
    return [[(op.name.replace("Original", ""), op.prob, op.magnitude) for op in pair] for pair in pairs]


def drawn(spec: str, count: int) -> list[list[tuple[str, float | None]]]:
    """The operations that timm's policy draws for so many images."""
    made, image, found = policy(spec), Image.new("RGB", (8, 8)), []
    for _ in range(count):
        with Recorder(made, carry_out=False).listening() as view:
            made(image)
        found.append([(name, round(value, 6) if value else value) for name, value, _ in view["operations"]])
    return found


def operations(image: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each operation of timm's on a picture, by name, argument and interpolation."""
    for name, values in ARGUMENTS.items():
        for value in values:
            for word in INTERPOLATIONS if name in WARPS else [""]:
                options = {"fillcolor": FILL, "resample": INTERPOLATIONS.get(word)}
                given = [1.0] if name == "Desaturate" else [value] * (value is not None)
                with mock.patch.object(ImageOps, "posterize", posterize):
                    made = auto_augment.NAME_TO_OP[name](Image.fromarray(image), *given, **options)
                yield f"{name}/{'' if value is None else value}/{word}", np.asarray(made)


def main() -> None:
    photo = (0.8 * draw(23, 26, 0) + 8).astype(np.uint8)  # of low contrast, which AutoContrast changes
    arrays = {"image/photo": photo, "image/extremes": extremes(21, 24)}
    for image in ("photo", "extremes"):
        for name, made in operations(arrays[f"image/{image}"]):
            arrays[f"operation/{image}/{name}"] = made
    shapes = {"landscape": (47, 71), "portrait": (83, 52), "square": (32, 32), "thin": (9, 40)}
    arrays |= {f"image/{name}": draw(*shape, seed) for seed, (name, shape) in enumerate(shapes.items(), 1)}
    names = ("augment", "interpolation", "color_jitter")
    steps = [(dict(zip(names, case, strict=True)), timms(*case)) for case in WHOLE]
    steps += [({"crop": crop}, torchvisions(crop)) for crop in ("simple", "pad")]
    for number, ((settings, transform), image) in enumerate(itertools.product(steps, shapes)):
        seed_all(number)
        view, arrays[f"pixels/{number}"] = whole(arrays[f"image/{image}"], transform)
        settings = {name: value for name, value in settings.items() if value is not None}
        arrays[f"view/{number}"] = np.array(json.dumps({"image": image, "settings": settings} | view))
    for spec, count in DRAWN.items():
        seed_all(count)
        arrays[f"drawn/{spec}"] = np.frombuffer(json.dumps(drawn(spec, count)).encode(), np.uint8)
    arrays |= {f"policy/{name}": np.array(json.dumps(entries(name))) for name in ("original", "v0")}
    np.savez_compressed(Path(__file__).with_name("augment.npz"), **arrays)


if __name__ == "__main__":
    main()
