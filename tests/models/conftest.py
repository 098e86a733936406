"""What several test files of the models need."""

import functools
from collections.abc import Callable

import pytest
from flax import nnx

from deit_jax.models import abstract_model


@pytest.fixture(scope="session")
def outline() -> Callable[[str], nnx.Module]:
    """A model of the registry, abstract, by its name."""
    return functools.cache(abstract_model)
