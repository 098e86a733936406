"""Naming tables: names, layouts, both directions, and what does not fit."""

import numpy as np
import pytest
from weight_samples import FAMILIES, PUBLISHED, assert_same_arrays, convolutional, sample

from deit_jax.weights import huggingface, tables


def shapes(variables):
    return {path: value.shape for path, value in variables.items()}


def test_timms_names_and_layouts():
    variables = sample("deit_tiny_distilled_patch16_224").variables
    theirs = dict(tables.scatter(variables, tables.TIMM))
    assert len(theirs) == len(variables)
    np.testing.assert_array_equal(theirs["blocks.1.mlp.fc2.weight"], variables["blocks.1.mlp.fc2.kernel"].T)
    np.testing.assert_array_equal(theirs["norm.weight"], variables["norm.scale"])
    conv, kernel = theirs["patch_embed.proj.weight"], variables["patch_embed.proj.kernel"]
    assert conv.shape == (6, 3, 5, 5)
    for out, channel, row, column in ((0, 1, 2, 3), (5, 2, 4, 0)):
        assert conv[out, channel, row, column] == kernel[row, column, channel, out]


def test_batch_norms_statistics_have_torchs_names():
    assert tables.TIMM.names("stem.bn.mean") == ("stem.bn.running_mean",)
    assert tables.TIMM.names("stem.bn.var") == ("stem.bn.running_var",)


def test_queries_keys_and_values_are_thirds_of_qkv():
    variables = sample("vit_tiny_patch16_224").variables
    theirs = dict(tables.scatter(variables, tables.HUGGING_FACE["ViTForImageClassification"]))
    for i, part in enumerate(("query", "key", "value")):
        name = f"vit.encoder.layer.1.attention.attention.{part}"
        third = slice(6 * i, 6 * i + 6)
        np.testing.assert_array_equal(theirs[f"{name}.weight"], variables["blocks.1.attn.qkv.kernel"][:, third].T)
        np.testing.assert_array_equal(theirs[f"{name}.bias"], variables["blocks.1.attn.qkv.bias"][third])


@pytest.mark.parametrize("name", FAMILIES)
def test_gathering_undoes_scattering(name):
    """At depth 12, where "10" sorts before "2", and whatever the order of the tensors in the file."""
    variables = sample(name, depth=12).variables
    for scheme in [tables.OURS, *tables.SCHEMES]:
        theirs = list(reversed(list(tables.scatter(variables, scheme))))
        assert len(dict(theirs)) == len(theirs)
        assert_same_arrays(variables, tables.gather(dict(theirs), scheme, variables))


def test_the_scheme_is_known_by_the_names():
    for name in PUBLISHED:
        weights = sample(name)
        scheme = tables.HUGGING_FACE[huggingface.architecture_of(weights.card)]
        theirs = dict(tables.scatter(weights.variables, scheme))
        assert tables.best_scheme(theirs, weights.variables) is scheme
    variables = sample("deit3_small_patch16_224").variables
    for scheme in tables.SCHEMES[:2]:
        theirs = dict(tables.scatter(variables, scheme))
        assert tables.best_scheme(theirs, variables) is scheme
    assert "blocks.1.gamma_2" in theirs


CONVOLUTIONAL = {
    "regnety_002": ["RegNetForImageClassification"],
    "resnet50": ["ResNetForImageClassification"],
    "tf_efficientnet_lite0": [],
    "tf_efficientnet_lite2": [],
}


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_networks_have_names_too(name):
    variables = convolutional(name).variables
    packages = [scheme for scheme in tables.SCHEMES if "package" in scheme.title]
    schemes = [tables.TIMM, *(tables.HUGGING_FACE[architecture] for architecture in CONVOLUTIONAL[name])]
    if "lite" in name:
        schemes.append(packages[name != "tf_efficientnet_lite0"])
    for scheme in schemes:
        theirs = dict(reversed(list(tables.scatter(variables, scheme))))
        assert len(theirs) == len(variables)
        assert tables.best_scheme(theirs, variables) is scheme
        assert tables.misfit(theirs, scheme, shapes(variables)) == ""
        assert_same_arrays(variables, tables.gather(theirs, scheme, variables))


@pytest.mark.parametrize(
    ("title", "path", "name"),
    [
        ("RegNet", "stem.bn.var", "regnet.embedder.embedder.normalization.running_var"),
        ("RegNet", "s3.b12.conv3.conv.kernel", "regnet.encoder.stages.2.layers.11.layer.3.convolution.weight"),
        ("RegNet", "s4.b1.se.fc2.bias", "regnet.encoder.stages.3.layers.0.layer.2.attention.2.bias"),
        ("RegNet", "s1.b1.downsample.bn.scale", "regnet.encoder.stages.0.layers.0.shortcut.normalization.weight"),
        ("RegNet", "head.fc.kernel", "classifier.1.weight"),
        ("ResNet", "bn1.mean", "resnet.embedder.embedder.normalization.running_mean"),
        ("ResNet", "layer4.2.conv2.kernel", "resnet.encoder.stages.3.layers.2.layer.1.convolution.weight"),
        ("ResNet", "layer1.0.downsample.1.bias", "resnet.encoder.stages.0.layers.0.shortcut.normalization.bias"),
        ("ResNet", "fc.bias", "classifier.1.bias"),
        ("Lite 0", "blocks.0.0.conv_pw.kernel", "_blocks.0._project_conv.weight"),
        ("Lite 0", "blocks.0.0.bn2.mean", "_blocks.0._bn2.running_mean"),
        ("Lite 0", "blocks.2.0.conv_pw.kernel", "_blocks.3._expand_conv.weight"),
        ("Lite 0", "blocks.6.0.bn3.scale", "_blocks.15._bn2.weight"),
        ("Lite 1", "blocks.6.0.conv_pwl.kernel", "_blocks.20._project_conv.weight"),
        ("Lite 1", "conv_head.kernel", "_conv_head.weight"),
        ("Lite 1", "bn2.bias", "_bn1.bias"),
        ("Lite 1", "classifier.kernel", "_fc.weight"),
    ],
)
def test_names_of_convolutional_networks(title, path, name):
    (scheme,) = (scheme for scheme in tables.SCHEMES if title in scheme.title)
    assert scheme.names(path) == (name,)


