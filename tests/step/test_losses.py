import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_files import assert_close, load

from deit_jax.step.losses import (
    binary_cross_entropy,
    cross_entropy,
    distillation_loss,
    hard_distillation,
    soft_distillation,
)

LOSSES = {
    "cross_entropy": cross_entropy,
    "bce": binary_cross_entropy,
    "bce_binarized": lambda logits, targets: binary_cross_entropy(logits, targets, binarize=True),
}


def example(batch: int = 5, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (batch, classes)).astype(np.float32)
    targets = random.dirichlet(np.full(classes, 0.3), batch).astype(np.float32)
    targets[:, 2] = 0  # binarizing must tell a class that is absent
    return logits, targets


def cross_entropy_64(logits: np.ndarray, targets: np.ndarray) -> float:
    z = logits.astype(np.float64)
    return -np.mean(np.sum(targets * (z - np.log(np.exp(z).sum(axis=1, keepdims=True))), axis=1))


def binary_64(logits: np.ndarray, targets: np.ndarray) -> float:
    present = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return -np.mean(targets * np.log(present) + (1 - targets) * np.log(1 - present))


def test_cross_entropy_by_hand():
    # Softmax of (0, log 2, log 5) is (1, 2, 5) / 8.
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [5.0, 2.0, 1.0]]))
    one_hot = jnp.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert cross_entropy(logits, one_hot) == pytest.approx((math.log(8 / 5) + math.log(4)) / 2, rel=1e-6)
    mixed = jnp.array([[0.25, 0.0, 0.75], [0.0, 1.0, 0.0]])
    by_hand = (0.25 * math.log(8) + 0.75 * math.log(8 / 5) + math.log(4)) / 2
    assert cross_entropy(logits, mixed) == pytest.approx(by_hand, rel=1e-6)


def test_binary_cross_entropy_by_hand():
    # Sigmoid of log 3 is 3/4, of 0 is 1/2.
    logits = jnp.array([[math.log(3), 0.0, -math.log(3)]])
    soft = jnp.array([[1.0, 0.5, 0.1]])
    by_hand = -(math.log(3 / 4) + math.log(1 / 2) + 0.1 * math.log(1 / 4) + 0.9 * math.log(3 / 4)) / 3
    assert binary_cross_entropy(logits, soft) == pytest.approx(by_hand, rel=1e-6)
    by_hand = -(math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 4)) / 3
    assert binary_cross_entropy(logits, soft, binarize=True) == pytest.approx(by_hand, rel=1e-6)


def test_binarizing_leaves_absent_classes_absent():
    logits = jnp.array([[2.0, -1.0, 0.5]])
    targets = jnp.array([[0.3, 0.0, 1e-7]])
    ones = jnp.array([[1.0, 0.0, 1.0]])
    assert binary_cross_entropy(logits, targets, binarize=True) == binary_cross_entropy(logits, ones)


def test_binarizing_at_a_threshold_takes_what_is_above_it():
    logits = jnp.array([[2.0, -1.0, 0.5]])
    targets = jnp.array([[0.25, 0.5, 0.26]])
    present = jnp.array([[0.0, 1.0, 1.0]])
    assert binary_cross_entropy(logits, targets, binarize=True, threshold=0.25) == binary_cross_entropy(logits, present)


def test_losses_equal_their_formulas_in_float64():
    logits, targets = example()
    assert cross_entropy(jax.device_put(logits), jax.device_put(targets)) == pytest.approx(
        cross_entropy_64(logits, targets), rel=1e-6
    )
    for binarize, wanted in ((False, targets), (True, (targets > 0).astype(np.float64))):
        got = binary_cross_entropy(jax.device_put(logits), jax.device_put(targets), binarize=binarize)
        assert got == pytest.approx(binary_64(logits, wanted), rel=1e-6)


