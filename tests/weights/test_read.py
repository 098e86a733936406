"""Weights by name: files, folders, checkpoints, and the models they are put into."""

import dataclasses
import hashlib
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from weight_samples import FAMILIES, HALF, SIZES, assert_same_arrays, bare, convolutional, sample

import deit_jax
from deit_jax import convert
from deit_jax.base.errors import UserError
from deit_jax.models import Preprocessing, Pretrained, abstract_model, entry, flatten, registry
from deit_jax.run.checkpoint import Checkpoints
from deit_jax.step.state import init_state
from deit_jax.weights import Card, Weights, files, folders, load_weights, open_model, places, read_weights, tables
from deit_jax.weights.imagenet import WNIDS
from deit_jax.weights.read import read_named

TINY, DISTILLED, DEIT3 = "deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224"
VIT = "vit_tiny_patch16_224"


def changed(weights, **fields):
    return Weights(weights.variables, dataclasses.replace(weights.card, **fields))


@pytest.mark.parametrize("scheme", tables.SCHEMES[:2], ids=["timm", "facebook"])
def test_a_bare_file_has_the_card_that_can_be_told_from_its_shapes(tmp_path, small, scheme):
    weights = sample(DEIT3, image_size=10)
    path = bare(tmp_path / "w.safetensors", weights, scheme)
    found = read_weights(path, model=DEIT3)
    assert_same_arrays(weights.variables, found.variables)
    assert found.card == Card(DEIT3, {"num_classes": 3, "image_size": 10}, (), entry(DEIT3).preprocessing)
    unknown = read_weights(path)
    assert_same_arrays(weights.variables, unknown.variables)
    assert unknown.card == Card()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_card_in_the_header_tells_everything(tmp_path, name):
    weights = sample(name)
    convert.write_timm(tmp_path / "w.safetensors", weights)
    found = read_weights(str(tmp_path / "w.safetensors"))
    assert_same_arrays(weights.variables, found.variables)
    assert found.card == weights.card


def test_features_and_a_thousand_classes(tmp_path, small):
    path = bare(tmp_path / "f.safetensors", sample(TINY, num_classes=0, image_size=20))
    assert read_weights(path, model=TINY).card == Card(TINY, {"num_classes": 0}, (), Preprocessing())
    path = bare(tmp_path / "i.safetensors", sample(TINY, num_classes=1000, image_size=20))
    assert read_weights(path, model=TINY).card == Card(TINY, {}, (), Preprocessing())  # of whatever thousand classes
    assert read_weights(path).card == Card()


def test_the_authors_own_file_is_of_imagenet(tmp_path, small, monkeypatch):
    """By its name and its content: a thousand classes without names are those of ImageNet where it was published."""
    path = bare(tmp_path / "w.safetensors", sample(TINY, num_classes=1000, image_size=20))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    for name, classes in ((f"w-{digest}.safetensors", WNIDS), (f"w-{digest[::-1]}.safetensors", ())):
        published = dataclasses.replace(entry(TINY).pretrained, checkpoint=name)
        monkeypatch.setattr(Pretrained, "digest", name[2:10])
        monkeypatch.setitem(registry.MODELS, TINY, dataclasses.replace(entry(TINY), pretrained=published))
        shutil.copy(path, tmp_path / name)
        assert read_weights(tmp_path / name, model=TINY).card.class_names == classes


@pytest.mark.parametrize(
    ("of", "model", "problems"),
    [
        (DEIT3, TINY, r"4 extra: blocks\.\{0,1\}\.ls\{1,2\}\.gamma; .* pos_embed \[1, 6, 6\] instead of .*DeiT-III's"),
        (TINY, DEIT3, r"4 missing: blocks\.\{0,1\}\.ls\{1,2\}\.gamma; .*look like a ViT's or an undistilled DeiT's"),
        (DISTILLED, TINY, r"3 extra: .*dist_token.*look like a distilled DeiT's"),
        (TINY, DISTILLED, r"3 missing: dist_token, head_dist\.bias, head_dist\.weight; "),
        (TINY, "deit_small_patch16_224", r"missing: blocks\.\{2-11\}.*of another shape: .* \[6\] instead of \[384\]"),
    ],
)
def test_weights_of_another_model_are_refused_by_the_files_names(tmp_path, small, of, model, problems):
    path = bare(tmp_path / "w.safetensors", sample(of))
    with pytest.raises(UserError, match=rf"w\.safetensors: is not {model}'s \(timm's names\): .*{problems}") as error:
        read_weights(path, model=model)
    assert "\n" not in str(error.value)
    abstract = abstract_model(model, num_classes=3)
    with pytest.raises(UserError, match=r"w\.safetensors: is not this model's"):
        load_weights(abstract, path)


