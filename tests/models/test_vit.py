"""The Vision Transformer against an independent one, and what its options do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vit_reference
from flax import nnx
from golden_files import assert_close, load

from deit_jax.models import (
    VisionTransformer,
    abstract_model,
    bind,
    flatten,
    resize_positions,
    sincos_positions,
)
from deit_jax.weights import tables

# Every axis has a size of its own: batch 2, 5 x 7 patches of 3 x 3, 2 heads of 11, hidden width 33, 13 classes.
SMALL = {
    "image_size": (15, 21),
    "patch_size": 3,
    "width": 22,
    "depth": 3,
    "heads": 2,
    "mlp_ratio": 1.5,
    "num_classes": 13,
}
FIXED = {"positions": "sincos2d", "width": 24}
IMAGES = jax.random.normal(jax.random.key(0), (2, 15, 21, 3))


def abstract(**options) -> nnx.Module:
    return nnx.eval_shape(lambda: VisionTransformer(**SMALL | options, rngs=nnx.Rngs(0)))


@functools.cache
def params(**options) -> dict[str, np.ndarray]:
    return vit_reference.random_params(flatten(abstract(**options)))


def model(**options) -> nnx.Module:
    """With the same random weights for equal shapes, whatever the options that only change the computation."""
    return bind(abstract(**options), {name: jax.device_put(value) for name, value in params(**options).items()})


@pytest.mark.parametrize(
    ("options", "pool", "prefix"),
    [
        ({}, "token", 1),
        ({"distilled": True}, "token", 2),
        ({"distilled": True, "num_classes": 0}, "token", 2),
        ({"distilled": True, "dist_head": False}, "token", 1),
        ({"distilled": True, "dist_head": False, "num_classes": 0, "class_position": False}, "token", 1),
        ({"layer_scale": 1e-6, "class_position": False, "norm_eps": 0.3}, "token", 1),
        ({"layer_scale": 1e-6, "class_position": False, "norm_eps": 0.3, "global_pool": "avg"}, "avg", 1),
        ({"pre_logits": True}, "token", 1),
        ({"pre_logits": 17}, "token", 1),
        ({"global_pool": "avg"}, "avg", 1),
        ({"global_pool": "avg", "class_token": False}, "avg", 0),
        ({"global_pool": "avg", "fc_norm": False}, "avg", 1),
        ({"image_size": (6, 6)}, "token", 1),
        (FIXED, "token", 1),
        (FIXED | {"distilled": True}, "token", 2),
        (FIXED | {"global_pool": "avg", "fc_norm": False, "class_token": False, "pre_logits": True}, "avg", 0),
    ],
    ids=lambda value: "-".join(map(str, value)) or "plain" if isinstance(value, dict) else "",
)
def test_it_computes_what_the_reference_does(options, pool, prefix):
    images = IMAGES[:, : options.get("image_size", (15,))[0], : options.get("image_size", (0, 21))[1]]
    eps = options.get("norm_eps", 1e-6)
    expected = vit_reference.head_logits(params(**options), images, heads=2, pool=pool, prefix=prefix, eps=eps)
    vit = model(**options)
    logits = vit.head_logits(images)
    assert len(logits) == len(expected) == (prefix if pool == "token" else 1)
    for one, reference in zip(logits, expected, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, reference, atol=1e-5 * abs(reference).max())
    np.testing.assert_allclose(vit(images), sum(expected) / len(expected), atol=1e-5 * abs(expected[0]).max())


def test_training_returns_both_heads_of_a_distilled_model():
    vit = model(distilled=True)
    for one, expected in zip(vit(IMAGES, train=True), vit.head_logits(IMAGES), strict=True):
        np.testing.assert_array_equal(one, expected)
    assert model()(IMAGES, train=True).shape == (2, 13)
    assert model(distilled=True, dist_head=False)(IMAGES, train=True).shape == (2, 13)


def test_num_classes_0_leaves_out_the_heads():
    assert "head_dist.kernel" in params(distilled=True)
    assert not [name for name in params(distilled=True, num_classes=0) if name.startswith("head")]
    assert not [name for name in params(distilled=True, dist_head=False) if name.startswith("head_dist")]
    assert model(num_classes=0)(IMAGES).shape == (2, 22)
    assert model(num_classes=0, pre_logits=17)(IMAGES).shape == (2, 17)


def test_drop_path_grows_linearly_and_needs_a_key():
    vit = model(drop_path=0.5)
    assert vit.drop_path == (0.0, 0.25, 0.5)
    with pytest.raises(ValueError, match="needs a key"):
        vit(IMAGES, train=True)
    np.testing.assert_array_equal(vit(IMAGES), model()(IMAGES))
    np.testing.assert_array_equal(vit(IMAGES, key=jax.random.key(0)), model()(IMAGES))  # evaluation ignores the key


def test_constant_drop_path_is_the_same_for_every_block():
    assert abstract(drop_path=0.5, drop_path_schedule="constant").drop_path == (0.5, 0.5, 0.5)


def test_training_draws_drop_path_from_the_key_alone():
    vit = model(drop_path=0.5)
    first = vit(IMAGES, train=True, key=jax.random.key(0))
    np.testing.assert_array_equal(first, vit(IMAGES, train=True, key=jax.random.key(0)))
    assert abs(first - vit(IMAGES, train=True, key=jax.random.key(1))).max() > 1e-3
    without = model(drop_path=0.0)
    np.testing.assert_array_equal(without(IMAGES, train=True, key=jax.random.key(0)), without(IMAGES))


def test_dropped_examples_pass_a_block_unchanged():
    block = model().blocks[1]
    x = jax.random.normal(jax.random.key(0), (3, 37, 22))
    out = block(x, jnp.array([[0.0, 1.0, 2.0], [0.0, 1.0, 0.0]]))
    np.testing.assert_array_equal(out[0], x[0])
    np.testing.assert_array_equal(out[1], block(x)[1])
    np.testing.assert_allclose(out[2], (x + 2 * block.attn(block.norm1(x)))[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("attention", ["einsum", "xla"])
def test_a_block_may_compute_its_first_tokens_only(attention):
    block = model(attention=attention).blocks[1]
    x, scales = jax.random.normal(jax.random.key(0), (3, 37, 22)), jnp.array([[0.0, 1.0, 2.0], [2.0, 1.0, 2.0]])
    np.testing.assert_allclose(block(x, scales, first=2), block(x, scales)[:, :2], rtol=1e-5, atol=1e-5)


def loss_and_gradients(**options):
    outline = abstract(drop_path=0.4, distilled=True, **options)

    @jax.jit
    def run(values, key):
        return jax.value_and_grad(lambda v: sum((z**2).sum() for z in bind(outline, v).head_logits(IMAGES, key=key)))(
            values
        )

    return run(params(distilled=True), jax.random.key(3))


@pytest.mark.parametrize(
    "options",
    [pytest.param({"remat": True}, marks=pytest.mark.long), {"attention": "xla", "patch_embedding": "conv"}],
    ids=str,
)
def test_how_it_is_computed_changes_neither_loss_nor_gradients(options):
    loss, gradients = loss_and_gradients()
    other_loss, other_gradients = loss_and_gradients(**options)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(other_gradients[name], gradient, atol=1e-5 * float(loss), err_msg=name)


def test_remat_recomputes_the_blocks():
    """Fewer values are kept for the backward pass, which is the point."""
    residuals = {
        remat: sum(
            shape.size
            for shape in jax.tree.leaves(
                jax.eval_shape(
                    lambda v, remat=remat: jax.vjp(lambda v: bind(abstract(remat=remat), v)(IMAGES), v)[1], params()
                )
            )
        )
        for remat in (False, True)
    }
    assert residuals[True] < residuals[False] / 2


def test_bfloat16_computes_with_float32_parameters_and_logits():
    vit = model(dtype="bfloat16", distilled=True)
    assert {value.dtype for value in flatten(vit).values()} == {jnp.dtype("float32")}
    assert vit.blocks[0](jnp.ones((1, 37, 22), jnp.bfloat16)).dtype == jnp.bfloat16
    for logits, exact in zip(vit.head_logits(IMAGES), model(distilled=True).head_logits(IMAGES), strict=True):
        assert logits.dtype == jnp.float32
        assert 1e-4 < float(abs(logits - exact).max() / abs(exact).max()) < 0.05


def test_small_layer_scales_keep_their_gradients_in_bfloat16():
    """At 1e-6, where DeiT-III begins, the sum rounds a branch away, but not what it teaches its factors."""

    def gradients(dtype):
        block = model(layer_scale=1e-6, dtype=dtype).blocks[1]
        graphdef, state = nnx.split(block)
        flat = nnx.to_flat_state(state)
        filled = [(path, v.replace(jnp.full(22, 1e-6)) if path[-1] == "gamma" else v) for path, v in flat]
        x = jax.random.normal(jax.random.key(0), (3, 37, 22)).astype(dtype)
        weights = jax.random.normal(jax.random.key(1), x.shape)
        gradients_of = jax.jit(jax.grad(lambda state: (nnx.merge(graphdef, state)(x) * weights).sum()))
        gradient = gradients_of(nnx.from_flat_state(filled))
        return [gradient[name]["gamma"][...] for name in ("ls1", "ls2")]

    for rough, exact in zip(gradients("bfloat16"), gradients("float32"), strict=True):
        assert rough.dtype == jnp.float32
        np.testing.assert_allclose(rough, exact, atol=0.02 * float(abs(exact).max()))


def test_attention_maps_are_those_of_the_blocks():
    vit = model(distilled=True, attention="xla")
    maps = vit.attention_maps(IMAGES)
    assert maps.shape == (3, 2, 2, 37, 37)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)
    expected = vit_reference.encode(params(distilled=True), IMAGES, heads=2)[2]
    np.testing.assert_allclose(maps, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (15, 20)}, "image_size 15 x 20 is not divisible by patch_size 3"),
        ({"heads": 3}, "width 22 is not divisible by heads 3"),
        ({"class_token": False}, "class_token=False leaves"),
        ({"distilled": True, "class_token": False, "global_pool": "avg"}, "distilled=True"),
        ({"distilled": True, "global_pool": "avg"}, "distilled=True"),
        ({"distilled": True, "pre_logits": True}, "distilled=True"),
        ({"global_pool": "max"}, "global_pool 'max' is none of token, avg"),
        ({"positions": "rope"}, "positions 'rope' is none of learned, sincos2d"),
        ({"positions": "sincos2d"}, "width 22 is not divisible by 4, or under 8"),
        ({"positions": "sincos2d", "width": 4}, "width 4 is not divisible by 4, or under 8"),
        ({"patch_embedding": "fft"}, "patch_embedding 'fft' is none of conv, linear"),
        ({"attention": "flash"}, "attention 'flash' is none of einsum, xla, cudnn"),
        ({"drop_path": 1.0}, r"drop_path 1.0 is not in \[0, 1\)"),
        ({"drop_path_schedule": "cosine"}, "drop_path_schedule 'cosine' is none of linear, constant"),
    ],
    ids=str,
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        abstract(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 21, 15, 3), (2, 15, 21, 1)], ids=str)
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"this model takes \(batch, 15, 21, 3\)"):
        model()(jnp.zeros(shape))


@pytest.mark.parametrize(
    ("options", "prefix"),
    [({}, 1), ({"distilled": True}, 2), ({"class_position": False}, 0), ({"global_pool": "avg"}, 1)],
    ids=["plain", "distilled", "patches", "avg"],
)
def test_another_input_size_is_the_model_of_that_size_with_positions_resized(options, prefix):
    vit, images = model(**options), IMAGES[:, :12, :9]
    positions = resize_positions(params(**options)["pos_embed"], prefix, (5, 7), (4, 3))
    resized = {name: jax.device_put(value) for name, value in params(**options).items()} | {"pos_embed": positions}
    vit.set_input_size((12, 9))
    expected = bind(abstract(image_size=(12, 9), **options), resized)
    np.testing.assert_array_equal(vit(images), expected(images))
    assert (vit.image_size, vit.num_patches) == (expected.image_size, expected.num_patches)
    with pytest.raises(ValueError, match=r"\(batch, 12, 9, 3\)"):
        vit(IMAGES)
    with pytest.raises(ValueError, match=r"image_size 12 x 8 is not divisible by patch_size 3"):
        vit.set_input_size((12, 8))


@pytest.mark.parametrize("case", [0, pytest.param(1, marks=pytest.mark.long)])
def test_the_plain_baseline_says_what_timms_modules_do(case):
    """And the second grid, by the variables of the first: fixed positions are those of whatever grid there is."""
    golden = load("gap.npz")
    sizes = {"patch_size": 3, "width": 16, "depth": 2, "heads": 2, "num_classes": 5, "image_size": (15, 21)}
    outline = abstract_model("vit_small_patch16_gap_224", **sizes)
    tensors = {name: value for name, value in golden.items() if name[-2:] not in ("_0", "_1")}
    variables = tables.gather(tensors, tables.TIMM, flatten(outline))
    assert tensors == {}
    vit, images = bind(outline, jax.tree.map(jnp.asarray, variables)), golden[f"images_{case}"]
    vit.set_input_size(images.shape[1:3])
    assert vit.num_patches == [35, 6][case]
    assert_close(vit(images), golden[f"logits_{case}"], "gap.npz", "logits")


def test_fixed_positions_of_four_patches():
    """Frequencies 1 and 1/10,000; in the second column x = 1, in the second row y = 1."""
    here, there = [0, 0, 1, 1], [0.8414709848, 0.0000999999998, 0.5403023059, 0.999999995]
    found = sincos_positions((2, 2), 8)
    assert (found.shape, found.dtype) == ((1, 4, 8), np.float32)
    np.testing.assert_allclose(found[0], [here + here, there + here, here + there, there + there], rtol=1e-7)


def test_fixed_positions_are_those_of_the_formula():
    np.testing.assert_allclose(sincos_positions((5, 7), 24)[0], vit_reference.sincos(5, 7, 24), rtol=0, atol=6e-8)


def test_positions_learn_through_their_resizing():
    """It is linear: the gradient is the transposed of the matrix whose columns are resized unit vectors."""
    count, weight = 2 + 5 * 7, jax.random.normal(jax.random.key(1), (2 + 4 * 3, 1))

    def resized(column):
        return resize_positions(column.reshape(1, count, 1), 2, (5, 7), (4, 3)).reshape(-1)

    matrix = np.stack([resized(column) for column in np.eye(count, dtype=np.float32)], axis=1)
    np.testing.assert_array_equal(matrix[:2], np.eye(2, count))
    given = jax.random.normal(jax.random.key(2), (count,))
    gradient = jax.grad(lambda column: (resized(column) * weight[:, 0]).sum())(given)
    np.testing.assert_allclose(gradient, matrix.T @ weight[:, 0], atol=1e-6)
    np.testing.assert_allclose(resized(given), matrix @ given, atol=1e-5)