def test_gradients_are_probabilities_less_targets():
    logits, targets = example(3, 5)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sums = targets.sum(axis=1, keepdims=True)
    gradient = jax.grad(cross_entropy)(jax.device_put(logits), jax.device_put(targets))
    np.testing.assert_allclose(gradient, (softmax * sums - targets) / 3, atol=1e-6)
    gradient = jax.grad(binary_cross_entropy)(jax.device_put(logits), jax.device_put(targets))
    np.testing.assert_allclose(gradient, (1 / (1 + np.exp(-logits)) - targets) / 15, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_stay_finite(name):
    rows = [*itertools.product((-1e30, 0.0, 1e30), repeat=3), (1e4, -1e4, 88.0), (-104.0, -1e-38, 1e-38)]
    targets = jnp.tile(jnp.array([0.0, 0.25, 0.75]), (len(rows), 1))
    value, gradient = jax.value_and_grad(LOSSES[name])(jnp.array(rows, jnp.float32), targets)
    assert np.isfinite(value)
    assert value >= 0
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() <= 1 / len(rows) * 1.000001


@pytest.mark.parametrize("name", LOSSES)
def test_a_sure_and_right_answer_costs_nothing_a_wrong_one_its_margin(name):
    targets = jnp.array([[1.0, 0.0]])
    assert LOSSES[name](jnp.array([[1e4, -1e4]]), targets) == 0
    margin = {"cross_entropy": 2e4}.get(name, 1e4)
    assert LOSSES[name](jnp.array([[-1e4, 1e4]]), targets) == margin


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_logits_are_computed_in_float32(name):
    logits, targets = example()
    rounded = jnp.array(logits, jnp.bfloat16)
    value = LOSSES[name](rounded, jax.device_put(targets))
    assert value.dtype == jnp.float32
    assert value == LOSSES[name](rounded.astype(jnp.float32), jax.device_put(targets))


GOLDEN = load("losses.npz")
# Of the axes of the golden terms.
HOWS = (("soft", "numel"), ("soft", "batchmean"), ("hard", "numel"))
HEADS, TARGETS, ALPHAS, TAUS = ("cls", "dist"), ("smoothed", "mixed"), (0.0, 0.1, 0.5, 1.0), (1.0, 3.0)
CLS, DIST, TEACHER, MIXED = (jax.device_put(GOLDEN[name]) for name in ("cls", "dist", "teacher", "mixed"))


def distilled(**options):
    given = {"cls_logits": CLS, "dist_logits": DIST, "targets": MIXED, "teacher_logits": TEACHER}
    return distillation_loss(**given | {"kind": "soft", "alpha": 0.3, "tau": 2.0} | options)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("how", HOWS, ids="-".join)
def test_distillation_terms_are_torchs(how, head):
    for targets, base, alpha, tau in itertools.product(TARGETS, LOSSES, ALPHAS, TAUS):
        loss, terms = distilled(
            dist_logits=DIST if head == "dist" else None,
            targets=jax.device_put(GOLDEN[targets]),
            kind=how[0],
            kl_reduction=how[1],
            alpha=alpha,
            tau=tau,
            base=LOSSES[base],
        )
        axes = ((HOWS, how), (HEADS, head), (TARGETS, targets), ([*LOSSES], base), (ALPHAS, alpha), (TAUS, tau))
        expected = GOLDEN["terms"][tuple(axis.index(choice) for axis, choice in axes)]
        assert [*terms] == ["base", "distillation"]
        assert_close([*terms.values()], expected, "losses.npz", "terms")
        assert loss == terms["base"] + terms["distillation"]
        assert loss.dtype == jnp.float32


def test_distillation_by_hand():
    # At temperature 2 the teacher says (1, 3) / 4 and the student (1, 1) / 2.
    student, teacher = jnp.zeros((1, 2)), 2 * jnp.log(jnp.array([[1.0, 3.0]]))
    divergence = math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4
    assert soft_distillation(student, teacher, tau=2.0, kl_reduction="batchmean") == pytest.approx(4 * divergence)
    assert soft_distillation(student, teacher, tau=2.0) == pytest.approx(2 * divergence)
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [5.0, 2.0, 1.0]]))
    assert hard_distillation(logits, jnp.array([2, 1])) == pytest.approx((math.log(8 / 5) + math.log(4)) / 2)


def test_usual_distillation_is_hintons():
    """`KLDivLoss()(...) alpha T^2 + CE (1 - alpha)` of many repositories, whose mean is over batch and classes."""
    one_hot = jnp.eye(7)[jnp.array([0, 6, 2, 2, 5])]
    loss, _ = distilled(dist_logits=None, targets=one_hot, alpha=0.9, tau=4.0)
    log_p, log_q = (np.float64(jax.nn.log_softmax(z / 4)) for z in (TEACHER, CLS))
    by_hand = np.mean(np.exp(log_p) * (log_p - log_q)) * 0.9 * 16 + 0.1 * cross_entropy_64(
        np.asarray(CLS), np.asarray(one_hot)
    )
    assert loss == pytest.approx(by_hand, rel=1e-5)


