"""Numbers that size a network are bounded, wherever they come from."""

import pytest
from flax import nnx

from deit_jax.base.errors import UserError
from deit_jax.models import create_model, list_models, resolve


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("deit_tiny_patch16_224", {"depth": 257}, "depth is 257, which is more than the 256 that"),
        ("deit_tiny_patch16_224", {"width": 10**9}, "width is 1,000,000,000, which is more than the 16,384"),
        ("deit_tiny_patch16_224", {"heads": 1025}, "heads is 1,025"),
        ("deit_tiny_patch16_224", {"mlp_ratio": 65.0}, "mlp_ratio is 65.0"),
        ("deit_tiny_patch16_224", {"num_classes": 10**6 + 1}, "num_classes is 1,000,001"),
        ("deit_tiny_patch16_224", {"image_size": (16, 8208)}, "image_size is 8,208"),
        (
            "deit_tiny_patch16_224",
            {"image_size": 4112, "patch_size": 16},
            "image_size 4112 at patch_size 16 makes 66,049 patches",
        ),
        ("deit_tiny_patch16_224", {"image_size": (224,) * 17}, "image_size has 17 numbers"),
        ("deit_tiny_patch16_224", {"pre_logits": 20_000}, "pre_logits is 20,000"),
        ("resnet50", {"depths": (64, 64, 64, 65)}, "depths is 257"),
        ("resnet50", {"depths": (-1000, 1000, 257, 1)}, "depths is 1,258"),
        ("resnet50", {"widths": (64, 64, 64, 16_385)}, "widths is 16,385"),
        ("regnety_002", {"stem_width": 16_385}, "stem_width is 16,385"),
        ("regnety_002", {"depths": (1,) * 17}, "depths has 17 numbers"),
    ],
)
def test_numbers_that_would_take_all_time_or_memory_are_refused(name, arguments, line):
    for build in (resolve, lambda name, given: create_model(name, rngs=nnx.Rngs(0), **given)):
        with pytest.raises(UserError, match=f"^{line}"):
            build(name, arguments)


def test_what_published_networks_have_is_far_from_the_bounds():
    """And the largest Vision Transformer (arXiv:2302.05442), the finest patches, the most classes."""
    for name in list_models():
        resolve(name, {"num_classes": 100_000, "image_size": 1024})
    resolve("vit_large_patch16_224", {"width": 6144, "depth": 48, "heads": 48, "image_size": 1024, "patch_size": 4})
