"""A model's variables as a flat dict and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from deit_jax.models import abstract_model, bind, flatten

NAME = "deit_tiny_distilled_patch16_224"
SMALL = {"image_size": (8, 12), "patch_size": 4, "width": 6, "heads": 2, "num_classes": 5}


@pytest.fixture(scope="module")
def abstract() -> nnx.Module:
    return abstract_model(NAME, **SMALL, depth=12)


def filled(abstract: nnx.Module) -> dict[str, jax.Array]:
    """Every variable filled with a number of its own."""
    return {name: jnp.full(shape.shape, i, shape.dtype) for i, (name, shape) in enumerate(flatten(abstract).items())}


def test_binding_and_flattening_keeps_every_value_in_its_place(abstract):
    """At depth 12, where "10" sorts before "2", and whatever the order of the dict."""
    variables = filled(abstract)
    for given in (variables, dict(sorted(variables.items())), dict(reversed(variables.items()))):
        model = bind(abstract, given)
        for i in range(12):
            np.testing.assert_array_equal(
                model.blocks[i].attn.qkv.kernel[...], variables[f"blocks.{i}.attn.qkv.kernel"]
            )
        again = flatten(model)
        assert again.keys() == variables.keys()
        assert all(again[name] is variables[name] for name in again)


def test_a_bound_model_can_be_differentiated_inside_jit(abstract):
    def loss(params):
        return bind(abstract, params).head_dist.kernel[...].sum()

    grads = jax.jit(jax.grad(loss))(filled(abstract))
    assert {name for name, grad in grads.items() if grad.any()} == {"head_dist.kernel"}


def test_an_abstract_model_holds_shapes_only(abstract):
    assert all(isinstance(value, jax.ShapeDtypeStruct) for value in flatten(abstract).values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("blocks.10.norm1.scale"), r"1 missing: blocks\.10\.norm1\.scale$"),
        (lambda v: v.update(extra=v["norm.bias"]), r"1 unexpected: extra$"),
        (
            lambda v: v.update({"norm.bias": v["head.bias"]}),
            r"1 of another shape or type: norm\.bias float32\[5\] instead of float32\[6\]$",
        ),
        (
            lambda v: v.update({"head.bias": v["head.bias"].astype(jnp.bfloat16)}),
            r"head\.bias bfloat16\[5\] instead of float32\[5\]$",
        ),
        (
            lambda v: [v.pop(f"blocks.{i}.mlp.fc1.bias") for i in range(5)],
            r"5 missing: blocks\.\{0-4\}\.mlp\.fc1\.bias$",
        ),
    ],
    ids=["missing", "unexpected", "shape", "dtype", "many"],
)
def test_variables_that_do_not_fit_are_refused_by_name(abstract, change, message):
    variables = filled(abstract)
    change(variables)
    with pytest.raises(ValueError, match=message):
        bind(abstract, variables)


def test_all_that_does_not_fit_is_in_one_line(abstract):
    variables = filled(abstract)
    for i in (0, 1, 2, 10):
        del variables[f"blocks.{i}.norm1.scale"], variables[f"blocks.{i}.norm2.scale"]
    variables |= {f"blocks.{i}.ls1.gamma": jnp.ones(6) for i in range(12)}
    variables |= {f"blocks.{i}.attn.qkv.bias": jnp.ones(12) for i in range(12)}
    variables |= {f"blocks.{i}.attn.proj.bias": jnp.ones(6, jnp.bfloat16) for i in range(3, 12)}
    variables |= {"blocks.0.attn.proj.bias": jnp.ones(7)}
    with pytest.raises(ValueError, match="do not fit") as error:
        bind(abstract, variables)
    assert str(error.value) == (
        "the variables do not fit the model: 8 missing: blocks.{0-2,10}.norm{1,2}.scale; "
        "12 unexpected: blocks.{0-11}.ls1.gamma; "
        "22 of another shape or type: blocks.0.attn.proj.bias float32[7] instead of float32[6], "
        "blocks.{0-11}.attn.qkv.bias float32[12] instead of float32[18], "
        "blocks.{3-11}.attn.proj.bias bfloat16[6] instead of float32[6]"
    )


class Normalized(nnx.Module):
    """A convolutional teacher in miniature."""

    def __init__(self, rngs: nnx.Rngs):
        self.fc = nnx.Linear(3, 2, rngs=rngs)
        self.bn = nnx.BatchNorm(2, momentum=0.9, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return self.bn(self.fc(x), use_running_average=not train)


def test_statistics_go_in_and_come_out_of_a_jitted_step():
    model = Normalized(nnx.Rngs(0))
    abstract = nnx.eval_shape(lambda: Normalized(nnx.Rngs(0)))
    params, stats = flatten(model, nnx.Param), flatten(model, nnx.BatchStat)
    assert params.keys() == {"fc.kernel", "fc.bias", "bn.scale", "bn.bias"}
    assert stats.keys() == {"bn.mean", "bn.var"}

    @jax.jit
    def step(params, stats, x):
        def loss(params):
            model = bind(abstract, {**params, **stats})
            return (model(x, train=True) ** 2).sum(), flatten(model, nnx.BatchStat)

        return jax.grad(loss, has_aux=True)(params)

    x = np.random.default_rng(0).normal(2, 1, (7, 3)).astype(np.float32)
    grads, new = step(params, stats, x)
    hidden = x @ np.asarray(params["fc.kernel"]) + np.asarray(params["fc.bias"])
    assert grads.keys() == params.keys()
    np.testing.assert_allclose(new["bn.mean"], 0.1 * hidden.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["bn.var"], 0.9 + 0.1 * hidden.var(0), rtol=1e-5)
