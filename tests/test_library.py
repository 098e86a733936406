"""A trained model, and training, from Python: the same answers as the commands give, and no wrong ones."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tiny import tiny_config
from trained_models import (
    CLASSES,
    DEPTH,
    HEADS,
    IMAGES_AND_CLASSES,
    NAMES,
    PATCH,
    PREPROCESSING,
    SIZE,
    WIDTH,
    photo,
    small_convnet,
    small_model,
    stand_in,
)

import deit_jax
from deit_jax import library, predict
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.config import recipes
from deit_jax.config.resolve import for_platform, resolve, to_dict
from deit_jax.data.transforms import eval_transform
from deit_jax.models import abstract_model, create_model, flatten, list_models
from deit_jax.models.inputs import check_images
from deit_jax.run.interrupt import Interrupt, Interrupted
from deit_jax.weights import Card
from deit_jax.weights.orbax import write_variables

DOCS = Path(__file__).parents[1] / "docs"
MODEL = "deit_tiny_distilled_patch16_224"
TOKENS = 2 + (SIZE // PATCH) ** 2


def opened(monkeypatch, model=None, name=MODEL, **fields):
    stand_in(monkeypatch, model or small_model(MODEL), Card(name, IMAGES_AND_CLASSES, NAMES, PREPROCESSING, **fields))
    return deit_jax.open("w")


@pytest.fixture(scope="module")
def classifier():
    """One for all, which so compiles once."""
    with pytest.MonkeyPatch.context() as patch:
        return opened(patch)


@pytest.fixture
def photos(tmp_path):
    """Files of every odd kind, and what they hold as Pillow images."""
    colours = Image.fromarray(photo(50, 40, 1))
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray((photo(44, 60, 2)[..., 0].astype(np.uint16) << 8) + 7)
    kinds = {
        "plain.png": (colours, {}),
        "grey.png": (colours.convert("L"), {}),
        "cmyk.jpg": (colours.convert("CMYK"), {"quality": 90}),
        "exif.jpg": (colours, {"exif": turned, "quality": 90}),
        "deep.png": (deep, {}),
        "alpha.png": (colours.convert("RGBA"), {}),
        "palette.png": (colours.convert("P"), {}),
        "one.png": (colours.crop((0, 0, 1, 1)), {}),
        "panorama.png": (colours.resize((900, 30)), {}),
        "bits.png": (colours.convert("1"), {}),
    }
    for name, (image, options) in kinds.items():
        image.save(tmp_path / name, **options)
    return [str(tmp_path / name) for name in kinds]


def test_photos_are_told_as_the_command_tells_them(classifier, photos, monkeypatch, capsys):
    stand_in(monkeypatch, classifier.model, classifier.card)
    assert predict.main(["--weights=w", "--json", "--top=11", *photos]) == 0
    told = [json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines()]
    ours = classifier(photos)
    for path, said, mine in zip(photos, told, ours, strict=True):
        by_class = {entry["class"]: entry["probability"] for entry in said}
        np.testing.assert_allclose(mine.probabilities, [by_class[name] for name in NAMES], rtol=1e-5, atol=1e-7)
        assert [name for name, _ in mine.top(3)] == [entry["name"] for entry in said[:3]]
        assert mine.name == said[0]["name"]
        assert mine.probability == pytest.approx(said[0]["probability"], rel=1e-5)
        alone = classifier(path)
        np.testing.assert_allclose(alone.probabilities, mine.probabilities, rtol=1e-5, atol=1e-7)
    assert classifier.names == NAMES
    assert classifier.name == MODEL


def test_images_in_memory_are_those_of_their_files(classifier, photos):
    for path in photos:
        with Image.open(path) as image:
            np.testing.assert_array_equal(classifier.preprocess(image), classifier.preprocess(path), err_msg=path)
    with Image.open(photos[0]) as image:
        pixels, from_file = np.asarray(image), classifier.preprocess(photos[0])
    expected = eval_transform(pixels, size=SIZE, crop_ratio=PREPROCESSING.crop_ratio)
    np.testing.assert_array_equal(from_file, expected)
    opaque = np.concatenate([pixels, np.full((*pixels.shape[:2], 1), 9, np.uint8)], axis=2)
    for array in (pixels, opaque):
        np.testing.assert_array_equal(classifier.preprocess(array), from_file)
    grey = np.repeat(pixels[..., :1], 3, axis=2)
    for array in (pixels[..., 0], pixels[..., :1]):
        np.testing.assert_array_equal(classifier.preprocess(array), classifier.preprocess(grey))
    assert classifier([pixels, photos[1]])[0].probabilities == pytest.approx(classifier(pixels).probabilities, rel=1e-5)
    assert str(classifier(pixels)).count("%") == 3


def test_probabilities_are_the_models_for_any_number_of_photos(classifier, monkeypatch):
    monkeypatch.setattr("deit_jax.classifier.AT_ONCE", 4)
    shown = [photo(SIZE, SIZE, seed) for seed in range(11)]
    images = np.stack([classifier.preprocess(each) for each in shown]) / np.float32(255)
    normalised = (images - np.float32(PREPROCESSING.mean)) / np.float32(PREPROCESSING.std)
    expected = jax.nn.softmax(classifier.model(jnp.asarray(normalised)))
    told = classifier(shown)
    np.testing.assert_allclose([each.probabilities for each in told], expected, rtol=2e-5, atol=1e-7)


def test_features_are_what_the_head_classifies_and_layers_what_comes_before(classifier):
    shown = [photo(SIZE, SIZE, seed) for seed in range(3)]
    pooled = classifier.features(shown)
    model = classifier.model
    normalised = classifier.normalize(jnp.stack([classifier.preprocess(each) for each in shown]))
    expected = np.mean(jax.jit(model.head_features)(normalised), axis=0)
    np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)
    assert classifier.features(shown[0]).shape == (WIDTH,)
    for layer in (DEPTH - 1, -1):  # one program
        tokens = classifier.features(shown, layer=layer)
        assert tokens.shape == (3, TOKENS, WIDTH)
        np.testing.assert_allclose(
            np.asarray(model.norm(jnp.asarray(tokens)))[:, :2].mean(axis=1), pooled, rtol=1e-5, atol=1e-5
        )
    first = classifier.features(shown[1], layer=0)
    expected = jax.jit(lambda images: model.blocks[0](model._embed(images)))(normalised)
    np.testing.assert_allclose(first, expected[1], rtol=1e-5, atol=1e-5)


def test_attention_is_the_models(classifier):
    shown = photo(SIZE, SIZE, 1)
    maps = classifier.attention(shown)
    assert maps.shape == (DEPTH, HEADS, TOKENS, TOKENS)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-5)
    expected = jax.jit(classifier.model.attention_maps)(
        classifier.normalize(jnp.asarray(classifier.preprocess(shown)[None]))
    )
    np.testing.assert_allclose(maps, expected[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no.jpg", r"^no\.jpg: No such file or directory$"),
        (np.zeros((9, 9, 3)), r"is float64 \[9, 9, 3\]; give a path, a Pillow image, or uint8 of values from 0 to 255"),
        (np.zeros((9, 9, 2), np.uint8), r"is uint8 \[9, 9, 2\]; give \[height, width\]"),
        (np.zeros((0, 9, 3), np.uint8), r"is uint8 \[0, 9, 3\]; give"),
        ([], "no photos: the list is empty"),
        (Image.new("F", (9, 9)), "has Pillow's mode F, in which white may be anything; convert it to L or RGB"),
        (Image.new("I", (9, 9)), "has Pillow's mode I, in which"),
    ],
)
def test_what_is_no_photo(classifier, given, message):
    with pytest.raises(UserError, match=message):
        classifier(given)


def test_what_a_model_does_not_have(monkeypatch, classifier):
    for layer in (DEPTH, -DEPTH - 1):
        with pytest.raises(UserError, match=f"layer: {layer} is none of the model's {DEPTH}; give 0 to 2, or -1"):
            classifier.features(photo(9, 9, 0), layer=layer)
    convolutional = opened(monkeypatch, small_convnet(), "regnety_002")
    with pytest.raises(UserError, match="layer: is for Vision Transformers"):
        convolutional.features(photo(9, 9, 0), layer=0)
    with pytest.raises(UserError, match="regnety_002 has no attention"):
        convolutional.attention(photo(9, 9, 0))
    headless = opened(monkeypatch, problem_type="regression")
    with pytest.raises(UserError, match="has no head that tells classes; take its features"):
        headless(photo(9, 9, 0))


def test_damaged_weights_are_not_answered_with(monkeypatch):
    model = small_model(MODEL)
    model.head.bias = nnx.Param(jnp.full(CLASSES, jnp.nan))
    with pytest.raises(UserError, match="its output is not finite; the weights are damaged"):
        opened(monkeypatch, model)(photo(9, 9, 0))


@pytest.mark.parametrize("model", [small_model, small_convnet])
def test_a_bare_model_takes_normalised_images_alone(model):
    model, shown = model(), photo(SIZE, SIZE, 0)[None]
    with pytest.raises(ValueError, match=r"images of float32, up to 25\d: this model takes normalised ones"):
        model(shown.astype(np.float32))
    with pytest.raises(ValueError, match=r"images of uint8, up to 25\d: this model takes normalised ones"):
        check_images(shown, (SIZE, SIZE))  # which here the tests' own types keep from the model
    with pytest.raises(ValueError, match="images of uint8: this model takes normalised ones"):
        jax.jit(lambda images: check_images(images, (SIZE, SIZE)))(shown)
    check_images(np.full((1, SIZE, SIZE, 3), -3.0, np.float32), (SIZE, SIZE))
    constant = jnp.asarray(shown, jnp.float32)
    with pytest.raises(ValueError, match=r"up to 25\d"):
        jax.jit(lambda: check_images(constant, (SIZE, SIZE)))()


def test_any_config_that_can_be_meant_is_trained(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(library.training, "train", lambda *given: calls.append(given) or {"top1": 1.0})
    monkeypatch.setattr(library.evaluation, "evaluate", lambda *given: calls.append(given) or {"top1": 2.0})
    recipe = recipes.digits("deit_tiny_patch16_224")
    config = for_platform(resolve(recipe), "cpu")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    (tmp_path / "own.py").write_text(
        "from deit_jax import recipes\ndef get_config():\n    return recipes.digits('deit_tiny_patch16_224')\n"
    )
    for given in (recipe, recipe.to_dict(), resolve(recipe), tmp_path / "own.py", str(tmp_path / "config.json")):
        assert deit_jax.train(given, tmp_path) == {"top1": 1.0}
    assert deit_jax.evaluate(None, tmp_path) == {"top1": 2.0}
    assert calls == [(config, tmp_path)] * 6
    for error in (Interrupted("saved"), TryAgain("saved")):
        monkeypatch.setattr(library.training, "train", Mock(side_effect=error))
        with pytest.raises(deit_jax.TryAgain, match=r"^saved$"):
            deit_jax.train(recipe, tmp_path)
    with pytest.raises(UserError, match=r"config\.seed: is -1, should be"):
        deit_jax.train({**to_dict(config), "seed": -1}, tmp_path)


def test_a_run_in_another_thread_hears_no_signals():
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: Interrupt().__enter__().__exit__(None, None, None)).result() is None


@pytest.mark.long
def test_a_run_from_python(tmp_path):
    result = deit_jax.train(to_dict(tiny_config()), tmp_path / "run")
    evaluated = deit_jax.evaluate(None, str(tmp_path / "run"))
    assert evaluated == {name: result[name] for name in evaluated}
    classifier = deit_jax.open(tmp_path / "run")
    assert classifier(photo(8, 8, 0)).name in classifier.names == tuple("0123456789")


def test_models_by_pattern_tag_and_without_a_draw():
    assert list_models("*distilled*") == [name for name in list_models() if "distilled" in name] != []
    assert list_models("nothing*") == []
    sizes = {"width": 24, "heads": 3, "depth": 1}
    model = deit_jax.create_model("deit_tiny_patch16_224.fb_in1k", **sizes)
    expected = create_model("deit_tiny_patch16_224", rngs=nnx.Rngs(0), **sizes)
    jax.tree.map(np.testing.assert_array_equal, flatten(model), flatten(expected))
    with pytest.raises(
        UserError, match=r"unknown weights 'deit_tiny_patch16_224\.x'; those known here are .*\.fb_in1k"
    ):
        deit_jax.create_model("deit_tiny_patch16_224.x", **sizes)
    with pytest.raises(UserError, match="unknown model 'deit_tinny'"):
        deit_jax.create_model("deit_tinny.fb_in1k")


def test_weights_alone_give_the_model_that_they_are_of(tmp_path):
    sizes = {"width": 24, "heads": 3, "depth": 1, "num_classes": 3, "image_size": 32}
    variables = flatten(create_model("deit_tiny_patch16_224", rngs=nnx.Rngs(1), **sizes))
    card = Card("deit_tiny_patch16_224", sizes, ("dress", "hat", "shoes"))
    write_variables(tmp_path / "run" / "checkpoints", variables, {"card": card.to_json()})
    model = deit_jax.load_weights(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, flatten(model), variables)
    assert (model.num_classes, model.image_size) == (3, (32, 32))
    with pytest.raises(UserError, match="load_weights: deit_tiny_patch16_224 is no module"):
        deit_jax.load_weights("deit_tiny_patch16_224", tmp_path / "run")
    with pytest.raises(UserError, match=r"build the model that it is of, or let load_weights\(path\) do so"):
        deit_jax.load_weights(abstract_model("deit_tiny_patch16_224", **sizes | {"num_classes": 10}), tmp_path / "run")


@pytest.mark.long
def test_the_docs_run_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = {"width": 24, "heads": 3, "depth": 2, "num_classes": 3}
    variables = flatten(create_model("deit_tiny_patch16_224", rngs=nnx.Rngs(1), **sizes))
    card = Card("deit_tiny_patch16_224", sizes, ("dress", "hat", "shoes"))
    write_variables(tmp_path / "runs" / "transfer" / "checkpoints", variables, {"card": card.to_json()})
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(photo(60, 50, 0)).save(name)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "library.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    there = {}
    for block in blocks:
        exec(block, there)
    assert there["vectors"].shape == (2, 24)
    assert there["tokens"].shape == (197, 24)
    assert there["maps"].shape == (2, 3, 197, 197)
    assert there["logits"].shape == (1, 10)
