"""The train step against its parts: accumulation, clipping, average, guard, statistics."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from deit_jax.models import bind, flatten
from deit_jax.step import losses, mixing, optim
from deit_jax.step import step as steps
from deit_jax.step.state import init_state

SEED = np.uint32(3)
CLASSES = 5


class Net(nnx.Module):
    """One convolution with batch norm and a head: the least that has parameters and statistics."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 7, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(7, use_running_average=None, momentum=0.9, rngs=rngs)
        self.head = nnx.Linear(7, CLASSES, rngs=rngs)

    def set_input_size(self, image_size):
        """Takes any."""

    def head_logits(self, images, *, key=None):
        self.key_given = key is not None
        x = nnx.relu(self.norm(self.conv(images), use_running_average=key is None))
        return (self.head(x.mean(axis=(1, 2))),)


ABSTRACT = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
NET = Net(nnx.Rngs(1))
adamw = functools.partial(optim.adamw, b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)
OPTIMIZER = adamw(flatten(ABSTRACT, nnx.Param))
NORMALIZE = steps.Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def criterion(logits, targets, taught):
    return losses.cross_entropy(logits[0], targets), {}


@functools.cache
def jitted(accumulation=1, clip_norm=0.0, ema_decay=0.75, rates=None, frozen_backbone=False, copies=1):
    return jax.jit(
        functools.partial(
            steps.train_step,
            model=ABSTRACT,
            normalize=NORMALIZE,
            loss=criterion,
            optimizer=adamw(dict(rates)) if rates else OPTIMIZER,
            learning_rate=lambda step: 0.01 * (step + 1),
            rates=dict(rates) if rates else dict.fromkeys(flatten(NET, nnx.Param), 1.0),
            frozen_backbone=frozen_backbone,
            copies=copies,
            num_classes=CLASSES,
            label_smoothing=0.1,
            accumulation=accumulation,
            clip_norm=clip_norm,
            ema_decay=lambda step: ema_decay,
        )
    )


def first_state():
    params = flatten(NET, nnx.Param)
    return init_state(params, flatten(NET, nnx.BatchStat), OPTIMIZER.init(params), keep_ema=True)


def a_batch(poison=1.0):
    random = np.random.default_rng(0)
    mix = {"image_weight": [0.7, 1.0], "label_weight": [0.7 * poison, 1.0], "box": np.zeros((2, 4), np.int32)}
    return {
        "image": random.integers(0, 256, (6, 11, 13, 3), np.uint8),
        "label": np.array([0, 4, 2, 1, 3, 3], np.int32),
        "place": np.arange(6, dtype=np.int32),
        "teacher": {},
        "mix": {name: np.asarray(value, np.int32 if name == "box" else np.float32) for name, value in mix.items()},
    }


def by_hand(state, batch):
    """The loss and gradients of one update, from the pieces."""
    images = (batch["image"] / np.float32(255) - np.array(NORMALIZE.mean)) / np.array(NORMALIZE.std)
    one_hot = 0.9 * np.eye(CLASSES)[batch["label"]] + 0.1 / CLASSES
    weight = np.repeat(batch["mix"]["image_weight"], 3)[:, None]
    partner = [2, 1, 0, 5, 4, 3]
    images = weight[..., None, None] * images + (1 - weight[..., None, None]) * images[partner]
    targets = weight * one_hot + (1 - weight) * one_hot[partner]

    def loss(params):
        net = bind(ABSTRACT, params | state.stats)
        (logits,) = net.head_logits(jnp.float32(images), key=jax.random.key(0))
        return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(logits), -1)), flatten(net, nnx.BatchStat)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)


def assert_close(ours, theirs, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), ours, theirs)


def test_one_step_equals_its_parts():
    state, batch = first_state(), a_batch()
    (loss, stats), grads = by_hand(state, batch)
    updates, _ = OPTIMIZER.update(grads, state.opt_state, state.params)
    params = {path: state.params[path] - 0.01 * updates[path] for path in state.params}
    after, metrics = jitted()(state, batch, SEED)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-5)
    # The bias before batch norm has a gradient of zero, up to rounding that Adam turns into steps.
    del params["conv.bias"]
    assert_close({path: after.params[path] for path in params}, params, rtol=1e-5, atol=1e-6)
    assert_close(after.stats, stats, rtol=1e-5, atol=1e-6)
    latest = after.params | after.stats
    average = {path: 0.75 * old + 0.25 * latest[path] for path, old in state.ema.items()}
    assert_close(after.ema, average, rtol=1e-6, atol=1e-7)
    assert (after.step, after.skipped, after.skipped_in_a_row) == (1, 0, 0)