def test_an_extra_tensor_is_refused_where_the_model_is_not_known_too(tmp_path):
    weights = sample(TINY)
    with_more = Weights({**weights.variables, "blocks.0.attn.rope.bias": np.zeros(3, np.float32)}, weights.card)
    path = bare(tmp_path / "w.safetensors", with_more)
    with pytest.raises(UserError, match=r"1 extra: blocks\.0\.attn\.rope\.bias; they look like a ViT's"):
        read_weights(path)


@pytest.mark.parametrize("abstract", [True, False])
def test_loading_into_a_model(tmp_path, abstract):
    weights = sample(DISTILLED)
    path = bare(tmp_path / "w.safetensors", weights)
    model = abstract_model(DISTILLED, **SIZES)
    if not abstract:
        model = deit_jax.create_model(DISTILLED, rngs=nnx.Rngs(0), **SIZES)
    loaded = flatten(deit_jax.load_weights(model, path))
    for name, value in weights.variables.items():
        assert loaded[name].dtype == jnp.float32
        np.testing.assert_array_equal(loaded[name], value.astype(np.float32))


def test_opening_gives_a_model_and_a_complete_card(tmp_path, small):
    weights = sample(DISTILLED)
    convert.write_timm(tmp_path / "w.safetensors", weights)
    model, card = open_model(tmp_path / "w.safetensors", attention="xla", remat=True)
    assert card == weights.card
    assert (model.blocks[0].attn.implementation, model.remat) == ("xla", True)
    expected = {path: value.astype(np.float32) for path, value in weights.variables.items()}
    assert_same_arrays(expected, flatten(model))

    path = bare(tmp_path / "bare.safetensors", sample(TINY, image_size=20))
    _, card = open_model(path, model=TINY)
    assert card == Card(TINY, {"num_classes": 3}, (), Preprocessing())


def test_opening_for_features_or_another_image_size(tmp_path):
    convert.write_timm(tmp_path / "w.safetensors", sample(DISTILLED))
    model, card = open_model(tmp_path / "w.safetensors", num_classes=0, image_size=(15, 20))
    assert jax.eval_shape(model, np.zeros((1, 15, 20, 3), np.float32)).shape == (1, 6)
    assert card.arguments["image_size"] == (15, 20)
    assert card.class_names == ()
    with pytest.raises(UserError, match=r"w\.safetensors: the weights have no head\.kernel for 4 classes"):
        open_model(tmp_path / "w.safetensors", num_classes=4)


def test_a_model_that_is_not_known_is_asked_for(tmp_path, small):
    path = bare(tmp_path / "w.safetensors", sample(TINY))
    with pytest.raises(UserError, match=rf"does not say which model it is of; .*\(by its shapes: {TINY} or {VIT}\)"):
        open_model(path)


def test_the_model_given_has_to_fit_what_the_card_says(tmp_path, small):
    convert.write_timm(tmp_path / "w.safetensors", Weights(sample(TINY).variables, Card(TINY, {"num_classes": 3})))
    with pytest.raises(UserError, match=r"of another shape"):  # the card's own model does not fit: 10 x 15 pixels
        open_model(tmp_path / "w.safetensors")
    convert.write_timm(tmp_path / "x.safetensors", changed(sample(TINY), arguments={"image_size": (10, 15)}))
    with pytest.raises(UserError, match=rf"is not {DISTILLED}'s"):
        open_model(tmp_path / "x.safetensors", model=DISTILLED)


CARD = json.dumps(sample(TINY).card.to_json())

