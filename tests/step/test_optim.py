"""AdamW against torch's numbers (golden/make_adamw.py), the schedule against timm's and facebook's loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_files import assert_close, load

from deit_jax.base.rules import match_all
from deit_jax.models import abstract_model, flatten
from deit_jax.step import optim

GOLDEN = load("adamw.npz")
NAMES = [key.removeprefix("params/") for key in GOLDEN if key.startswith("params/")]
PLACES = {"peak": 1e-3, "start": 1e-6, "floor": 1e-5}


def golden(prefix: str) -> dict[str, jax.Array]:
    return {name: jnp.array(GOLDEN[f"{prefix}/{name}"]) for name in NAMES}


def adamw(case: str):
    b1, b2, epsilon, weight_decay = map(float, GOLDEN[f"hyper/{case}"])
    return optim.adamw(NAMES, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay)


@pytest.mark.parametrize("case", ["no_decay", "decay", "large_epsilon"])
def test_adamw_equals_torch_after_one_step_and_three(case):
    optimizer, params = adamw(case), golden("params")
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for step, rate in enumerate(GOLDEN["rates"].tolist(), 1):
        updates, state = update(golden(f"grads/{step}"), state, params)
        params = {name: params[name] - rate * updates[name] for name in NAMES}
        if step in (1, 3):
            for name in NAMES:
                torch = GOLDEN[f"after/{case}/{step}/{name}"]
                assert_close(params[name], torch, "adamw.npz", "parameters", err_msg=f"{name} after {step}")


def test_the_golden_cases_differ_by_what_they_are_for():
    """Decay moves what decays and nothing else: the numbers above could not show a wrong grouping otherwise."""
    for name in NAMES:
        apart = np.abs(GOLDEN[f"after/decay/3/{name}"] - GOLDEN[f"after/no_decay/3/{name}"]).max()
        assert apart > 1e-4 if GOLDEN[f"decays/{name}"] else apart == 0


def test_the_first_update_is_the_formula():
    """With m = (1 - b1) g and v = (1 - b2) g^2 the bias correction leaves g / (|g| + epsilon)."""
    optimizer, params, grads = adamw("large_epsilon"), golden("params"), golden("grads/1")
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for name in NAMES:
        grad, param = (np.asarray(tree[name], np.float64) for tree in (grads, params))
        decay = 0.3 * param if GOLDEN[f"decays/{name}"] else 0
        np.testing.assert_allclose(updates[name], grad / (np.abs(grad) + 1e-2) + decay, rtol=0, atol=1e-6)


def test_decay_groups_are_torchs():
    assert match_all(optim.DECAY_RULES, NAMES) == {name: bool(GOLDEN[f"decays/{name}"]) for name in NAMES}
    assert len(set(match_all(optim.DECAY_RULES, NAMES).values())) == 2


def test_decay_groups_of_a_whole_model_are_those_of_timms_rule():
    model = abstract_model("deit_tiny_distilled_patch16_224", depth=1)
    shapes = {path: value.shape for path, value in flatten(model, nnx.Param).items()}
    skip = {"pos_embed", "cls_token", "dist_token"}
    timm = {path: not (len(shape) == 1 or path.endswith(".bias") or path in skip) for path, shape in shapes.items()}
    assert match_all(optim.DECAY_RULES, shapes) == timm
    assert sum(timm.values()) == 7  # patch embedding, qkv, proj, fc1, fc2 and two heads


def rates(steps: np.ndarray, **settings) -> np.ndarray:
    """The schedule at many steps, in one compilation."""
    one = lambda step: optim.learning_rate(step, **PLACES, **settings)  # noqa: E731
    return np.asarray(jax.jit(jax.vmap(one))(jnp.array(steps, jnp.int32)), np.float64)


def formula(step: int, *, total: int, warmup: int) -> float:
    peak, start, floor = PLACES.values()
    if step < warmup:
        return start + step / warmup * (peak - start)
    return floor + (peak - floor) / 2 * (1 + math.cos(math.pi * min(step / total, 1)))


@pytest.mark.parametrize(("total", "warmup"), [(101, 13), (101, 0), (101, 1), (7, 7), (375_300, 6_255)])
def test_schedule_per_step_equals_its_formula(total, warmup):
    marks = {0, 1, warmup - 1, warmup, warmup + 1, (warmup + total) // 2, total // 2, total - 1, total, total + 5}
    steps = np.array(sorted(step for step in marks if step >= 0))
    wanted = [formula(int(step), total=total, warmup=warmup) for step in steps]
    np.testing.assert_allclose(rates(steps, total=total, warmup=warmup), wanted, rtol=0, atol=1e-6 * PLACES["peak"])


def test_schedule_at_its_marked_points():
    """The values themselves: `start` first, the cosine's own height after warm-up, the middle of both, `floor` last."""
    peak, start, floor = PLACES.values()
    got = rates(np.array([0, 5, 10, 50, 100]), total=100, warmup=10)
    after_warmup = floor + (peak - floor) * math.cos(math.pi / 20) ** 2
    wanted = [start, (start + peak) / 2, after_warmup, (peak + floor) / 2, floor]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * peak)
    assert rates(np.array([0]), total=100, warmup=0)[0] == pytest.approx(peak, rel=1e-6)


