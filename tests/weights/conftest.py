"""Fixtures for the tests of weights."""

import dataclasses

import pytest

from deit_jax.models import entry, registry


@pytest.fixture
def small(monkeypatch):
    """The registry's models with small networks, so that a file without a card can be of one of them."""
    tiny = ("deit_tiny_patch16_224", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224")
    for name in (*tiny, "deit3_small_patch16_224"):
        known = entry(name)
        arguments = known.arguments | {"width": 6, "depth": 2, "heads": 2, "patch_size": 5, "image_size": 20}
        small = dataclasses.replace(known, arguments=arguments)
        monkeypatch.setitem(registry.MODELS, name, small)
