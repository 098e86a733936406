"""What the tests of the convolutional networks share: their golden files, read and compared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from golden_files import assert_close, load

from deit_jax.models import bind, flatten


def abstract(build, **arguments):
    return nnx.eval_shape(lambda: build(**arguments, rngs=nnx.Rngs(0)))


def count(model):
    return sum(value.size for value in flatten(model, nnx.Param).values())


@functools.cache
def golden(name):
    """(variables by our paths, the other arrays) of a golden file."""
    arrays = load(name)
    others = {path: array for path, array in arrays.items() if "." not in path or path.startswith("stored.")}
    return {path: jax.device_put(array) for path, array in arrays.items() if path not in others}, others


def shallow(outline, name):
    """A model whose variables are all among a golden file's, with those."""
    variables = golden(name)[0]
    return bind(outline, {path: variables[path] for path in flatten(outline)})


def assert_golden(outline, name):
    """The logits in evaluation and training and the statistics stored are a golden file's."""
    variables, expected = golden(name)

    @jax.jit
    def run(variables, images):
        trained = bind(outline, variables)
        (train_logits,) = trained.head_logits(images, key=jax.random.key(0))
        untouched = bind(outline, variables)
        return untouched(images), train_logits, flatten(trained, nnx.BatchStat), flatten(untouched, nnx.BatchStat)

    logits, train_logits, stored, untouched = run(variables, expected["images"].astype(np.float32))
    assert logits.dtype == train_logits.dtype == jnp.float32
    assert_close(logits, expected["logits"], name, "logits")
    assert_close(train_logits, expected["train_logits"], name, "logits")
    assert {f"stored.{path}" for path in stored} == {path for path in expected if path.startswith("stored.")}
    for path, value in stored.items():
        theirs = expected[f"stored.{path}"]
        assert_close(value, theirs, name, "statistics", err_msg=path)
        np.testing.assert_array_equal(untouched[path], variables[path])
        assert abs(theirs - variables[path]).max() > 1e-3