# The whole card, or what is changed of one.
NONSENSE = {
    "deep": '{"model":' * 100_000,
    "arguments in arguments": {"arguments": {"width": {"a": 1}}},
    "a problem type that is none": {"problem_type": 3},
    "a million layers": {"arguments": {"depth": 1_000_000}},
    "a million patches": {"arguments": {**SIZES, "image_size": 5_000, "patch_size": 5}},
    "a crop of nothing": {"preprocessing": {"mean": [0, 0, 0], "std": [1, 1, 1], "crop_ratio": 1e-6}},
    "no JSON": "{",
    "a list": "[]",
    "a number": "3",
    "lacking": '{"model": ""}',
    "no text": {"model": 3},
    "names that are none": {"class_names": [1, 2, 3]},
    "a name for names": {"class_names": "abc"},
    "too few names": {"class_names": ["a"]},
    "unknown model": {"model": "vit_tini"},
    "unknown argument": {"arguments": {"widht": 6}},
    "argument of another type": {"arguments": {"width": "6"}},
    "no heads": {"arguments": {**SIZES, "heads": 0}},
    "a list of arguments": {"arguments": [1]},
    "preprocessing that is none": {"preprocessing": {"mean": 1}},
    "a deviation of 0": {"preprocessing": {"mean": [0, 0, 0], "std": [0, 0, 0], "crop_ratio": 1}},
}


@pytest.mark.parametrize("content", NONSENSE.values(), ids=NONSENSE)
def test_damaged_cards_are_told(tmp_path, content):
    text = content if isinstance(content, str) else json.dumps(sample(TINY).card.to_json() | content)
    tensors = tables.scatter(sample(TINY).variables, tables.TIMM)
    files.write_safetensors(tmp_path / "w.safetensors", tensors, {places.KEY: text})
    with pytest.raises(
        UserError, match=r"w\.safetensors: .*(anew|mend|built|did you mean|a network here may have)"
    ) as error:
        read_weights(tmp_path / "w.safetensors")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", ["pos_embed", "head.kernel", "patch_embed.proj.kernel", "blocks.0.attn.qkv.kernel"])
@pytest.mark.parametrize("scheme", [tables.TIMM, tables.HUGGING_FACE["ViTForImageClassification"]])
def test_scalars_in_place_of_arrays_are_told(tmp_path, small, path, scheme):
    tensors = dict(tables.scatter(sample(TINY, image_size=20).variables, scheme))
    name = scheme.names(path)[0]
    tensors[name] = np.zeros((), np.float32)
    files.write_safetensors(tmp_path / "w.safetensors", tensors.items(), {})
    for model in (TINY, ""):
        with pytest.raises(UserError, match=rf"w\.safetensors: .*{name}|w\.safetensors: does not say which model"):
            open_model(tmp_path / "w.safetensors", model=model)


def test_the_same_shapes_of_another_function_are_no_other_models(tmp_path, small):
    """A card that tells of three heads, and a model with two."""
    convert.write_timm(tmp_path / "w.safetensors", sample(TINY, heads=3, image_size=20))
    assert open_model(tmp_path / "w.safetensors")[0].blocks[0].attn.heads == 3
    with pytest.raises(UserError, match=rf"w\.safetensors: is not {VIT}'s, but {TINY}'s: heads is 3 in the"):
        open_model(tmp_path / "w.safetensors", model=VIT)
    with pytest.raises(UserError, match=r"w\.safetensors: the weights .* another network: heads is 3"):
        open_model(tmp_path / "w.safetensors", heads=2)
    with pytest.raises(UserError, match=r"w\.safetensors: the weights .* another network: heads is 3"):
        load_weights(abstract_model(TINY, num_classes=3), tmp_path / "w.safetensors")


def test_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    convert.write_timm(tmp_path / "w.safetensors", sample(TINY))
    convert.write_orbax(tmp_path / "orbax", sample(TINY))
    for spec in ("~/w.safetensors", "~/orbax", "~/orbax@0#raw"):
        assert_same_arrays(sample(TINY).variables, read_weights(spec).variables)


# Names and values as other programs write them


def frameworks(tensors):
    """The same tensors under the names that frameworks give them, by what these put around the network."""
    whole = dict(tensors)
    prefixes = ("timm_model.", "model.", "net.", "module.", "_orig_mod.", "module._orig_mod.model.", "a.b.c.")
    named = {prefix: {prefix + name: value for name, value in whole.items()} for prefix in prefixes}
    averaged = named["module."] | {"n_averaged": np.array(7)}
    return named | {"AveragedModel": averaged, "inside": {f"model.{name}": value for name, value in averaged.items()}}


SCHEMES = [tables.TIMM, tables.HUGGING_FACE["ViTForImageClassification"]]


