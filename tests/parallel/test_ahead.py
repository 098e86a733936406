"""Steps that are compiled and not run: their memory, and what is kept of a forward pass."""

import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deit_jax import parallel
from deit_jax.parallel.plan import TooLarge, compile_ahead, residual_bytes, shard_bytes

GIB = 2**30


def shapes(**sides: tuple[int, ...]) -> dict[str, jax.ShapeDtypeStruct]:
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sides.items()}


def test_arguments_take_what_their_shards_do():
    """A kernel's last axis is cut into four, the rows into eight."""
    mesh = parallel.make_mesh(data=2, fsdp=4)
    params = parallel.targets(shapes(**{"fc.kernel": (6, 8), "fc.bias": (8,)}), mesh)
    rows = parallel.row_shapes({"x": np.zeros((16, 6), np.float32)}, mesh)
    assert (shard_bytes(params), shard_bytes(rows)) == (4 * (6 * 2 + 8), 4 * 2 * 6)
    step = jax.jit(lambda params, rows: rows["x"] @ params["fc.kernel"] + params["fc.bias"])
    compiled = compile_ahead(step, params, rows)
    assert compiled.memory["arguments"] == shard_bytes(params) + shard_bytes(rows)
    assert compiled.needed >= compiled.memory["arguments"] + compiled.memory["outputs"]
    assert compiled.cycles == 0  # of this machine's compiler


def test_a_donated_argument_counts_once():
    x = jax.ShapeDtypeStruct((1024,), jnp.float32)
    compiled = compile_ahead(jax.jit(lambda x: x + 1, donate_argnums=0), x)
    assert compiled.memory["aliased"] == compiled.memory["outputs"] == 4096
    assert compiled.memory["peak"] < 2 * 4096


def test_a_signal_is_heard_while_a_compiler_works():
    """Which takes minutes in which it lets no handler of the main thread run."""

    class Slow:
        def lower(self, *arguments):
            return self

        def compile(self, options):
            threads.append(threading.current_thread())
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(20)

    threads: list[threading.Thread] = []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores
    try:
        with pytest.raises(KeyboardInterrupt):
            compile_ahead(Slow())
    finally:
        signal.signal(signal.SIGINT, before)
    assert threads != [threading.main_thread()]


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 20.38G of 15.75G hbm.", round(20.38 * GIB)),
        ("the total memory required for HLO temporaries (600.00G) exceeds available HBM (15.48G)", 600 * GIB),
        ("it does not say", 0),
    ],
)
def test_what_a_compiler_asks_for_and_does_not_find(said, needed):
    assert TooLarge(said).needed == pytest.approx(needed, abs=1)


def test_a_backward_pass_keeps_the_inputs_of_products_and_of_sines():
    """Of `sin(x @ w) @ v` the input, the product and its sine, and `v`; with checkpoint, `x`, `w` and `v` alone."""
    given = shapes(w=(5, 7), v=(7, 11)), jax.ShapeDtypeStruct((3, 5), jnp.float32)

    def layer(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        return jnp.sin(x @ params["w"]) @ params["v"]

    sizes = {"x": 3 * 5, "cosine": 3 * 7, "sine": 3 * 7, "w": 5 * 7, "v": 7 * 11}
    assert residual_bytes(layer, *given) == 4 * sum(sizes[name] for name in ("x", "cosine", "sine", "v"))
    assert residual_bytes(jax.checkpoint(layer), *given) == 4 * sum(sizes[name] for name in ("x", "w", "v"))
