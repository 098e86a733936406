"""Models by name: what is known, how large it is, and what a wrong name says."""

import math

import pytest
from flax import nnx

import deit_jax
from deit_jax.errors import UserError
from deit_jax.models import abstract_model, create_model, flatten

# As published with the weights (github.com/facebookresearch/deit), to the last parameter.
PARAMETERS = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_base_patch16_224": 86_567_656,
    "deit_base_patch16_384": 86_859_496,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
    "deit_base_distilled_patch16_384": 87_630_032,
}


def test_every_model_has_the_published_number_of_parameters():
    assert deit_jax.list_models() == list(PARAMETERS)
    for name, count in PARAMETERS.items():
        shapes = flatten(abstract_model(name), nnx.Param)
        assert sum(math.prod(shape.shape) for shape in shapes.values()) == count, name


def test_parameters_have_timms_names():
    block = [
        f"{layer}.{leaf}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for leaf in ("kernel", "bias")
    ]
    block += [f"{layer}.{leaf}" for layer in ("norm1", "norm2") for leaf in ("scale", "bias")]
    outside = ["cls_token", "dist_token", "pos_embed", "norm.scale", "norm.bias"]
    outside += [f"{layer}.{leaf}" for layer in ("patch_embed.proj", "head", "head_dist") for leaf in ("kernel", "bias")]
    names = {*outside, *(f"blocks.{i}.{leaf}" for i in range(12) for leaf in block)}
    assert flatten(abstract_model("deit_small_distilled_patch16_224")).keys() == names


def test_an_unknown_model_shows_the_nearest():
    with pytest.raises(UserError, match=r"unknown model 'deit_tiny_patch16'; did you mean deit_tiny_patch16_224"):
        create_model("deit_tiny_patch16", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=r"unknown model 'zzz'; known: deit_tiny_patch16_224, "):
        create_model("zzz", rngs=nnx.Rngs(0))


def test_an_unknown_override_shows_the_nearest():
    with pytest.raises(UserError, match="has no option 'num_class'; did you mean num_classes"):
        create_model("deit_tiny_patch16_224", rngs=nnx.Rngs(0), num_class=10)


def test_overrides_replace_the_entrys_arguments():
    shapes = flatten(abstract_model("deit_base_patch16_384", num_classes=7, image_size=32, depth=1))
    assert shapes["head.kernel"].shape == (768, 7)
    assert shapes["pos_embed"].shape == (1, 1 + 4, 768)