@pytest.mark.parametrize("scheme", SCHEMES, ids=["timm", "transformers"])
def test_what_frameworks_put_in_front_of_names_is_left_out(tmp_path, small, scheme):
    weights = sample(TINY, image_size=20)
    for tensors in frameworks(tables.scatter(weights.variables, scheme)).values():
        files.write_safetensors(tmp_path / "w.safetensors", tensors.items(), {})
        for model in (TINY, ""):
            assert_same_arrays(weights.variables, read_weights(tmp_path / "w.safetensors", model=model).variables)
    abstract = abstract_model(TINY, num_classes=3)
    loaded = flatten(load_weights(abstract, tmp_path / "w.safetensors"))
    assert_same_arrays({path: value.astype(np.float32) for path, value in weights.variables.items()}, loaded)


def test_a_network_without_its_head_keeps_transformers_prefix(tmp_path, small):
    """All of its names begin with `vit.`, as if that were a framework's."""
    weights = sample(TINY, image_size=20, num_classes=0)
    for prefix in ("", "model.", "vit."):
        tensors = tables.scatter(weights.variables, SCHEMES[1])
        files.write_safetensors(tmp_path / "w.safetensors", ((prefix + name, value) for name, value in tensors), {})
        assert_same_arrays(weights.variables, read_weights(tmp_path / "w.safetensors", model=TINY).variables)


def test_a_pooling_network_inside_another_module(tmp_path, small):
    weights = sample(TINY, image_size=20, global_pool="avg")
    tensors = ((f"model.{name}", value) for name, value in tables.scatter(weights.variables, tables.TIMM))
    files.write_safetensors(tmp_path / "w.safetensors", tensors, {})
    found = read_weights(tmp_path / "w.safetensors", model=TINY)
    assert_same_arrays(weights.variables, found.variables)
    assert found.card.arguments["global_pool"] == "avg"


ONE = np.ones(3, np.float32)
MENDS = {
    "a loss beside": (
        lambda t: {f"model.{k}": v for k, v in t.items()} | {"loss.weight": ONE},
        r"has a network under 'model\.' and 1 tensors beside it: loss\.weight; save the state_dict\(\) of the network",
    ),
    "a head of another module": (  # which may pool otherwise
        lambda t: {k if "head" in k else f"backbone.{k}": v for k, v in t.items()},
        r"has a network under 'backbone\.' and 2 tensors beside it: head\.(weight|bias), head\.(weight|bias); save",
    ),
    "an extra one": (
        lambda t: t | {"blocks.0.attn.rope.bias": ONE},
        "name the model that it is of, or save it without",
    ),
    "two networks": (
        lambda t: {f"{who}.{k}": v for k, v in t.items() for who in ("student", "teacher")},
        r"save the state_dict\(\) of the network alone",
    ),
    "one with and without": (
        lambda t: {f"model.{k}": v for k, v in t.items()} | {"norm.bias": ONE},
        r"under 'model\.' and 1 tensors beside it: norm\.bias; save",
    ),
    "half of it": (lambda t: {k: v for k, v in t.items() if "blocks.1" not in k}, "; name the model that it is of$"),
    "other names": (
        lambda t: {f"x{i}": v for i, v in enumerate(t.values())},
        r"save the state_dict\(\) of the network",
    ),
}


@pytest.mark.parametrize(("change", "mend"), MENDS.values(), ids=MENDS)
def test_the_mend_is_one_that_helps(tmp_path, small, change, mend):
    tensors = change(dict(tables.scatter(sample(TINY, image_size=20).variables, tables.TIMM)))
    files.write_safetensors(tmp_path / "w.safetensors", tensors.items(), {})
    with pytest.raises(UserError, match=rf"w\.safetensors: .*{mend}") as error:
        read_weights(tmp_path / "w.safetensors", model=TINY)
    assert "\n" not in str(error.value)


def test_the_mend_of_a_shard_and_of_a_card(tmp_path, small):
    tensors = dict(tables.scatter(sample(TINY, image_size=20).variables, tables.TIMM))
    part = {name: value for name, value in tensors.items() if "blocks" in name}
    files.write_safetensors(tmp_path / "m-00001-of-00002.safetensors", part.items(), {})
    with pytest.raises(UserError, match=r"one of several files: name their folder, or the \*\.index\.json beside it"):
        read_weights(tmp_path / "m-00001-of-00002.safetensors", model=TINY)
    metadata = {places.KEY: json.dumps(Card(DISTILLED).to_json())}
    files.write_safetensors(tmp_path / "w.safetensors", tensors.items(), metadata)
    with pytest.raises(UserError, match=rf"its config or card tells of {DISTILLED}, so mend that, or take"):
        read_weights(tmp_path / "w.safetensors")


