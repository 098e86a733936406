"""Full-size models against Hugging Face transformers on torch, with random weights: `make parity`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_samples import sample

from deit_jax import convert
from deit_jax.data.transforms import eval_transform
from deit_jax.models import Preprocessing, bind, flatten
from deit_jax.weights import Card, Weights, folders, open_model, processors, read_weights, tables

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

TINY = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_labels": 1000}
BATCH = 2


@pytest.fixture(scope="module", params=["ViTForImageClassification", "DeiTForImageClassificationWithTeacher"])
def theirs(request, tmp_path_factory):
    """A model of transformers at deit_tiny's size, and the folder that it was saved to."""
    kind = request.param.partition("For")[0]
    config = getattr(transformers, f"{kind}Config")(**TINY, attn_implementation="eager")
    model = getattr(transformers, request.param)(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "layernorm" in name and name.endswith("weight") else 0.0
            spread = 0.02 if parameter.ndim > 1 and "embeddings" not in name else 0.2
            parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def examples():
    random = np.random.default_rng(0)
    return random.normal(size=(BATCH, 224, 224, 3)).astype(np.float32), random.integers(1000, size=BATCH)


def torch_logits(model, images):
    return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits


def test_logits_and_gradients(theirs, examples):
    model, folder = theirs
    images, labels = examples
    ours, card = open_model(folder)
    assert card.model == (
        "deit_tiny_patch16_224" if "vit" in model.config.model_type else "deit_tiny_distilled_patch16_224"
    )
    assert card.arguments == {"norm_eps": 1e-12}

    @jax.jit
    def run(params):
        def loss(params):
            logits = bind(ours, params)(images)
            return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(BATCH), labels]), logits

        (_, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, grads

    logits, grads = jax.device_get(run(flatten(ours)))
    expected = torch_logits(model, images)
    loss = torch.nn.functional.cross_entropy(expected, torch.from_numpy(labels))
    model.zero_grad()
    loss.backward()
    expected = expected.detach().numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())

    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    ours = dict(tables.scatter(grads, tables.best_scheme(gradients, grads)))
    assert ours.keys() == gradients.keys()
    worst = {}
    for name, gradient in gradients.items():
        if name.endswith("k_proj.bias"):  # zero but for rounding: a constant added to a row of scores changes nothing
            np.testing.assert_allclose(ours[name], 0, rtol=0, atol=1e-6)
            np.testing.assert_allclose(gradient, 0, rtol=0, atol=1e-6)
        else:
            worst[name] = np.abs(ours[name] - gradient).max() / np.abs(gradient).max()
    assert max(worst.values()) < 1e-4, max(worst.items(), key=lambda item: item[1])


def test_what_is_written_loads_into_transformers(theirs, examples, tmp_path):
    """Every tensor finds its place, and the logits are the same to the last bit."""
    model, folder = theirs
    convert.main([str(folder), str(tmp_path / "orbax")])
    convert.main([str(tmp_path / "orbax"), str(tmp_path / "hf"), "--format=hf"])
    again, report = type(model).from_pretrained(tmp_path / "hf", attn_implementation="eager", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        np.testing.assert_array_equal(torch_logits(again.eval(), examples[0]), torch_logits(model, examples[0]))


def test_transformers_keeps_our_card_and_we_believe_it_only_while_it_is_true(tmp_path):
    crop = Preprocessing((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.875)
    weights = sample("vit_tiny_patch16_224", image_size=65)
    weights = Weights(weights.variables, dataclasses.replace(weights.card, preprocessing=crop))
    folders.write_folder(tmp_path / "ours", weights)
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    transformers.DeiTImageProcessorPil.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert read_weights(tmp_path / "theirs").card == weights.card
    tuned = transformers.ViTForImageClassification.from_pretrained(
        tmp_path / "ours", num_labels=2, ignore_mismatched_sizes=True
    )
    tuned.save_pretrained(tmp_path / "tuned")
    card = read_weights(tmp_path / "tuned").card
    assert (card.arguments["num_classes"], card.class_names) == (2, ())


@pytest.mark.parametrize("crop_ratio", [0.875, 0.9, 1.0])
def test_images_are_prepared_as_our_evaluation_prepares_them(tmp_path, crop_ratio):
    preprocessing = Preprocessing(crop_ratio=crop_ratio)
    card = Card("deit_tiny_patch16_224", {}, (), preprocessing)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processors.processor_of(card)))
    processor = transformers.DeiTImageProcessorPil.from_pretrained(tmp_path)
    for shape in ((300, 400, 3), (401, 333, 3), (225, 224, 3)):
        photo = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        theirs = processor(photo, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        ours = eval_transform(photo, size=224, crop_ratio=crop_ratio) / 255
        ours = (ours - np.array(preprocessing.mean)) / np.array(preprocessing.std)
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)


def test_names_in_memory_are_read_too(theirs, tmp_path):
    model, folder = theirs
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    memory, published = read_weights(tmp_path), read_weights(folder)
    assert memory.variables.keys() == published.variables.keys()
    for path, value in published.variables.items():
        np.testing.assert_array_equal(memory.variables[path], value)
