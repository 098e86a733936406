"""Plans for chips that are not there, by their own compilers."""

import math
import os

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding
from tiny import tiny_config

from deit_jax.parallel.plan import TooLarge, compile_ahead
from deit_jax.parallel.topologies import CHIPS, find_topology
from deit_jax.run.plan import make_plan

pytestmark = pytest.mark.compilers

os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # before another test loads it

LAYOUTS = {"v3": "2x2", "v4": "2x2x1", "v5e": "2x2", "v5p": "2x2x1", "v6e": "2x2", "tpu7x": "2x2x1"}
GPUS = {name: "8" for name, chip in CHIPS.items() if chip.target}


@pytest.mark.parametrize(("kind", "layout"), (LAYOUTS | GPUS).items())
def test_known_chips_are_known_to_their_compilers(kind, layout):
    topology = find_topology(f"{kind}:{layout}")
    found = topology.devices()
    assert len(found) == topology.chips * topology.chip.devices
    assert {device.device_kind for device in found} == {topology.chip.kind}


@pytest.mark.parametrize(("name", "slices", "devices"), [("v5e:1x1", 1, 1), ("v4:2x2x4", 1, 16), ("v5e:4x4", 2, 32)])
def test_layouts_and_slices(name, slices, devices):
    found = find_topology(name, slices).devices()
    assert (len(found), len({getattr(device, "slice_index", 0) for device in found})) == (devices, slices)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_memory_is_what_the_compiler_finds_available(kind):
    """An array that only just does not fit is refused, and the refusal tells what there is."""
    topology = find_topology(f"{kind}:{LAYOUTS[kind]}")
    size = topology.memory + 2**30
    x = jax.ShapeDtypeStruct((size // 2**20, 2**20), jnp.uint8, sharding=SingleDeviceSharding(topology.devices()[0]))
    with pytest.raises(TooLarge, match=rf"\({topology.memory / 2**30:.2f}G\)") as caught:
        compile_ahead(jax.jit(lambda x: x + 1), x)
    assert caught.value.needed > topology.memory


@pytest.mark.parametrize("name", ["v5e:2x4", "h100:8"])
def test_plan_of_a_data_parallel_run(name, tmp_path):
    """A plain DeiT, all devices in one mixing group, three images each, which are no pairs: gradients in float32 and
    mixing partners in uint8 travel."""
    topology = find_topology(name)
    config = tiny_config(
        model__name="deit_tiny_patch16_224",
        model__patch_size=16,
        model__width=128,
        model__depth=1,
        model__heads=2,
        model__dtype="bfloat16",
        model__attention="xla",
        data__image_size=224,
        batch_size=24,
        mixing__group=24,
    )
    plan = make_plan(config, tmp_path, topology=topology)
    compiled = plan["compiled"]
    moved = {each["moves"]: each for each in compiled["collectives"] if each["moves"] != "indices"}
    assert moved.keys() <= {"gradients", "images", "targets", "scalars"}
    assert (moved["gradients"]["dtype"], moved["images"]["dtype"]) == ("f32", "u8")
    assert moved["images"]["bytes"] == 3 * math.prod((224, 224, 3))
    assert 4 * plan["parameters"] <= moved["gradients"]["bytes"] <= 4 * (plan["parameters"] + 1)
    assert plan["fits"]
    assert plan["bytes_per_device"] < 2**30
    assert bool(compiled["estimated_cycles"]) == (topology.chip.platform == "tpu")
    assert list(tmp_path.iterdir()) == []
