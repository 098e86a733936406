"""The schedules by hand, against timm's numbers (golden/make_schedules.py), and against facebook's loop."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import assert_close, load

from deit_jax.step import schedule

PLACES = {"peak": 1e-3, "start": 1e-6, "floor": 1e-5}


def rates(steps: np.ndarray, **settings) -> np.ndarray:
    """The schedule at many steps, in one compilation."""
    one = lambda step: schedule.learning_rate(step, **PLACES, **settings)  # noqa: E731
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


GOLDEN = load("schedules.npz")
CASES = {
    "cosine": {"total": 60},
    "cooldown": {"kind": "cosine", "total": 67, "cooldown": 7},
    "wsd": {"kind": "wsd", "total": 60, "decay": 20},
    "step": {"kind": "step", "total": 60, "decay": 13, "decay_rate": 0.3},
    "constant": {"kind": "constant", "total": 60},
}


@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("case", CASES)
def test_schedules_are_timms(case, warmup):
    timm = GOLDEN[f"{case}/{warmup}"]
    assert len(timm) == CASES[case]["total"] + 1
    got = rates(np.arange(len(timm)), warmup=warmup, **CASES[case])
    assert_close(got, timm, "schedules.npz", "rates")


def test_warm_up_stable_decay_by_hand():
    """Warm-up to 10, stable to 60, a quarter into the decay half of the way down, and the floor for the last 5."""
    peak, start, floor = PLACES.values()
    steps = [0, 5, 10, 59, 60, 70, 100, 104]
    got = rates(np.array(steps), kind="wsd", total=105, warmup=10, decay=40, cooldown=5)
    wanted = [start, (start + peak) / 2, peak, peak, peak, (peak + floor) / 2, floor, floor]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6 * peak)


def test_steps_fall_at_whole_multiples_by_hand():
    got = rates(np.array([0, 2, 3, 29, 30, 59, 60, 89, 90, 99]), kind="step", total=100, warmup=2, decay=30,
                decay_rate=0.1, cooldown=5)  # fmt: skip
    wanted = [1e-6, 1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-5]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_every_schedule_may_stand_still_within_an_epoch():
    for case, given in CASES.items():
        got = rates(np.arange(given["total"]), warmup=7, epoch_steps=4, **given)
        plain = rates(np.arange(given["total"]), warmup=7, **given)
        lag = np.maximum(np.arange(given["total"]) // 4 - 1, 0) * 4
        np.testing.assert_array_equal(got, plain[lag], err_msg=case)


def test_a_prefix_of_warm_up_moves_the_rest_of_the_schedule():
    """By hand, and as the schedule without warm-up of a run that is shorter by it."""
    peak, _, floor = PLACES.values()
    settings = {"total": 110, "warmup": 10, "warmup_prefix": True}
    got = rates(np.array([10, 60, 110]), **settings)
    np.testing.assert_allclose(got, [peak, (peak + floor) / 2, floor], rtol=1e-6)
    steps = {"kind": "step", "decay": 30, "decay_rate": 0.1}
    got = rates(np.array([10, 39, 40, 70]), **settings, **steps)
    np.testing.assert_allclose(got, [peak, peak, 0.1 * peak, 0.01 * peak], rtol=1e-6)
    for more in ({}, steps, {"cooldown": 20}):
        later, after = rates(np.arange(10, 111), **settings, **more), rates(np.arange(101), total=100, warmup=0, **more)
        np.testing.assert_allclose(later, after, rtol=1e-6)
