"""Hugging Face's models: what transformers computes with the same weights, and its configs."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import FOLDER, assert_close, load
from weight_samples import HALF, PUBLISHED, assert_same_arrays, sample

from deit_jax import convert
from deit_jax.base.errors import UserError
from deit_jax.models import Preprocessing, bind, flatten, resolve
from deit_jax.step.losses import cross_entropy
from deit_jax.weights import Card, Weights, files, folders, huggingface, open_model, processors, read_weights, tables
from deit_jax.weights.imagenet import WNIDS, words

GOLDEN = "huggingface.npz"
ARRAYS, FACTS = load(GOLDEN), json.loads((FOLDER / "huggingface.json").read_text())
CASES = ["vit", "deit", "deit_with_teacher"]


def golden(case, kind):
    """`{name in memory: array}`."""
    prefix = f"{case}/{kind}/"
    return {name.removeprefix(prefix): array for name, array in ARRAYS.items() if name.startswith(prefix)}


def folder_of(case, path, *, names):
    """The folder that transformers would have written."""
    published = FACTS[case]["published"]
    weights = golden(case, "weights")
    tensors = {published[name] if names == "published" else name: value for name, value in weights.items()}
    path.mkdir()
    (path / "config.json").write_text(json.dumps(FACTS[case]["config"]))
    files.write_safetensors(path / "model.safetensors", tensors.items(), {})
    return path


@pytest.mark.parametrize("names", ["published", "in memory"])
@pytest.mark.parametrize("case", CASES)
def test_every_tensor_of_transformers_has_a_place(tmp_path, case, names):
    folder = folder_of(case, tmp_path / "hf", names=names)
    weights = read_weights(folder)
    scheme = tables.best_scheme(dict(files.read_tensors(folder / "model.safetensors")[0]), weights.variables)
    assert (scheme in tables.HUGGING_FACE.values()) == (names == "published")
    again = dict(tables.scatter(weights.variables, scheme))
    assert_same_arrays(files.read_tensors(folder / "model.safetensors")[0], again)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_transformers(tmp_path, case):
    model, card = open_model(folder_of(case, tmp_path / "hf", names="published"))
    assert card.arguments.get("norm_eps", 1e-6) == FACTS[case]["config"]["layer_norm_eps"]
    images, labels, logits = (ARRAYS[f"{case}/{kind}"] for kind in ("images", "labels", "logits"))
    targets = jax.nn.one_hot(labels, logits.shape[-1])

    @jax.jit
    def run(params):
        def loss(params):
            out = bind(model, params)(images)
            return jnp.mean(cross_entropy(out, targets)), out

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return out, grads

    ours, grads = run(flatten(model))
    assert_close(ours, logits, GOLDEN, "logits")
    check_gradients(grads, golden(case, "gradients"))


def check_gradients(grads, theirs):
    grads = {path: np.asarray(value) for path, value in grads.items()}
    scheme = tables.best_scheme(theirs, grads)
    ours = dict(tables.scatter(grads, scheme))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        if "k_proj.bias" in name:  # zero but for rounding: a constant added to a row of scores changes no softmax
            assert_close(ours[name], 0, GOLDEN, "vanishing gradients")
            assert_close(expected, 0, GOLDEN, "vanishing gradients")
        else:
            assert_close(ours[name], expected, GOLDEN, "gradients", err_msg=name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_written_folder_gives_card_and_weights_back(tmp_path, name):
    weights = sample(name, image_size=10)
    folders.write_folder(tmp_path / "hf", weights)
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "config.json",
        "hf",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    again = read_weights(tmp_path / "hf")
    assert_same_arrays(weights.variables, again.variables)
    assert again.card == weights.card
    # Without our card in it, the config tells the same network.
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    del config["deit_jax"]
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    told = read_weights(tmp_path / "hf").card
    networks = [resolve(card.model, card.arguments) for card in (told, weights.card)]
    assert networks[0] == networks[1]
    assert (told.class_names, told.preprocessing) == (weights.card.class_names, HALF)


def test_the_card_in_a_config_is_taken_only_while_it_is_true(tmp_path):
    """As after fine-tuning with transformers, which keeps fields that it does not know."""
    crop = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.875)
    weights = sample("vit_tiny_patch16_224", image_size=65)  # int(65 / 0.875) is 74, and 65 / 74 no 0.875
    weights = Weights(weights.variables, dataclasses.replace(weights.card, preprocessing=crop))
    folders.write_folder(tmp_path / "hf", weights)
    config, processor = (
        json.loads((tmp_path / "hf" / name).read_text()) for name in ("config.json", "preprocessor_config.json")
    )
    assert huggingface.card_of(config, processor, "hf") == weights.card
    # transformers leaves out what is its default.
    shorter = {field: value for field, value in config.items() if field not in huggingface.FIXED["vit"]}
    assert huggingface.card_of(shorter, processor, "hf") == weights.card
    other = huggingface.card_of(config | {"id2label": {"0": "a", "1": "b"}}, processor, "hf")
    assert (other.class_names, other.arguments["num_classes"]) == (("a", "b"), 2)
    assert huggingface.card_of(config | {"num_attention_heads": 1}, processor, "hf").arguments["heads"] == 1
    assert huggingface.card_of(config, processor | {"image_mean": [0, 0, 0]}, "hf").preprocessing.mean == (0, 0, 0)
    with pytest.raises(UserError, match=r"hf/config\.json: deit_jax cannot be read: .*; remove it from the file"):
        huggingface.card_of(config | {"deit_jax": {"model": 3}}, processor, "hf")


def test_a_written_config_is_complete(tmp_path):
    folders.write_folder(tmp_path / "hf", sample("deit_tiny_distilled_patch16_224", image_size=10))
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    published = FACTS["deit_with_teacher"]["config"]
    assert config.pop("deit_jax")["model"] == "deit_tiny_distilled_patch16_224"
    later = {"dtype", "pooler_act", "pooler_output_size", "transformers_version", "encoder_stride"}
    assert published.keys() - config.keys() == later
    assert config["architectures"] == ["DeiTForImageClassificationWithTeacher"]
    assert config["id2label"] == {"0": "class 0", "1": "class 1", "2": "class 2"}
    assert config["label2id"]["class 2"] == 2
    processor = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": 10, "width": 10}
    assert processor["size"] == {"shortest_edge": 20}
    assert processor["image_mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("name", "arguments", "what"),
    [
        ("deit3_small_patch16_224", {}, "layer scale and patch positions alone"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, 'global_pool="avg"'),
        ("vit_tiny_patch16_224", {"pre_logits": True}, "pre_logits"),
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "no class token"),
        ("vit_tiny_patch16_224", {"num_classes": 0}, "no classes"),
        ("vit_tiny_patch16_224", {"positions": "sincos2d", "width": 8}, "fixed positions"),
    ],
)
def test_what_transformers_has_no_class_for_is_refused(tmp_path, name, arguments, what):
    with pytest.raises(UserError, match=rf"no class for a model with .*{what}.*write a \.safetensors file"):
        folders.write_folder(tmp_path / "hf", sample(name, **arguments))
    assert list(tmp_path.iterdir()) == []


def config(model="deit_tiny_patch16_224", **changes):
    own = Card(model, {"num_classes": 2}, ("class 0", "class 1"))
    weights = Weights({"norm.scale": np.ones(1, np.float32)}, own)
    return huggingface.config_of(weights, huggingface.architecture_of(own)) | changes


def card(config, processor=None):
    return huggingface.card_of(config, processor, "hf")


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_the_registrys_models_are_known_by_their_sizes(name):
    """As facebook's own configs have it: ViT's class for the undistilled ones, and the epsilon of ViTConfig."""
    found = card(config(name, layer_norm_eps=1e-12))
    assert found == Card(name, {"norm_eps": 1e-12, "num_classes": 2}, ("class 0", "class 1"), None)


def test_a_vit_is_told_from_a_deit_by_its_normalisation():
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 224, "width": 224}}
    found = card(config(), processor)
    assert found.model == "vit_tiny_patch16_224"
    assert found.preprocessing == Preprocessing((0.5,) * 3, (0.5,) * 3, 1.0)


def test_labels():
    generic = {str(i): f"LABEL_{i}" for i in range(3)}
    assert card(config(id2label=generic)).class_names == ()
    assert card(config(id2label=generic)).arguments["num_classes"] == 3
    published = {str(i): f"synonym, {i}" for i in reversed(range(1000))}
    assert card(config(id2label=published)).class_names[10] == "synonym, 10"
    own = {str(i): words(name) for i, name in enumerate(WNIDS)}
    assert card(config(id2label=own)).class_names == WNIDS
    # As facebook's and Google's repositories have them, two "crane" included; some names may differ.
    synonyms = {i: f"{re.split(r', | [(]', name)[0]}, Synonyma synonyma" for i, name in own.items()}
    assert (synonyms["0"], synonyms["134"]) == ("tench, Synonyma synonyma", synonyms["517"])
    assert card(config(id2label=synonyms)).class_names == WNIDS
    few = {str(i): "something else" for i in range(0, 1000, 21)}
    assert card(config(id2label=synonyms | few)).class_names == WNIDS
    many = {str(i): "something else" for i in range(0, 1000, 19)}
    assert card(config(id2label=synonyms | many)).class_names[:2] == ("something else", "goldfish, Synonyma synonyma")
    shifted = {str(i): synonyms[str((i + 1) % 1000)] for i in range(1000)}
    assert card(config(id2label=shifted)).class_names[0] == "goldfish, Synonyma synonyma"
    with pytest.raises(UserError, match="id2label does not count from 0 to 1"):
        card(config(id2label={"1": "a", "2": "b"}))


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression", None])
def test_what_a_head_is_for_is_kept_in_every_format(tmp_path, kind):
    given = sample("deit_tiny_patch16_224", image_size=10)
    given = Weights(given.variables, dataclasses.replace(given.card, problem_type=kind or ""))
    folders.write_folder(tmp_path / "hf", given)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["problem_type"] == kind
    convert.write_timm(tmp_path / "w.safetensors", given)
    convert.write_orbax(tmp_path / "run", given)
    for place in ("hf", "w.safetensors", "run"):
        assert read_weights(tmp_path / place).card == given.card
        assert bool(given.card.no_classifier(3)) == bool(kind)
    # As when transformers trained on for something else: the card in it is no longer true.
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"problem_type": "other"}))
    assert read_weights(tmp_path / "hf").card.problem_type == "other"
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config | {"problem_type": "single_label_classification"}))
    assert (read_weights(tmp_path / "hf").card == given.card) == (kind is None)


def test_fields_that_a_config_leaves_out_are_those_of_transformers():
    found = card({"model_type": "vit", "architectures": ["ViTForImageClassification"]})
    assert found == Card("deit_base_patch16_224", {"norm_eps": 1e-12})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new', only 'gelu' can be read"),
        ({"qkv_bias": False}, "qkv_bias is False"),
        ({"num_channels": 1}, "num_channels is 1"),
        ({"patch_size": [4, 2]}, "patch_size .* is not square"),
        ({"model_type": "swin"}, "model_type 'swin'"),
        ({"architectures": ["ViTModel"]}, r"architectures \['ViTModel'\] cannot be read; take weights of ViTFor"),
        ({"architectures": None}, "cannot be read; take weights of ViTFor"),
    ],
)
def test_what_cannot_be_done_is_refused_by_field(changes, message):
    with pytest.raises(UserError, match=rf"hf/config\.json: .*{message}"):
        card(config(**changes))


def test_crop_ratios_give_the_resized_side_back():
    for crop in range(1, 400):
        for resized in range(crop, crop + 90):
            assert int(crop / processors.crop_ratio(crop, resized)) == resized


def test_mlp_ratios_give_the_hidden_width_back():
    for width in range(1, 200):
        for hidden in range(1, 500):
            assert int(width * huggingface._mlp_ratio(hidden, width)) == hidden


@pytest.mark.parametrize(
    ("processor", "ratio"),
    [
        ({"do_center_crop": True, "crop_size": 224, "size": 256}, 0.875),
        (
            {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 248}},
            224 / 248,
        ),
        ({"do_center_crop": False, "crop_size": 224, "size": 256}, 1.0),
        ({"size": {"height": 224, "width": 224}}, 1.0),
        ({"size": 224, "crop_pct": 0.9}, 0.9),  # ConvNextImageProcessor's
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "do_center_crop": None}, 0.875),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, 1.0),
        ({"do_resize": False}, 1.0),
    ],
)
def test_crops_of_processors(processor, ratio):
    found = card(config(), processor | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    assert found.preprocessing == Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), ratio)


SQUARE = {"height": 224, "width": 224}


@pytest.mark.parametrize(
    ("processor", "told"),
    [
        ({"do_center_crop": True, "crop_size": SQUARE, "size": {"shortest_edge": 256}}, ""),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, ""),
        ({"size": SQUARE}, "to a square"),
        ({"size": 224}, "to a square"),
        ({"size": SQUARE, "resample": 2}, "by the bilinear filter and to a square"),
        ({"do_center_crop": True, "crop_size": SQUARE, "size": {"height": 256, "width": 256}}, "to a square"),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, "to a square"),
        ({"do_resize": False}, "not at all"),
    ],
)
def test_what_is_resized_otherwise_is_told(caplog, processor, told):
    card(config(), processor | {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]})
    assert caplog.messages == [] if not told else f"the original resizes images {told}; here" in caplog.text


def test_the_proportions_of_deits_own_files_are_told(caplog):
    """Which transformers does not keep, though its own configs of DeiT are written so."""
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": 256, "crop_size": 224}
    found = card(config(), processor | {"do_center_crop": True, "resample": 3})
    assert found.preprocessing.crop_ratio == 0.875
    (line,) = caplog.messages
    assert "preprocessor_config.json: images keep their proportions here, as DeiT's authors have it; by this" in line
    assert "to a square of 256 pixels" in line


def test_pixels_that_are_not_normalised():
    crop = {"size": {"shortest_edge": 224}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    assert card(config(), crop | {"do_normalize": False}).preprocessing == Preprocessing((0,) * 3, (1,) * 3, 1.0)
    for change in ({"do_rescale": False}, {"rescale_factor": 1 / 127.5}):
        with pytest.raises(UserError, match=r"preprocessor_config\.json: pixels are scaled by 1/255 here; remove"):
            card(config(), crop | change)


def test_a_damaged_processor_is_told():
    with pytest.raises(UserError, match=r"config\.json: cannot be understood: 'image_std' is missing; mend"):
        card(config(), {"image_mean": [0.5] * 3})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"model_type": "regnet", "depths": [1, 1, 4, 7], "hidden_sizes": [24, 56, 152, 368], "groups_width": 8},
            Card("regnety_002"),
        ),
        (
            {"model_type": "regnet", "depths": [2, 4, 11, 1], "hidden_sizes": [224, 448, 1232, 3024]}
            | {"groups_width": 112, "embedding_size": 16},
            Card("regnety_160", {"stem_width": 16}),
        ),
        ({"model_type": "resnet"}, Card("resnet50")),
        ({"model_type": "resnet", "depths": [3, 4, 23, 3]}, Card("resnet50", {"depths": (3, 4, 23, 3)})),
    ],
)
def test_convolutional_networks(fields, expected):
    name = {"regnet": "RegNet", "resnet": "ResNet"}[fields["model_type"]]
    assert card({"architectures": [f"{name}ForImageClassification"], **fields}) == expected


def test_convolutional_networks_that_cannot_be_read():
    fields = {"model_type": "regnet", "architectures": ["RegNetForImageClassification"]}
    with pytest.raises(UserError, match="layer_type is 'x', only 'y' can be read"):
        card(fields | {"layer_type": "x"})
    fields = {"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}
    with pytest.raises(UserError, match="downsample_in_bottleneck is True, only False"):
        card(fields | {"downsample_in_bottleneck": True})


def timm_config(**changes):
    published = {"input_size": [3, 384, 384], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.9}
    return {"architecture": "deit3_small_patch16_224.fb_in1k", "num_classes": 7, "pretrained_cfg": published} | changes


def test_timms_config():
    found = folders.timm_card(timm_config(label_names=list("abcdefg")), "config.json")
    preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9)
    arguments = {"num_classes": 7, "image_size": 384}
    assert found == Card("deit3_small_patch16_224", arguments, tuple("abcdefg"), preprocessing)
    plain = {"architecture": "deit_tiny_patch16_224", "num_classes": 1000}
    assert folders.timm_card(plain, "config.json") == Card("deit_tiny_patch16_224")
    assert folders.timm_card(timm_config(model_args={"img_size": 96}), "").arguments["image_size"] == 96


def test_timms_configs_of_other_models_are_refused():
    with pytest.raises(UserError, match="unknown model 'swin_tiny'"):
        folders.timm_card(timm_config(architecture="swin_tiny"), "config.json")
    with pytest.raises(UserError, match="model_args has act_layer='relu', which cannot be read"):
        folders.timm_card(timm_config(model_args={"act_layer": "relu"}), "config.json")
