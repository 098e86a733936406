"""AdamW against torch's numbers (golden/make_adamw.py), and what is trained how fast."""

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


def golden(prefix: str) -> dict[str, jax.Array]:
    return {name: jax.device_put(GOLDEN[f"{prefix}/{name}"]) for name in NAMES}


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
