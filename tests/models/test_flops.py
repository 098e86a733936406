"""Operations that are counted, against what authors published, hand-made numbers and XLA's own count."""

import jax
import jax.numpy as jnp
import pytest

from deit_jax.models import abstract_model, bind, flatten, forward_flops
from deit_jax.models.flops import product_flops

F32 = jnp.float32


def shape(*sides: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sides, F32)


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [  # arXiv:2003.13678, table 4 of the appendix; torchvision's documentation for ResNet-50
        *(("regnety_002", 0.2), ("resnet50", 4.09)),
        *(
            pytest.param(*published, marks=pytest.mark.long)
            for published in (
                *(("regnety_004", 0.4), ("regnety_008", 0.8), ("regnety_016", 1.6)),
                *(("regnety_032", 3.2), ("regnety_160", 15.9)),
            )
        ),
    ],
)
def test_convolutional_networks_have_the_published_count(name, gmacs):
    assert forward_flops(abstract_model(name)) / 2e9 == pytest.approx(gmacs, rel=0.01)


def test_a_larger_image_costs_more_without_changing_the_model():
    model = abstract_model("regnety_002")
    assert forward_flops(model, (448, 448)) / forward_flops(model) == pytest.approx(4, rel=0.01)
    assert model.image_size == (224, 224)


def test_products_and_convolutions_by_hand():
    assert product_flops(lambda x, y: x @ y, shape(5, 3), shape(3, 7)) == 2 * 5 * 3 * 7
    assert product_flops(lambda x, y: jnp.einsum("bij,bkj->bik", x, y), shape(2, 5, 3), shape(2, 7, 3)) == 420

    def grouped(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
        )

    # 2 x 4 x 4 places, 12 outputs, each of 3 x 3 pixels of the 2 channels of its group.
    assert product_flops(grouped, shape(2, 7, 8, 6), shape(3, 3, 2, 12)) == 2 * (2 * 4 * 4) * 12 * (3 * 3 * 2)


def test_loops_count_each_turn_and_branches_the_dearer_one():
    def repeated(x: jax.Array, y: jax.Array) -> jax.Array:
        x, _ = jax.lax.scan(lambda x, _: (jax.jit(jnp.dot)(x, y), None), x, length=11)
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ y @ y, lambda: x)

    assert product_flops(repeated, shape(5, 3), shape(3, 3)) == (11 + 2) * 2 * 5 * 3 * 3


@pytest.mark.long
def test_xla_counts_nearly_the_same():
    """It leaves out what is padded, and counts normalisation and activations."""
    model, images = abstract_model("regnety_016"), shape(1, 224, 224, 3)
    lowered = jax.jit(lambda variables, x: bind(model, variables).head_logits(x)).lower(flatten(model), images)
    assert lowered.cost_analysis()["flops"] == pytest.approx(forward_flops(model), rel=0.02)
