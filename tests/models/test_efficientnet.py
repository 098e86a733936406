"""EfficientNet-Lite against a small independent one in torch, and the published names and sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convnets import abstract, assert_golden, count
from flax import nnx

from deit_jax.models import bind, flatten
from deit_jax.models.efficientnet import EfficientNetLite

SMALL = {
    "image_size": (37, 46),
    "num_classes": 13,
    "depths": (1, 2, 1, 1, 2, 1, 1),
    "widths": (3, 5, 4, 7, 7, 6, 9),
    "stem_width": 3,
    "head_width": 17,
}
ALIKE = SMALL | {"depths": (1,) * 7, "widths": (3,) * 7}
DEEPER = {"depths": (1, 3, 3, 4, 4, 5, 1)}
PUBLISHED = {
    "lite0": ({}, 4_652_008),
    "lite1": (DEEPER, 5_416_680),
    "lite2": (DEEPER | {"widths": (16, 24, 48, 88, 120, 208, 352)}, 6_092_072),
}


def test_logits_and_statistics_are_torchs():
    """Its stages cover a first block that adds its input though it may be the stage's first, and odd and even sizes."""
    assert_golden(abstract(EfficientNetLite, **SMALL), "efficientnet.npz")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_sizes(name):
    arguments, parameters = PUBLISHED[name]
    assert count(abstract(EfficientNetLite, **arguments)) == parameters


def test_parameters_have_timms_names():
    shapes = {path: value.shape for path, value in flatten(abstract(EfficientNetLite)).items()}
    assert shapes["conv_stem.kernel"] == (3, 3, 3, 32)
    assert shapes["blocks.0.0.conv_dw.kernel"] == (3, 3, 1, 32)
    assert shapes["blocks.0.0.conv_pw.kernel"] == (1, 1, 32, 16)
    assert shapes["blocks.2.0.conv_pw.kernel"] == (1, 1, 24, 144)
    assert shapes["blocks.2.0.conv_dw.kernel"] == (5, 5, 1, 144)
    assert shapes["blocks.5.3.conv_pwl.kernel"] == (1, 1, 1152, 192)
    assert shapes["blocks.6.0.bn3.var"] == (320,)
    assert shapes["bn2.mean"] == (1280,)
    assert shapes["classifier.kernel"] == (1280, 1000)


@pytest.mark.long
def test_initial_weights():
    net = EfficientNetLite(**ALIKE, rngs=nnx.Rngs(0))
    assert all(value.all() for path, value in flatten(net).items() if path.endswith("scale"))
    assert 0.9 / 13**0.5 < float(abs(net.classifier.kernel[...]).max()) <= 1 / 13**0.5
    assert not net.classifier.bias[...].any()


def test_num_classes_0_gives_pooled_features():
    net = abstract(EfficientNetLite, **SMALL | {"num_classes": 0})
    assert not [path for path in flatten(net) if path.startswith("classifier")]
    assert jax.eval_shape(lambda v: bind(net, v)(jnp.zeros((2, 37, 46, 3))), flatten(net)).shape == (2, 17)


def test_a_dropped_branch_leaves_the_shortcut():
    net = EfficientNetLite(**ALIKE, rngs=nnx.Rngs(0))
    x = jax.random.uniform(jax.random.key(0), (2, 3, 5, 3))
    out = net.blocks[4][0](x, jnp.array([0.0, 1.0]), train=False)
    np.testing.assert_array_equal(out[0], x[0])
    assert abs(out[1] - x[1]).max() > 0.1


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="6 depths and 7 widths: there are 7 stages"):
        abstract(EfficientNetLite, **SMALL | {"depths": (1, 2, 1, 1, 2, 1)})