def test_folders_of_several_files(tmp_path, small):
    """As transformers and timm look for them: the whole file first, then its parts."""
    weights = sample(TINY, image_size=20)
    (tmp_path / "config.json").write_text(json.dumps(TIMM_SAVED))
    named = {}
    for i, (name, value) in enumerate(tables.scatter(weights.variables, tables.TIMM)):
        named.setdefault(f"model-0000{i % 3 + 1}-of-00003.safetensors", {})[f"timm_model.{name}"] = value
    for file, tensors in named.items():
        files.write_safetensors(tmp_path / file, tensors.items(), {})
    index = {"weight_map": {name: file for file, tensors in named.items() for name in tensors}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for spec, model in ((tmp_path, ""), (tmp_path / "model.safetensors.index.json", TINY)):
        assert_same_arrays(weights.variables, read_weights(spec, model=model).variables)
    assert read_weights(tmp_path).card.class_names == ("cat", "dog", "eel")
    bare(tmp_path / "model.safetensors", sample(TINY, image_size=20, seed=1))
    assert_same_arrays(sample(TINY, image_size=20, seed=1).variables, read_weights(tmp_path).variables)


VALUES = {
    "NaN": (np.full(6, np.nan, np.float32), "NaN or beyond float32"),
    "one infinite": (np.array([0, 0, 0, -np.inf, 0, 0], np.float16), "NaN or beyond float32"),
    "beyond float32": (np.array([0, 0, 1e39, 0, 0, 0]), "NaN or beyond float32"),
    "int64": (np.arange(6), "is of type int64, and weights are floating-point numbers"),
    "int8": (np.arange(6, dtype=np.int8), "is of type int8"),
    "bool": (np.ones(6, bool), "is of type bool"),
}


@pytest.mark.parametrize(("value", "message"), VALUES.values(), ids=VALUES)
def test_values_that_are_no_weights_are_refused_by_name(tmp_path, value, message):
    tensors = dict(tables.scatter(sample(TINY).variables, tables.TIMM)) | {"blocks.1.norm2.bias": value}
    files.write_safetensors(tmp_path / "w.safetensors", tensors.items(), {places.KEY: CARD})
    for read in (read_weights, read_named, open_model, lambda path: load_weights(abstract_model(TINY, **SIZES), path)):
        with pytest.raises(UserError, match=rf"w\.safetensors: blocks\.1\.norm2\.bias .*{message}"):
            read(tmp_path / "w.safetensors")


def test_a_checkpoint_with_values_that_are_no_weights(tmp_path):
    weights = sample(TINY)
    weights.variables["norm.bias"][3] = np.nan
    convert.write_orbax(tmp_path / "run", weights)
    with pytest.raises(UserError, match=r"run: norm\.bias has values that are NaN"):
        read_weights(tmp_path / "run")


# Convolutional networks


@pytest.mark.long
def test_convolutional_networks_by_their_names(tmp_path):
    """With torch's counters, which are no weights."""
    weights = convolutional("regnety_002", num_classes=7)
    tensors = dict(tables.scatter(weights.variables, tables.TIMM))
    counters = {name.replace("running_mean", "num_batches_tracked"): np.int64(3) for name in tensors if "mean" in name}
    files.write_safetensors(tmp_path / "w.safetensors", (tensors | counters).items(), {})
    found = read_weights(tmp_path / "w.safetensors", model="regnety_002")
    assert_same_arrays(weights.variables, found.variables)
    assert found.card == Card("regnety_002", {"num_classes": 7}, (), Preprocessing())
    loaded = flatten(load_weights(abstract_model("regnety_002", num_classes=7), tmp_path / "w.safetensors"))
    assert_same_arrays(weights.variables, loaded)
    with pytest.raises(UserError, match="holds nothing of a Vision Transformer, but a RegNet's; give the name"):
        read_weights(tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"is not regnety_004's .*missing: s2\.b\{2,3\}.*; they look like a RegNet's"):
        read_weights(tmp_path / "w.safetensors", model="regnety_004")
    # A command chooses how attention is computed before it knows whether there is any.
    model, card = open_model(tmp_path / "w.safetensors", model="regnety_002", attention="xla", dtype="bfloat16")
    assert (model.dtype, card) == (jnp.bfloat16, found.card)
    assert_same_arrays(weights.variables, flatten(model))
    with pytest.raises(UserError, match="patch_size"):
        open_model(tmp_path / "w.safetensors", model="regnety_002", patch_size=8)


def test_a_transformer_is_none_of_a_convolutional_networks(tmp_path):
    convert.write_timm(tmp_path / "w.safetensors", convolutional("regnety_002"))
    with pytest.raises(UserError, match=r"is not deit_tiny_patch16_224's .*missing: "):
        read_named(tmp_path / "w.safetensors", model="deit_tiny_patch16_224")


def test_features_of_convolutional_networks(tmp_path):
    for classes in (0, 1000):
        weights = convolutional("regnety_002", num_classes=classes)
        path = bare(tmp_path / f"{classes}.safetensors", weights)
        found = read_weights(path, model="regnety_002")
        assert_same_arrays(weights.variables, found.variables)
        assert found.card.class_names == ()
        assert found.card.arguments == ({} if classes else {"num_classes": 0})


# Checkpoints


def train_state(step):
    """A state of which raw weights, average and step can be told by the value of one scale."""
    params = {name: jnp.asarray(value, jnp.float32) for name, value in sample(TINY).variables.items()}
    params["norm.scale"] = jnp.full(6, step, jnp.float32)
    state = init_state(params, {}, {"momentum": jnp.zeros(2)}, keep_ema=True)
    average = state.ema | {"norm.scale": jnp.full(6, -step, jnp.float32)}
    return dataclasses.replace(state, step=jnp.int32(step), ema=average)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Steps 1, 2, 3; the second is the best. As a workdir it has a config.json, too."""
    directory = tmp_path_factory.mktemp("run")
    (directory / "config.json").write_text(json.dumps({"model": {"name": TINY}}))
    checkpoints = Checkpoints(directory / "checkpoints", aside=directory / "corrupt", keep=3)
    for step, top1 in ((1, 10.0), (2, 90.0), (3, 20.0)):
        checkpoints.save(train_state(step), {"card": sample(TINY).card.to_json()})
        checkpoints.judge(step, top1)
    checkpoints.close()
    return directory


@pytest.mark.parametrize(
    ("suffix", "ema", "scale"),
    [
        ("", None, -2),
        ("", False, 2),
        ("@latest", None, -3),
        ("@1", True, -1),
        ("#raw", None, 2),
        ("@3#raw", False, 3),
        ("@latest#ema", None, -3),
        ("/checkpoints", None, -2),
        ("/checkpoints@1#raw", None, 1),
        ("/checkpoints/1", None, -1),
        ("/checkpoints/3#raw", None, 3),
    ],
)
def test_checkpoints_are_chosen_by_step_and_kind(workdir, suffix, ema, scale):
    weights = read_weights(f"{workdir}{suffix}", ema=ema)
    assert weights.card == sample(TINY).card
    assert weights.variables.keys() == sample(TINY).variables.keys()
    assert set(weights.variables["norm.scale"]) == {scale}


@pytest.mark.parametrize(
    ("suffix", "message"),
    [
        ("@7", r"has no step 7; there are \[1, 2, 3\]"),
        ("@first", "is not there; name a workdir"),
        ("/checkpoints/2@1", "only a checkpoint directory has steps; leave out @1"),
        ("/checkpoints/7", "is not there"),
        ("/nothing", "is not there"),
    ],
)
def test_checkpoints_that_are_not_there(workdir, suffix, message):
    with pytest.raises(UserError, match=message):
        read_weights(f"{workdir}{suffix}")


def test_contradicting_choices_are_refused(workdir, tmp_path):
    with pytest.raises(UserError, match="asks for raw weights and a flag for the others"):
        read_weights(f"{workdir}#raw", ema=True)
    path = bare(tmp_path / "w.safetensors", sample(TINY))
    with pytest.raises(UserError, match="only a checkpoint directory has steps; leave out @3"):
        read_weights(f"{path}@3")
    with pytest.raises(UserError, match="no moving average"):
        read_weights(f"{path}#ema")


def test_a_file_may_have_signs_in_its_name(tmp_path):
    path = bare(tmp_path / "w@3#raw.safetensors", sample(TINY))
    assert_same_arrays(sample(TINY).variables, read_weights(path).variables)


def test_a_checkpoint_of_another_model_is_refused_by_our_names(workdir):
    with pytest.raises(UserError, match=r"3 missing: dist_token, head_dist\.bias, head_dist\.kernel; "):
        load_weights(abstract_model(DISTILLED, **SIZES), workdir)


def test_urls_and_empty_folders(tmp_path):
    for spec in (str(tmp_path), "https://example.org/w.safetensors", "s3://bucket/run"):
        with pytest.raises(UserError, match=r"neither checkpoints nor|is not there"):
            read_weights(spec)
    with pytest.raises(UserError, match="pretrained: of which model"):
        read_weights("pretrained")
    with pytest.raises(UserError, match="a: cannot be read: File name too long"):
        read_weights("a" * 5000)
    (tmp_path / "photos" / "0").mkdir(parents=True)  # of digits, say
    with pytest.raises(UserError, match="photos: has neither checkpoints nor"):
        read_weights(tmp_path / "photos")


def test_folders_with_checkpoints_of_other_programs(tmp_path, small):
    """Lightning's, and a model's folder that has such beside its weights."""
    inside = tmp_path / "lightning" / "checkpoints"
    (inside / "500").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{inside}: holds no steps of this package, but 500; name a workdir or a"):
        read_weights(tmp_path / "lightning")
    (inside / "epoch=0.ckpt").touch()
    with pytest.raises(UserError, match=rf"holds no steps .*, but 500, \.\.\.; name its .* as {inside}/epoch=0\.ckpt$"):
        read_weights(tmp_path / "lightning")
    bare(tmp_path / "lightning" / "model.safetensors", sample(TINY, image_size=20))
    (tmp_path / "lightning" / "config.json").write_text(json.dumps(TIMM_SAVED))
    assert read_weights(tmp_path / "lightning").card.class_names == ("cat", "dog", "eel")
    (tmp_path / "begun" / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match="has no finished checkpoint; train longer first"):
        read_weights(tmp_path / "begun")


def test_folders_of_timm(tmp_path, small):
    bare(tmp_path / "model.safetensors", sample(TINY, image_size=20))
    config = {
        "architecture": TINY,
        "num_classes": 3,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    config["pretrained_cfg"] |= {"crop_pct": 0.5, "input_size": [3, 20, 20]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_weights(tmp_path).card == Card(TINY, {"num_classes": 3}, (), HALF)


CONFIG = {"architecture": TINY, "num_classes": 3, "pretrained_cfg": {"input_size": [3, 20, 20]}}
CROPPED = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "input_size": [3, 20, 20]}


def test_folders_of_timm_whose_model_pools_the_patches(tmp_path, small):
    weights = sample(TINY, image_size=20, global_pool="avg")
    path = bare(tmp_path / "model.safetensors", weights)
    repeated = {"num_classes": 3, "img_size": 20}  # what the config says anyhow
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"global_pool": "avg", "model_args": repeated}))
    for found in (read_weights(tmp_path), read_weights(path, model=TINY)):
        assert found.card.arguments == {"num_classes": 3, "global_pool": "avg"}
        assert_same_arrays(weights.variables, found.variables)


# What timm 1.0.31's save_for_hf writes for a fine-tuned model, but for fields of no interest here.
TIMM_SAVED = {
    "architecture": TINY,
    "num_classes": 3,
    "num_features": 6,
    "global_pool": "token",
    "label_names": ["cat", "dog", "eel"],
    "model_args": {"in_chans": 3, "num_classes": 3, "global_pool": "token", "img_size": 20, "drop_path_rate": 0.1},
    "pretrained_cfg": CROPPED | {"fixed_input_size": True, "pool_size": None, "custom_load": False},
}


def test_folders_that_timm_saves_today(tmp_path, small):
    weights = sample(TINY, image_size=20)
    bare(tmp_path / "model.safetensors", weights)
    expected = Card(TINY, {"num_classes": 3}, ("cat", "dog", "eel"), Preprocessing((0.5,) * 3, (0.5,) * 3, 0.9))
    by_index = {"2": "eel", "0": "cat", "1": "dog"}
    cut = {name: value for name, value in TIMM_SAVED.items() if name != "label_names"}
    before = {name: value for name, value in cut.items() if name not in ("model_args", "pretrained_cfg")}
    ways = {
        "list": TIMM_SAVED,
        "by index": TIMM_SAVED | {"label_names": by_index},
        "in pretrained_cfg": cut | {"pretrained_cfg": CROPPED | {"label_names": by_index}},
        "early": before | CROPPED | {"labels": ["cat", "dog", "eel"]},
    }
    for way, config in ways.items():
        (tmp_path / "config.json").write_text(json.dumps(config))
        found = read_weights(tmp_path)
        assert found.card == expected, way
        assert_same_arrays(weights.variables, found.variables)
    (tmp_path / "config.json").write_text(json.dumps(TIMM_SAVED | {"label_names": {"0": "cat", "7": "dog"}}))
    assert read_weights(tmp_path).card.class_names == ()


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        ({"embed_dim": 12}, {"width": 12}),
        ({"num_heads": 1, "depth": 3, "patch_size": 5}, {"heads": 1, "depth": 3}),
        ({"fc_norm": None, "in_chans": 3, "weight_init": "jax", "strict_img_size": False}, {}),
    ],
)
def test_changes_of_a_model_that_timm_tells(small, arguments, changed):
    card = folders.timm_card(TIMM_SAVED | {"model_args": arguments}, "config.json")
    assert card.arguments == {"num_classes": 3, **changed}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"in_chans": 1}, "in_chans=1"), ({"qk_norm": True}, "qk_norm=True"), ({"fc_norm": True}, "fc_norm=True")],
)
def test_changes_that_no_network_here_has_are_refused(small, arguments, told):
    with pytest.raises(UserError, match=f"config.json: model_args has {told}, which cannot be read"):
        folders.timm_card(TIMM_SAVED | {"model_args": arguments}, "config.json")


@pytest.mark.parametrize("fields", [{"interpolation": "bilinear"}, {"crop_mode": "squash"}])
def test_what_timm_does_otherwise_to_images_is_told(tmp_path, small, caplog, fields):
    bare(tmp_path / "model.safetensors", sample(TINY, image_size=20))
    for given in ({}, fields):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"pretrained_cfg": CROPPED | given}))
        read_weights(tmp_path)
        assert ("the original resizes images" in caplog.text) == bool(given)


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": None},
        {"pretrained_cfg": 3},
        {"pretrained_cfg": CROPPED | {"mean": None}},
        {"pretrained_cfg": CROPPED | {"crop_pct": 1.1}},
        {"model_args": {"img_size": [20]}},
    ],
)
def test_nonsense_of_timm_is_one_line(tmp_path, small, fields):
    bare(tmp_path / "model.safetensors", sample(TINY, image_size=20))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | fields))
    with pytest.raises(UserError, match=r"config\.json: cannot be understood: .*; mend it"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config", {"hidden_size": "6"}),
        ("config", {"hidden_size": 0}),
        ("config", {"image_size": [10]}),
        ("config", {"id2label": ["a", "b", "c"]}),
        ("config", {"id2label": {"a": "b"}}),
        ("preprocessor_config", {"size": None}),
        ("preprocessor_config", {"crop_size": None}),
        ("preprocessor_config", {"size": [20, 20]}),
    ],
)
def test_nonsense_of_transformers_is_one_line(tmp_path, small, file, fields):
    folder = tmp_path / "hf"
    folders.write_folder(folder, sample(TINY, image_size=10))
    path = folder / f"{file}.json"
    content = json.loads(path.read_text())
    content.pop("deit_jax", None)
    path.write_text(json.dumps(content | fields))
    with pytest.raises(UserError, match=rf"{file}\.json: cannot be understood: .*; mend"):
        read_weights(folder)


def test_folders_that_lack_a_part(tmp_path, small, caplog):
    folder = tmp_path / "hf"
    folders.write_folder(folder, sample(TINY, image_size=10))
    (folder / "preprocessor_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    del config["deit_jax"]
    (folder / "config.json").write_text(json.dumps(config))
    assert read_weights(folder).card.preprocessing == Preprocessing()
    assert f"has no preprocessor_config.json; images are prepared as for {TINY}" in caplog.text
    # Of a model by another name they are those that go with the name.
    assert open_model(folder, model=VIT)[1].preprocessing == entry(VIT).preprocessing
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has config\.json but none of model\.safetensors, .*, pytorch_model\.bin"):
        read_weights(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"hf/config\.json: is no JSON: .*; fetch it anew"):
        read_weights(folder)


def test_gradients_flow_through_an_opened_model(tmp_path):
    """It is concrete: nothing of it is left abstract."""
    convert.write_timm(tmp_path / "w.safetensors", sample(TINY))
    model, _ = open_model(tmp_path / "w.safetensors")
    assert all(isinstance(value, jax.Array) and value.dtype == jnp.float32 for value in flatten(model).values())