def test_each_parameter_has_its_own_rate_and_the_others_stay():
    """Of the first update, which is independent of the gradient's scale, so that freezing does not change it."""
    params = flatten(NET, nnx.Param)
    rates = {"norm.scale": 0.5, "head.kernel": 0.25, "head.bias": 1.0}
    opt_state = adamw(rates).init({path: params[path] for path in rates})
    start = dataclasses.replace(first_state(), opt_state=opt_state)
    after, _ = jitted(rates=tuple(rates.items()))(start, a_batch(), SEED)
    whole, _ = jitted()(first_state(), a_batch(), SEED)
    for path, before in params.items():
        change, full = after.params[path] - before, whole.params[path] - before
        np.testing.assert_allclose(change, rates.get(path, 0) * full, rtol=1e-4, atol=1e-6)
        assert np.abs(full).max() > 1e-3
    assert after.ema.keys() == params.keys() | after.stats.keys()


def test_statistics_follow_the_batch():
    after, _ = jitted()(first_state(), a_batch(), SEED)
    assert after.stats.keys() == {"norm.mean", "norm.var"}
    assert all(np.abs(after.stats[path] - first_state().stats[path]).max() > 1e-3 for path in after.stats)


def test_clipping_scales_to_the_bound():
    state, batch = first_state(), a_batch()
    _, metrics = jitted()(state, batch, SEED)
    bound = float(metrics["grad_norm"]) / 3
    free = {"ema_decay": 0.75, "accumulation": 1}
    clipped, _ = jitted(clip_norm=bound, **free)(state, batch, SEED)
    unclipped, _ = jitted(**free)(state, batch, SEED)
    moment = {path: clipped.opt_state[0].mu[path] * 3 for path in state.params if path != "conv.bias"}
    assert_close(moment, {p: unclipped.opt_state[0].mu[p] for p in moment}, rtol=1e-5, atol=1e-9)


def test_accumulation_averages_losses_and_gradients():
    """With frozen statistics micro-batches change nothing but the order of sums."""
    state, batch = first_state(), a_batch()
    step = functools.partial(steps._accumulate, params=state.params, stats=state.stats)
    images, targets = jnp.float32(batch["image"]) / 255, jnp.eye(CLASSES)[batch["label"]]

    def loss(params, stats, rows):
        images, targets = rows
        net = bind(ABSTRACT, params | stats)
        value, _ = criterion(net.head_logits(images), targets, None)
        return value, (stats, {"half": value / 2})

    whole = step(loss, rows=(images, targets), accumulation=1)
    for accumulation in (2, 3):
        parts = step(loss, rows=(images, targets), accumulation=accumulation)
        assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_micro_batches_have_their_own_rows():
    seen = []

    def loss(params, stats, images):
        jax.debug.callback(lambda x: seen.append(x), images[:, 0], ordered=True)
        return jnp.sum(params["w"] * images), (stats, {})

    steps._accumulate(loss, {"w": jnp.ones(())}, {}, jnp.arange(6.0)[:, None], 2)
    jax.effects_barrier()
    assert [rows.tolist() for rows in seen] == [[0, 2, 4], [1, 3, 5]]


def keys_seen(places, *, accumulation=1, copies=1):
    """The data of the key that stochastic depth has for each row, as the model is given it."""
    seen = []

    def loss(params, stats, rows):
        class Model:
            def set_input_size(self, size):
                pass

            def head_logits(self, images, *, key):
                jax.debug.callback(lambda x: seen.extend(x.tolist()), jax.random.key_data(key), ordered=True)
                return (params["w"] * images.mean((1, 2, 3))[:, None],)

        value, terms = steps.forward(
            Model(),
            rows,
            normalize=NORMALIZE,
            teacher=None,
            loss=lambda logits, targets, taught: (logits[0].mean(), {}),
            frozen_backbone=False,
            copies=copies,
        )
        return value, (stats, terms)

    batch = a_batch() | {"place": np.array(places, np.int32)}
    rows = steps.shown(
        jax.tree.map(jnp.asarray, batch), jax.random.key(1), NORMALIZE, num_classes=CLASSES, label_smoothing=0.0
    )
    steps._accumulate(loss, {"w": jnp.ones(())}, {}, rows, accumulation)
    jax.effects_barrier()
    return [tuple(key) for key in seen]


def test_stochastic_depth_follows_from_the_place_in_the_batch():
    """Whichever row has it, in whichever micro-batch; copies have keys of their own."""
    keys = keys_seen(range(6))
    assert len(set(keys)) == 6
    places = [4, 2, 0, 1, 3, 5]
    assert keys_seen(places) == [keys[place] for place in places]
    assert keys_seen(range(6), accumulation=2) == [keys[place] for place in (0, 2, 4, 1, 3, 5)]
    copies = keys_seen(range(6), copies=2)
    assert len(set(copies)) == 12
    assert keys_seen(places, copies=2) == [key for place in places for key in copies[2 * place : 2 * place + 2]]