def test_a_vit_has_no_other_variables_than_those_that_are_looked_for():
    for name in FAMILIES:
        variables = sample(name, depth=12).variables
        assert variables.keys() <= set(tables.vit_paths(dict(tables.scatter(variables, tables.TIMM))))
    pooled = sample("vit_tiny_patch16_224", global_pool="avg", pre_logits=True).variables
    assert pooled.keys() <= set(tables.vit_paths(pooled))


def test_what_does_not_fit_is_listed_by_the_files_names():
    variables = sample("deit_tiny_distilled_patch16_224").variables
    scheme = tables.HUGGING_FACE["DeiTForImageClassificationWithTeacher"]
    theirs = dict(tables.scatter(variables, scheme))
    assert tables.misfit(theirs, scheme, shapes(variables)) == ""
    layer = "deit.encoder.layer.1."
    del theirs[f"{layer}attention.attention.key.bias"]
    theirs[f"{layer}output.dense.weight"] = theirs[f"{layer}output.dense.weight"].T
    theirs |= {f"pooler.{i}": np.zeros(1) for i in range(5)}
    theirs["norm.bias"] = theirs["deit.layernorm.bias"]
    assert tables.misfit(theirs, scheme, shapes(variables)) == (
        f"1 missing: {layer}attention.attention.key.bias; 5 extra: pooler.{{0-4}}; "
        f"1 duplicated under other names: norm.bias; "
        f"1 of another shape: {layer}output.dense.weight [24, 6] instead of [6, 24]; "
        f"they look like a distilled DeiT's (deit_*_distilled_*)"
    )


def test_all_that_does_not_fit_is_in_one_line():
    variables = sample("deit_tiny_distilled_patch16_224", depth=12).variables
    scheme = tables.HUGGING_FACE["DeiTForImageClassificationWithTeacher"]
    theirs = dict(tables.scatter(variables, scheme))
    layers = [f"deit.encoder.layer.{i}" for i in range(12)]
    for layer in layers:
        for part in ("query", "key", "value"):
            del theirs[f"{layer}.attention.attention.{part}.weight"]
        theirs[f"{layer}.output.dense.weight"] = theirs[f"{layer}.output.dense.weight"].T
        theirs[f"{layer}.rotary"] = np.zeros(1)
    theirs[f"{layers[3]}.output.dense.bias"] = np.zeros(7)
    theirs |= {f"blocks.{i}.norm1.weight": np.zeros(6) for i in range(12)}
    attention = "deit.encoder.layer.{0-11}.attention.attention."
    assert tables.misfit(theirs, scheme, shapes(variables)) == (
        f"36 missing: {attention}query.weight, {attention}key.weight, {attention}value.weight; "
        "12 extra: deit.encoder.layer.{0-11}.rotary; "
        "12 duplicated under other names: blocks.{0-11}.norm1.weight; "
        "13 of another shape: deit.encoder.layer.{0-11}.output.dense.weight [24, 6] instead of [6, 24], "
        "deit.encoder.layer.3.output.dense.bias [7] instead of [6]; "
        "they look like a distilled DeiT's (deit_*_distilled_*)"
    )


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["cls_token", "blocks.0.gamma_1"], "DeiT-III"),
        (["cls_token", "blocks.0.ls1.gamma"], "DeiT-III"),
        (["deit.embeddings.distillation_token"], "a distilled DeiT"),
        (["blocks.0.attn.qkv.weight"], "a ViT's or an undistilled DeiT's"),
        (["vit.layers.0.layernorm_before.weight"], "a ViT's or an undistilled DeiT's"),
        (["s1.b1.conv1.conv.weight"], "a RegNet's"),
        (["layer1.0.conv1.weight"], "a ResNet's"),
        (["regnet.encoder.stages.0.layers.0.layer.0.convolution.weight"], "a RegNet's"),
        (["resnet.embedder.embedder.convolution.weight"], "a ResNet's"),
        (["blocks.0.0.conv_dw.weight"], "an EfficientNet's"),
        (["_blocks.0._depthwise_conv.weight"], "an EfficientNet's"),
        (["layers.0.blocks.0.norm1.weight"], "a Swin"),
        (["bert.pooler.weight"], "no model's here"),
    ],
)
def test_families_are_told_by_their_names(names, family):
    assert tables.family(names).startswith(family)
