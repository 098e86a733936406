"""The papers' recipes, each with a tiny network on a few photos: their whole transform, mixing, loss and optimizer."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from deit_jax import cli
from deit_jax.config.resolve import for_platform, resolve
from deit_jax.data.memory import MemorySource
from deit_jax.run.build import build, open_mesh

CONFIGS = Path(__file__).parents[2] / "configs"
BATCH, CLASSES = 32, 10
RECIPES = [
    "deit_base.py",
    "deit_distilled.py",
    "finetune_384.py",
    "deit3.py:model=small",
    "deit3_finetune.py:model=small",
    "deit3_21k.py:model=base",
    "transfer_published.py:target=cars",
    "transfer_published.py:target=inat18",
    "vit_s16_90ep.py",
]


def load(name: str) -> ConfigDict:
    config = cli.parse_with_config("", lambda values: None, [f"--config={CONFIGS}/{name}"])[1]
    config.mixing.group = max(2, BATCH * config.mixing.group // config.batch_size)
    config.batch_size = BATCH
    config.model.update(patch_size=8, width=24, depth=2, heads=3, dtype="float32", attention="einsum")
    config.data.update(image_size=32, threads=0, prefetch=0)
    return config


@pytest.fixture(scope="module")
def photos():
    images = np.random.default_rng(0).integers(0, 256, (300, 40, 56, 3), np.uint8)
    return MemorySource(images, np.arange(300) % CLASSES, [str(i) for i in range(CLASSES)])


@pytest.mark.long
@pytest.mark.parametrize("name", RECIPES)
def test_a_tiny_network_takes_its_first_steps(photos, name):
    """From the loss of a network that knows nothing; by the third all have moved but scales, where 1 + 1e-8 is 1."""
    config = for_platform(resolve(load(name)), "cpu")
    run = build(config, open_mesh(config), photos)
    taught = config.distillation.kind != "none"
    knowing = lambda variables, images, recorded: jax.nn.one_hot(recorded["labels"], CLASSES)  # noqa: E731
    step = run.train_step(knowing if taught else None)
    state, losses = run.first_state(), []
    before = jax.device_get(state.params)
    for batch, _ in run.batches(0, 3):
        assert batch["image"].shape == (BATCH, 32, 32, 3)
        assert ("erasing" in batch) == (config.erasing.probability > 0)
        state, metrics = step(state, batch | {"teacher": {"labels": batch["label"]} if taught else {}}, np.uint32(0))
        losses.append(float(metrics["loss"]))
    unknowing = {"cross_entropy": math.log(CLASSES), "binary_cross_entropy": math.log(2)}[config.loss.kind]
    assert losses[0] == pytest.approx(unknowing, abs=0.1)
    assert np.isfinite(losses).all()
    moving = [path for path in run.rates if not path.endswith(".scale")]
    assert [path for path in moving if np.array_equal(before[path], state.params[path])] == []
