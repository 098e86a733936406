"""What several test files of the models need."""

import pytest
from flax import nnx

from deit_jax.models import abstract_model, list_models


@pytest.fixture(scope="session")
def all_models() -> dict[str, nnx.Module]:
    """Every model of the registry, abstract, by name."""
    return {name: abstract_model(name) for name in list_models()}
