"""ResNet against transformers', ResNet-50's names and size, and what its options do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convnets import abstract, assert_golden, count
from flax import nnx

from deit_jax.models import bind, flatten
from deit_jax.models.resnet import ResNet

SMALL = {"image_size": (39, 45), "num_classes": 13, "depths": (1, 2, 3, 1), "widths": (3, 5, 7, 11), "stem_width": 5}
SHALLOW = SMALL | {"depths": (2,), "widths": (3,)}


def test_logits_and_statistics_are_transformers():
    assert_golden(abstract(ResNet, **SMALL), "resnet.npz")


def test_resnet50_has_timms_names_and_size():
    net = abstract(ResNet)
    shapes = {path: value.shape for path, value in flatten(net).items()}
    assert count(net) == 25_557_032
    assert shapes["conv1.kernel"] == (7, 7, 3, 64)
    assert shapes["bn1.mean"] == (64,)
    assert shapes["layer1.0.downsample.0.kernel"] == (1, 1, 64, 256)
    assert shapes["layer1.0.downsample.1.var"] == (256,)
    assert shapes["layer3.5.conv2.kernel"] == (3, 3, 256, 256)
    assert shapes["layer4.2.bn3.scale"] == (2048,)
    assert shapes["fc.kernel"] == (2048, 1000)
    assert "layer1.1.downsample.0.kernel" not in shapes


@pytest.mark.long
def test_initial_weights():
    net = ResNet(**SHALLOW, rngs=nnx.Rngs(0))
    assert not any(value.any() for path, value in flatten(net).items() if path.endswith("bn3.scale"))
    x = jax.random.uniform(jax.random.key(0), (2, 3, 5, 12))
    np.testing.assert_array_equal(net.layer1[1](x, train=False), x)
    for value in (net.fc.kernel[...], net.fc.bias[...]):
        assert 0.6 / 12**0.5 < float(abs(value).max()) <= 1 / 12**0.5
        assert float(value.min()) < 0


def test_num_classes_0_gives_pooled_features():
    net = abstract(ResNet, **SMALL | {"num_classes": 0})
    assert not [path for path in flatten(net) if path.startswith("fc")]
    assert jax.eval_shape(lambda v: bind(net, v)(jnp.zeros((2, 39, 45, 3))), flatten(net)).shape == (2, 44)


def test_the_cifar_stem_is_one_small_convolution():
    net = abstract(ResNet, **SMALL | {"stem": "cifar", "image_size": 32})
    assert flatten(net)["conv1.kernel"].shape == (3, 3, 3, 5)
    scales = [None] * 7
    features = jax.eval_shape(
        lambda v, x: bind(net, v).features(x, scales, train=False), flatten(net), jnp.zeros((1, 32, 32, 3))
    )
    assert features.shape == (1, 4, 4, 44)


def test_a_dropped_branch_leaves_the_shortcut():
    block = ResNet(**SHALLOW, rngs=nnx.Rngs(0)).layer1[1]
    block.bn3.scale[...] = jnp.ones(12)
    x = jax.random.uniform(jax.random.key(0), (2, 3, 5, 12))
    out = block(x, jnp.array([0.0, 1.0]), train=False)
    np.testing.assert_array_equal(out[0], x[0])
    assert abs(out[1] - x[1]).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "small"}, "stem 'small' is none of imagenet, cifar"),
        ({"drop_path": -0.1}, r"drop_path -0.1 is not in \[0, 1\)"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        abstract(ResNet, **SMALL | options)
