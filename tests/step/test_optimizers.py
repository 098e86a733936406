"""The other optimizers against timm's numbers, and those of a few lines (golden/make_optimizers.py)."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from golden import make_optimizers
from golden_files import assert_close, load

from deit_jax.base.rules import match_all
from deit_jax.models import abstract_model, flatten, list_models
from deit_jax.step import optim

GOLDEN = load("optimizers.npz")


def after_all(optimizer, size: float) -> dict[str, np.ndarray]:
    params = {name: jax.device_put(value) for name, value in make_optimizers.parameters().items()}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return {name: params[name] - make_optimizers.RATE * updates[name] for name in params}, state

    for t in range(1, make_optimizers.STEPS + 1):
        params, state = step(params, state, make_optimizers.gradients(t, size))
    return params


@pytest.mark.parametrize("case", make_optimizers.LAMB)
def test_lamb_equals_timms_and_the_papers_after_twenty_steps(case):
    eps, weight_decay, size = make_optimizers.LAMB[case]
    ours = after_all(optim.lamb(make_optimizers.SHAPES, b1=0.9, b2=0.999, eps=eps, weight_decay=weight_decay), size)
    for name in make_optimizers.SHAPES:
        for source in (case, f"{case}-reference"):
            theirs, what = GOLDEN[f"{source}/{name}"], f"{name} of {source}"
            if name == make_optimizers.ZEROS:
                assert_close(ours[name], theirs, "optimizers.npz", "from zero", err_msg=what)
            else:
                assert_close(ours[name], theirs, "optimizers.npz", "parameters", err_msg=what)


@pytest.mark.parametrize("case", make_optimizers.SGD)
def test_sgd_equals_timms_after_twenty_steps(case):
    momentum, weight_decay = make_optimizers.SGD[case]
    ours = after_all(optim.sgd(make_optimizers.SHAPES, momentum=momentum, weight_decay=weight_decay), 0.1)
    for name in make_optimizers.SHAPES:
        assert_close(ours[name], GOLDEN[f"{case}/{name}"], "optimizers.npz", "parameters", err_msg=name)


def test_muon_is_for_the_matrices_of_blocks():
    model = abstract_model("deit3_small_patch16_224", depth=1)
    paths = flatten(model, nnx.Param)
    matrices = {path for path, matrix in match_all(optim.MUON_RULES, paths).items() if matrix}
    parts = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert matrices == {f"blocks.0.{part}.kernel" for part in parts}
    assert all(paths[path].ndim == 2 for path in matrices)


@pytest.mark.parametrize("name", [name for name in list_models() if "eff" in name or "net" in name])
def test_muon_takes_no_convolution(name):
    assert not any(match_all(optim.MUON_RULES, flatten(abstract_model(name), nnx.Param)).values())


@pytest.mark.long
def test_lamb_has_one_form_with_and_without_decay():
    """So that a resume may change it; without decay nothing has a trust ratio."""
    params = {name: jax.device_put(value) for name, value in make_optimizers.parameters().items()}
    grads = make_optimizers.gradients(1, 0.1)
    adam = {"b1": 0.9, "b2": 0.999, "eps": 1e-6}
    without, with_decay = (optim.lamb(params, weight_decay=decay, **adam) for decay in (0.0, 0.1))
    assert jax.tree.structure(without.init(params)) == jax.tree.structure(with_decay.init(params))
    updates = without.update(grads, without.init(params), params)[0]
    plain = optim.adamw(params, weight_decay=0.0, **adam)
    clipped = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())[0]
    for name, update in plain.update(clipped, plain.init(params), params)[0].items():
        np.testing.assert_array_equal(updates[name], update)


def test_muon_turns_matrices_and_leaves_the_rest_to_adamw():
    """The first update of a matrix is nearly orthogonal, of Adam's length, and decays; all else is AdamW's."""
    adam = {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 0.05}
    params = {name: jax.device_put(value) for name, value in make_optimizers.parameters().items()}
    grads = {name: jax.device_put(value) for name, value in make_optimizers.gradients(1, 0.1).items()}
    updates = {}
    for name, optimizer in (
        ("muon", optim.muon(params, momentum=0.9, **adam)),
        ("adamw", optim.adamw(params, **adam)),
    ):
        updates[name], _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    for name, update in updates["muon"].items():
        if not (name.startswith("blocks") and name.endswith("kernel")):
            np.testing.assert_array_equal(update, updates["adamw"][name])
            continue
        turned = np.asarray(update - 0.05 * params[name], np.float64) / (0.2 * np.sqrt(max(update.shape)))
        singular = np.linalg.svd(turned, compute_uv=False)
        assert 0.6 < singular.min() < singular.max() < 1.3  # what five steps of Newton and Schulz leave
        left, _, right = np.linalg.svd(np.asarray(grads[name], np.float64), full_matrices=False)
        assert np.sum(turned * (left @ right)) > 0.9 * np.linalg.norm(turned) * np.sqrt(min(update.shape))
