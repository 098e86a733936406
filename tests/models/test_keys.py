"""What is drawn with `Keys` is what `nnx.Rngs` draws, whatever the compiler is shown."""

import jax
import numpy as np
import pytest
from flax import nnx

from deit_jax.models import Keys, create_model, flatten


def test_keys_are_those_of_flax():
    ours, flax = Keys(jax.random.key(7)), nnx.Rngs(jax.random.key(7))
    for _ in range(3):
        np.testing.assert_array_equal(jax.random.key_data(ours.params()), jax.random.key_data(flax.params()))


@pytest.mark.parametrize(
    ("depth", "more"), [pytest.param(3, {}, marks=pytest.mark.long), (1, {"layer_scale": 1e-4, "distilled": True})]
)
def test_blocks_drawn_in_a_loop_are_those_drawn_one_by_one(depth, more):
    size = {"image_size": 16, "patch_size": 8, "width": 8, "heads": 2, "num_classes": 3}

    def draw(rngs):
        return flatten(create_model("deit_tiny_patch16_224", depth=depth, rngs=rngs, **size, **more))

    one_by_one = draw(nnx.Rngs(jax.random.key(7)))
    in_a_loop = jax.jit(lambda: draw(Keys(jax.random.key(7))))()
    assert in_a_loop.keys() == one_by_one.keys()
    for path, value in one_by_one.items():
        np.testing.assert_allclose(in_a_loop[path], value, rtol=1e-6, err_msg=path)
