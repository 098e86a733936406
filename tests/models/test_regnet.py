"""RegNetY against transformers', the published sizes, and what its options do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convnets import abstract, assert_golden, count, golden, shallow
from flax import nnx

from deit_jax.models import bind, flatten
from deit_jax.models.regnet import RegNet

SMALL = {
    "image_size": (37, 45),
    "num_classes": 13,
    "depths": (1, 2, 10, 1),
    "widths": (6, 9, 12, 21),
    "group_width": 3,
    "stem_width": 5,
}
# The golden file's first three blocks.
SHALLOW = SMALL | {"depths": (1, 2), "widths": (6, 9), "num_classes": 0}
# From the paper's figures 16 and 17: depth, w0, wa, wm and group width; and the parameters that timm's models have.
PUBLISHED = {
    "002": (13, 24, 36.44, 2.49, 8, 3_162_996),
    "004": (16, 48, 27.89, 2.09, 8, 4_344_144),
    "008": (14, 56, 38.84, 2.4, 16, 6_263_168),
    "016": (27, 48, 20.71, 2.65, 24, 11_202_430),
    "032": (21, 80, 42.63, 2.66, 24, 19_436_338),
    "160": (18, 200, 106.23, 2.48, 112, 83_590_140),
}


def stages(depth, initial, slope, factor, group):
    """Depths and widths by section 3.3: w0 wm^s with s = round(log_wm(u / w0)) and u = w0 + wa i, a multiple of 8; and
    then of the group width."""
    exponents = np.round(np.log((initial + slope * np.arange(depth)) / initial) / np.log(factor))
    widths, depths = np.unique(8 * np.round(initial * factor**exponents / 8), return_counts=True)
    return tuple(map(int, depths)), tuple(int(round(w / min(group, w)) * min(group, w)) for w in widths)


def model(**options):
    return shallow(abstract(RegNet, **SHALLOW | options), "regnet.npz")


@pytest.mark.parametrize(
    "size", [size if size == "002" else pytest.param(size, marks=pytest.mark.long) for size in PUBLISHED]
)
def test_the_published_sizes(size):
    *design, parameters = PUBLISHED[size]
    depths, widths = stages(*design)
    assert count(abstract(RegNet, depths=depths, widths=widths, group_width=design[-1])) == parameters


def test_logits_and_statistics_are_transformers():
    """Ten blocks in a stage, so that b10 must not come before b2."""
    assert_golden(abstract(RegNet, **SMALL), "regnet.npz")


def test_parameters_have_timms_names():
    net = abstract(RegNet, depths=(2, 4, 11, 1), widths=(224, 448, 1232, 3024), group_width=112)
    shapes = {path: value.shape for path, value in flatten(net).items()}
    assert shapes["stem.conv.kernel"] == (3, 3, 3, 32)
    assert shapes["s1.b1.downsample.conv.kernel"] == (1, 1, 32, 224)
    assert shapes["s1.b1.se.fc1.kernel"] == (1, 1, 224, 8)  # a quarter of the block's input
    assert shapes["s1.b2.se.fc2.kernel"] == (1, 1, 56, 224)
    assert shapes["s3.b11.conv2.conv.kernel"] == (3, 3, 112, 1232)
    assert shapes["s4.b1.conv3.bn.var"] == (3024,)
    assert shapes["head.fc.kernel"] == (3024, 1000)
    assert "s1.b2.downsample.conv.kernel" not in shapes
    assert {path.rsplit(".")[-1] for path in flatten(net, nnx.BatchStat)} == {"mean", "var"}
    assert len(flatten(net, nnx.Param)) + len(flatten(net, nnx.BatchStat)) == len(shapes)


@pytest.mark.long
def test_every_block_starts_as_its_shortcut():
    net = RegNet(**SHALLOW | {"num_classes": 13}, rngs=nnx.Rngs(0))
    assert not any(value.any() for path, value in flatten(net).items() if path.endswith("conv3.bn.scale"))
    x = jax.random.uniform(jax.random.key(0), (2, 3, 5, 9))
    np.testing.assert_array_equal(net.s2.b2(x, train=False), x)
    assert 0.005 < float(jnp.std(net.head.fc.kernel[...])) < 0.015
    assert not net.head.fc.bias[...].any()


def test_num_classes_0_gives_pooled_features():
    net = abstract(RegNet, **SHALLOW)
    assert not [path for path in flatten(net) if path.startswith("head")]
    images = jnp.zeros((2, 37, 45, 3))
    assert jax.eval_shape(lambda v: bind(net, v)(images), flatten(net)).shape == (2, 9)


def test_the_cifar_stem_keeps_the_size():
    sizes = {}
    for stem in ("imagenet", "cifar"):
        net = abstract(RegNet, **SHALLOW | {"stem": stem, "image_size": 32})

        def first(variables, images, net=net):
            return bind(net, variables).stem(images, train=False)

        sizes[stem] = jax.eval_shape(first, flatten(net), jnp.zeros((1, 32, 32, 3))).shape
    assert sizes == {"imagenet": (1, 16, 16, 5), "cifar": (1, 32, 32, 5)}


def test_stochastic_depth_comes_from_the_key_and_grows_with_depth():
    """Each block is given a scale for each example, see `drop_path_scales`."""
    net = abstract(RegNet, **SHALLOW | {"drop_path": 0.5})
    assert net.drop_path == (0, 0.25, 0.5)
    given = []

    def features(x, scales, *, train):
        given.extend(scales)
        return x

    net.features = features
    net.head_features(jnp.zeros((4000, *net.image_size, 3)), key=jax.random.key(0))
    scales = np.stack(given)
    np.testing.assert_allclose((scales == 0).mean(1), net.drop_path, atol=0.03)
    np.testing.assert_allclose(scales.max(1), 1 / (1 - np.array(net.drop_path)), rtol=1e-6)


def test_training_drops_branches_and_evaluation_does_not():
    images = golden("regnet.npz")[1]["images"].astype(np.float32)
    outline = abstract(RegNet, **SHALLOW | {"drop_path": 0.5})
    run = jax.jit(lambda key: shallow(outline, "regnet.npz")(images, train=key is not None, key=key))
    trained = run(jax.random.key(0))
    np.testing.assert_array_equal(trained, run(jax.random.key(0)))
    assert max(abs(trained - run(jax.random.key(seed))).max() for seed in range(1, 6)) > 1e-3
    np.testing.assert_allclose(run(None), jax.jit(model())(images), rtol=1e-5)


@pytest.mark.long
def test_bfloat16_computes_with_float32_parameters_and_logits():
    images = golden("regnet.npz")[1]["images"].astype(np.float32)
    net, exact = model(dtype="bfloat16"), jax.jit(model())(images)
    assert net.s1.b1(jnp.ones((1, 3, 5, 5), jnp.bfloat16), train=False).dtype == jnp.bfloat16
    logits = jax.jit(net)(images)
    assert logits.dtype == jnp.float32
    assert 1e-4 < float(abs(logits - exact).max() / abs(exact).max()) < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": (6, 9, 13, 21)}, "width 13 is not divisible by group_width 3"),
        ({"stem": "small"}, "stem 'small' is none of imagenet, cifar"),
        ({"drop_path": 1.0}, r"drop_path 1.0 is not in \[0, 1\)"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        abstract(RegNet, **SMALL | options)


def test_calls_that_cannot_be_right_are_refused():
    with pytest.raises(ValueError, match=r"this model takes \(batch, 37, 45, 3\)"):
        model()(jnp.zeros((2, 45, 37, 3)))
    with pytest.raises(ValueError, match="training needs a key"):
        model()(jnp.zeros((2, 37, 45, 3)), train=True)