class CosineLRScheduler:
    """timm's, as far as DeiT uses it (timm 0.3.2, scheduler/cosine_lr.py and scheduler.py), in float64."""

    def __init__(self, *, t_initial: int, lr_min: float, warmup_t: int, warmup_lr_init: float, base: float):
        self.t_initial, self.lr_min, self.warmup_t = t_initial, lr_min, warmup_t
        self.warmup_lr_init, self.base = warmup_lr_init, base
        self.warmup_step = (base - warmup_lr_init) / warmup_t if warmup_t else 1
        self.lr = warmup_lr_init if warmup_t else base

    def step(self, epoch: int) -> None:
        if epoch < self.warmup_t:
            self.lr = self.warmup_lr_init + epoch * self.warmup_step
        elif epoch // self.t_initial < 1:
            self.lr = self.lr_min + 0.5 * (self.base - self.lr_min) * (1 + math.cos(math.pi * epoch / self.t_initial))
        else:
            self.lr = self.lr_min


@pytest.mark.parametrize(("epochs", "warmup", "epoch_steps"), [(300, 5, 3), (11, 3, 7), (11, 0, 7), (5, 1, 1)])
def test_schedule_per_epoch_equals_facebooks_loop(epochs, warmup, epoch_steps):
    scheduler = CosineLRScheduler(
        t_initial=epochs,
        lr_min=PLACES["floor"],
        warmup_t=warmup,
        warmup_lr_init=PLACES["start"],
        base=PLACES["peak"],
    )
    wanted = []
    for epoch in range(epochs):
        wanted += [scheduler.lr] * epoch_steps  # train_one_epoch
        scheduler.step(epoch)
    got = rates(
        np.arange(epochs * epoch_steps),
        total=epochs * epoch_steps,
        warmup=warmup * epoch_steps,
        epoch_steps=epoch_steps,
    )
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * PLACES["peak"])


def test_schedule_per_epoch_lags_an_epoch_behind():
    got = rates(np.arange(20), total=20 * 3, warmup=5 * 3, epoch_steps=3)
    assert (got[:6] == got[0]).all()  # the first two epochs
    assert got[0] == pytest.approx(PLACES["start"], rel=1e-6)
    assert got[6] == pytest.approx(PLACES["start"] + (PLACES["peak"] - PLACES["start"]) / 5, rel=1e-6)


def test_rates_decay_from_the_head_down():
    paths = flatten(abstract_model("deit_tiny_distilled_patch16_224", depth=11), nnx.Param)
    factors = optim.learning_rates(paths, trainable="all", layer_decay=0.5)
    assert factors.keys() == paths.keys()
    for bottom in ("patch_embed.proj.kernel", "cls_token", "dist_token", "pos_embed"):
        assert factors[bottom] == 0.5**12
    assert factors["blocks.0.attn.qkv.bias"] == 0.5**11
    assert factors["blocks.2.norm1.scale"] == 0.5**9
    assert factors["blocks.10.mlp.fc2.kernel"] == 0.5
    assert {factors[top] for top in ("norm.scale", "head.kernel", "head_dist.bias")} == {1.0}
    assert set(optim.learning_rates(paths, trainable="all", layer_decay=1.0).values()) == {1.0}


def test_what_is_trained():
    paths = flatten(abstract_model("deit_tiny_distilled_patch16_224", depth=2), nnx.Param)
    heads = {f"{head}.{leaf}" for head in ("head", "head_dist") for leaf in ("kernel", "bias")}
    assert optim.learning_rates(paths, trainable="head", layer_decay=1.0).keys() == heads
    parts = [
        f"blocks.{i}.attn.{part}.{leaf}" for i in (0, 1) for part in ("qkv", "proj") for leaf in ("kernel", "bias")
    ]
    attention = optim.learning_rates(paths, trainable="attention", layer_decay=1.0)
    assert attention.keys() == heads | {"pos_embed", *parts}


def test_the_average_without_warm_up_is_facebooks():
    assert optim.ema_decay(jnp.int32(0), decay=0.99996, warmup=False) == 0.99996


def test_the_average_warms_up_as_timms():
    """By hand: 1 - 1, 1 - 2^(-2/3), 1 - 8^(-2/3), 1 - 1000^(-2/3), and the bound."""
    steps = {0: 0.0, 1: 0.3700395, 7: 0.75, 999: 0.99, 10**7: 0.99996}
    for step, decay in steps.items():
        found = optim.ema_decay(jnp.int32(step), decay=0.99996, warmup=True)
        np.testing.assert_allclose(found, decay, rtol=1e-6, atol=1e-7)
    warm = [float(optim.ema_decay(jnp.int32(step), decay=0.99996, warmup=True)) for step in range(1000)]
    assert np.prod(warm) == 0  # of the initial weights nothing is left
    np.testing.assert_allclose(0.99996**1000, 0.96, atol=1e-3)  # where 96 % of them would be