def test_without_distillation_the_base_has_all_the_weight():
    loss, terms = distilled(kind="none", teacher_logits=None)
    assert loss == terms.pop("base") == cross_entropy(CLS, MIXED)
    assert not terms


@pytest.mark.parametrize("dist_logits", [DIST, None], ids=["token", "usual"])
def test_labels_stand_for_the_logits_of_a_teacher(dist_logits):
    labels = jnp.argmax(TEACHER, axis=-1).astype(jnp.uint16)
    loss, _ = distilled(kind="hard", dist_logits=dist_logits, teacher_logits=None, teacher_labels=labels)
    assert loss == distilled(kind="hard", dist_logits=dist_logits)[0]
    other, _ = distilled(kind="hard", dist_logits=dist_logits, teacher_logits=None, teacher_labels=(labels + 1) % 7)
    assert abs(other - loss) > 0.1


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_gradients_reach_the_heads_but_not_the_teacher(kind):
    def loss(cls, dist, teacher):
        return distilled(kind=kind, cls_logits=cls, dist_logits=dist, teacher_logits=teacher)[0]

    cls, dist, teacher = jax.grad(loss, argnums=(0, 1, 2))(CLS, DIST, TEACHER)
    assert not teacher.any()
    expected = jax.nn.softmax(TEACHER / 2) if kind == "soft" else jax.nn.one_hot(TEACHER.argmax(-1), 7)
    scale, tau = (2 / 7, 2) if kind == "soft" else (1, 1)  # tau^2 / (tau classes)
    np.testing.assert_allclose(dist, 0.3 * scale * (jax.nn.softmax(DIST / tau) - expected) / 5, atol=1e-7)
    np.testing.assert_allclose(cls, 0.7 * jax.grad(cross_entropy)(CLS, MIXED), atol=1e-7)


def test_a_class_that_the_teacher_excludes_adds_nothing():
    excluded = TEACHER.at[:, 3].set(-jnp.inf)
    value, gradient = jax.value_and_grad(soft_distillation)(DIST, excluded, tau=2.0)
    likely = soft_distillation(DIST, TEACHER.at[:, 3].set(-1e4), tau=2.0)
    assert value == pytest.approx(float(likely), rel=1e-6)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_a_teacher_that_says_nan_teaches_nothing(kind):
    """Not even a best class, which is found among NaN, too: the update is left out."""
    logits = jnp.zeros((2, 3))
    teacher = jnp.array([[0.0, jnp.nan, 1.0], [0.0, 0.0, 1.0]])
    loss, _ = distillation_loss(
        cls_logits=logits, dist_logits=None, targets=jnp.ones((2, 3)) / 3, teacher_logits=teacher, kind=kind, alpha=0.5,
        tau=1.0,
    )  # fmt: skip
    assert jnp.isnan(loss)


def test_a_student_like_its_teacher_has_nothing_to_learn():
    assert soft_distillation(TEACHER + 5, TEACHER, tau=3.0) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_bfloat16_distillation_is_computed_in_float32(kind):
    rounded = {name: z.astype(jnp.bfloat16) for name, z in (("dist_logits", DIST), ("teacher_logits", TEACHER))}
    loss, terms = distilled(kind=kind, **rounded)
    assert {loss.dtype, terms["distillation"].dtype} == {jnp.dtype("float32")}
    assert loss == distilled(kind=kind, **{name: z.astype(jnp.float32) for name, z in rounded.items()})[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha 1.5 is not in \[0, 1\]"),
        ({"alpha": -0.1}, r"alpha -0.1 is not in \[0, 1\]"),
        ({"alpha": math.nan}, "alpha nan is not in"),
        ({"tau": 0.0}, "tau 0.0 is not positive"),
        ({"tau": -1.0}, "tau -1.0 is not positive"),
        ({"kind": "medium"}, "kind 'medium' is none of none, soft, hard"),
        ({"kl_reduction": "mean"}, "kl_reduction 'mean' is none of numel, batchmean"),
        ({"teacher_logits": None}, "soft distillation takes teacher_logits"),
        ({"teacher_labels": jnp.zeros(5, jnp.int32)}, "soft distillation takes teacher_logits, and no teacher_labels"),
        ({"kind": "hard", "teacher_logits": None}, "takes either teacher_logits or teacher_labels"),
        ({"kind": "hard", "teacher_labels": jnp.zeros(5, jnp.int32)}, "takes either teacher_logits or teacher_labels"),
    ],
    ids=str,
)
def test_arguments_that_make_no_loss_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        distilled(**options)