def test_a_frozen_backbone_computes_as_in_evaluation():
    heads = tuple((path, 1.0) for path in flatten(NET, nnx.Param) if path.startswith("head."))
    assert heads
    optimizer_state = adamw(dict(heads)).init({path: flatten(NET)[path] for path, _ in heads})
    start = dataclasses.replace(first_state(), opt_state=optimizer_state)
    before = jax.tree.map(np.asarray, start)
    after, metrics = jitted(rates=heads, frozen_backbone=True)(start, a_batch(), SEED)
    jax.tree.map(np.testing.assert_array_equal, after.stats, before.stats)
    batch = jax.tree.map(jnp.asarray, a_batch())
    logits = NET.head_logits(steps.student_images(batch, NORMALIZE))
    targets = mixing.mix_targets(batch["label"], batch["mix"], num_classes=CLASSES, smoothing=0.1)
    np.testing.assert_allclose(metrics["loss"], criterion(logits, targets, None)[0], rtol=1e-6)
    moved = {path for path, value in after.params.items() if np.abs(value - before.params[path]).max() > 0}
    assert moved == {path for path, _ in heads}


def test_non_finite_update_is_skipped_and_counted():
    step, state = jitted(), first_state()
    state, _ = step(state, a_batch(), SEED)
    before = jax.tree.map(np.asarray, state)
    for count in (1, 2):
        state, metrics = step(state, a_batch(poison=np.nan), SEED)
        assert np.isnan(metrics["loss"])
        assert (state.step, state.skipped, state.skipped_in_a_row) == (1 + count, count, count)
    for name in ("params", "stats", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(before, name))
    state, metrics = step(state, a_batch(), SEED)
    assert (state.step, state.skipped, state.skipped_in_a_row) == (4, 2, 0)
    np.testing.assert_allclose(metrics["learning_rate"], 0.04)  # by steps, not by updates done
    assert int(state.opt_state[0].count) == 2


def test_a_finite_loss_whose_gradient_is_not_is_skipped_too():
    def with_a_root(logits, targets, taught):
        return losses.cross_entropy(logits[0], targets) + jnp.sqrt(0 * logits[0].sum()), {}  # 0, of infinite slope

    given = jitted()  # without its own cache of what is compiled
    step = jax.jit(functools.partial(given.__wrapped__, loss=with_a_root))
    state = first_state()
    after, metrics = step(state, a_batch(), SEED)
    assert np.isfinite(metrics["loss"])
    assert np.isnan(metrics["grad_norm"])
    assert (after.step, after.skipped, after.skipped_in_a_row) == (1, 1, 1)
    for name in ("params", "stats", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))


@pytest.mark.parametrize("classes", [3, 7])
def test_eval_step(classes):
    random = np.random.default_rng(2)
    logits = random.normal(size=(2, 4, classes)).astype(np.float32)

    batch = {"image": jnp.zeros((4, 2, 2, 3), jnp.uint8), "label": jnp.array([0, 1, 2, 0]), "mask": jnp.ones(4, bool)}
    out = steps.eval_step(jax.device_put(logits), batch, predict=lambda variables, images: tuple(variables))
    mean = logits.astype(np.float64).mean(axis=0)
    log_probs = mean - np.log(np.exp(mean).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(out["loss"], -log_probs[np.arange(4), batch["label"]], rtol=1e-5)
    np.testing.assert_array_equal(out["top"], np.argsort(-mean, axis=1)[:, :5])
    np.testing.assert_allclose(out["probability"], np.exp(log_probs.max(axis=1)), rtol=1e-5)
    np.testing.assert_array_equal(out["heads"], logits.argmax(axis=-1))
    assert out.keys() == {"loss", "top", "probability", "heads", "label", "mask"}


@pytest.mark.parametrize("accumulation", [1, 3])
def test_copies_are_neighbours_and_alike_where_nothing_is_drawn(accumulation):
    """Two of each image, in each micro-batch, teach what one does: means and statistics are the same."""
    one, told = jitted(accumulation=accumulation)(first_state(), a_batch(), SEED)
    two, told_twice = jitted(accumulation=accumulation, copies=2)(first_state(), a_batch(), SEED)
    np.testing.assert_allclose(told_twice["loss"], told["loss"], rtol=1e-6)
    np.testing.assert_allclose(told_twice["grad_norm"], told["grad_norm"], rtol=1e-5)
    assert_close(two.stats, one.stats, rtol=1e-5, atol=1e-6)
