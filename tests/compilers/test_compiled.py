"""What the compilers for TPUs and NVIDIA GPUs make of a step for eight devices, of which none need be there."""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny import tiny_config

from deit_jax import parallel
from deit_jax.models import bind, flatten
from deit_jax.models.attention import Attention
from deit_jax.parallel.mesh import BATCH
from deit_jax.parallel.topologies import find_topology
from deit_jax.run.build import Run, build, open_mesh
from deit_jax.run.stream import train_source

pytestmark = pytest.mark.compilers

PLATFORMS = ("tpu", "cuda")
TOPOLOGIES = {"tpu": find_topology("v5e:2x4"), "cuda": find_topology("h100:8")}


@functools.cache
def eight(platform: str, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """Eight TPU v5e or H100, as the compiler knows them."""
    return parallel.make_mesh(-1, fsdp, tensor, devices=TOPOLOGIES[platform].devices())


def compiled(platform: str, function: Callable[..., Any], *given: Any) -> str:
    """The program that the platform's compiler makes of a jitted function."""
    return function.lower(*given).compile(TOPOLOGIES[platform].options).as_text()


def placed(shape: Sequence[int], dtype: Any, mesh: Mesh, spec: P) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


@functools.cache
def train_step(platform: str, gradient_dtype: str, fsdp: int = 1, tensor: int = 1) -> tuple[Run, str]:
    """A plain DeiT of 197 tokens, all devices in one mixing group: the run, and its compiled train step."""
    config = tiny_config(
        model__name="deit_tiny_patch16_224",
        model__patch_size=16,
        model__width=128,
        model__heads=2,
        model__dtype="bfloat16",
        model__attention="cudnn" if platform == "cuda" else "xla",
        data__image_size=224,
        mixing__group=32,
        optim__gradient_dtype=gradient_dtype,
    )
    mesh, source = eight(platform, fsdp, tensor), train_source(config)
    run = build(config, mesh, source)
    batch, _ = next(build(config, open_mesh(config), source).batches(0, 1))  # on CPU devices
    there = jax.tree.map(lambda x: placed(x.shape, x.dtype, mesh, x.sharding.spec), batch)
    return run, compiled(platform, run.train_step(), run.target, there, np.uint32(0))


def summed(program: str) -> Counter:
    """How many numbers of each type are summed over the devices."""
    numbers: Counter = Counter()
    for shapes in re.findall(r" = (.*) all-reduce(?:-start)?\(", program):
        for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            numbers[dtype] += math.prod(map(int, filter(None, dims.split(","))))
    return numbers


@pytest.mark.parametrize("platform", PLATFORMS)
def test_gradients_are_summed_in_the_type_that_the_config_names(platform):
    run, in_float32 = train_step(platform, "float32")
    _, in_bfloat16 = train_step(platform, "bfloat16")
    sizes = {path: leaf.size for path, leaf in run.target.params.items()}
    matrices = sum(size for path, size in sizes.items() if path.endswith(".kernel") and path != "head.kernel")
    everything = sum(sizes.values()) + 1  # and the loss
    assert summed(in_float32) == {"f32": everything}
    assert summed(in_bfloat16)["bf16"] >= matrices
    assert summed(in_bfloat16).total() == everything


@pytest.mark.parametrize("platform", PLATFORMS)
def test_images_that_mix_do_not_travel(platform):
    """Both of a pair are on one device."""
    _, program = train_step(platform, "float32")
    assert "u8[" in program  # as images are when they come
    moved = re.findall(r" = (.*) (?:collective-permute|all-to-all|all-gather)(?:-start)?\(", program)
    assert not [shapes for shapes in moved if re.search(r"\[[\d,]*224,224,3\]", shapes)]


@pytest.mark.parametrize(("fsdp", "tensor"), [(1, 2), (4, 1), (2, 2)])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_weights_travel_and_tokens_do_not(platform, fsdp, tensor):
    """`tensor` cuts queries, keys and values by heads, `fsdp` has weights gathered: no moved array has 197 tokens, of
    one image or of many in a row."""
    run, program = train_step(platform, "float32", fsdp, tensor)

    def of_tokens(operations: str) -> set[str]:
        shapes = re.findall(rf" = (.*) (?:{operations})(?:-start)?\(", program)
        found = {dims for each in shapes for dims in re.findall(r"\w\[([\d,]+)\]", each)}
        return {dims for dims in found if any(int(size) % 197 == 0 for size in dims.split(","))}

    assert of_tokens("collective-permute|all-to-all|all-gather") == set()
    rows = run.config.batch_size * tensor // 8
    reduced = of_tokens("all-reduce") & {f"{rows},197,128", f"{rows * 197},128"}
    assert bool(reduced) == (tensor > 1)  # what attention and MLP add to the tokens


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("name", ["v5e:4x4", "v5e:16x16", "v4:2x2x4", "v5p:2x2x2", "v6e:4x4"])
def test_every_process_of_a_pod_has_rows_in_a_row(name, slices):
    kind = {"chip_config_name": "megacore"} if name.startswith("v4") else {}
    asked = kind | ({"num_slices": slices} if slices > 1 else {})
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **asked).devices
    processes, count = {device.process_index for device in devices}, len(devices)
    for fsdp, tensor in ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (2, 2), (4, 2)):
        mesh = parallel.make_mesh(-1, fsdp, tensor, slices, devices)
        assert {len({getattr(chip, "slice_index", 0) for chip in part.flat}) for part in mesh.devices} == {1}
        rows = [parallel.local_rows(mesh, count, process) for process in processes]
        assert sorted(row for own in rows for row in own) == list(range(count))


def test_cudnn_attention_trains_a_plain_deit():
    _, program = train_step("cuda", "float32")
    assert "__cudnn$fmhaSoftmaxBackward" in program


@pytest.mark.parametrize("tokens", [197, 198, 577])
@pytest.mark.parametrize("implementation", ["einsum", "xla", "cudnn"])
def test_gradient_of_attention_compiles_for_h100(implementation, tokens):
    mesh = eight("cuda")

    def attention() -> Attention:
        return Attention(128, 2, implementation=implementation, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))

    abstract = nnx.eval_shape(attention)
    weights = {path: placed(leaf.shape, leaf.dtype, mesh, P()) for path, leaf in flatten(abstract).items()}
    x = placed((16, tokens, 128), jnp.bfloat16, mesh, P(BATCH))
    gradient = jax.jit(jax.grad(lambda weights, x: bind(abstract, weights)(x).astype(jnp.float32).sum(), (0, 1)))
    program = compiled("cuda", gradient, weights, x)
    assert ("__cudnn$fmhaSoftmaxBackward" in program) == (implementation == "cudnn")
