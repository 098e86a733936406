"""Chips that are planned for: their names, and what is said where a compiler is missing. None is asked here."""

import importlib.util

import pytest

from deit_jax.base.errors import UserError
from deit_jax.parallel.topologies import CHIPS, find_topology


@pytest.mark.parametrize(
    ("name", "slices", "chips", "platform"),
    [
        *(("v5e:16x16", 1, 256, "tpu"), ("v5e:4x4", 2, 32, "tpu"), ("v4:2x2x4", 1, 16, "tpu"), ("v3:2x2", 1, 4, "tpu")),
        *(("tpu7x:2x2x1", 1, 4, "tpu"), ("h100:8", 1, 8, "gpu"), ("h200:16", 1, 16, "gpu"), ("a100:3", 1, 3, "gpu")),
    ],
)
def test_layouts_multiply_to_chips(name, slices, chips, platform):
    topology = find_topology(name, slices)
    assert (topology.chips, topology.chip.platform) == (chips, platform)


@pytest.mark.parametrize(
    "name",
    ["", "v5e", "v5e:", "v5e:4", "v5e:4x4x4", "v5e:0x4", "v5e:4x4 ", "v4:4x4", "h100:2x8", "h100:", "v9:4x4", "x"],
)
def test_unknown_names_list_those_that_are_known(name):
    with pytest.raises(UserError, match=r"^--topology: .*none that is known; known: ") as caught:
        find_topology(name)
    assert all(chip in str(caught.value) for chip in CHIPS)


def test_gpus_come_in_whole_hosts_and_no_slices():
    with pytest.raises(UserError, match=r"--topology: h100:12 are no whole hosts of 8"):
        find_topology("h100:12")
    with pytest.raises(UserError, match=r"--slices: .*--topology=h100:16"):
        find_topology("h100:8", 2)


@pytest.mark.parametrize(("name", "extra"), [("v5e:4x4", "plan-tpu"), ("h100:8", "plan-cuda")])
def test_a_missing_compiler_is_named_by_its_extra(name, extra, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"^--topology: .*pip install 'deit_jax\[{extra}\]'"):
        find_topology(name).devices()


def test_hosts_of_gpus_are_told_to_the_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module)
    assert [find_topology(f"h100:{n}")._arguments()["topology"] for n in (4, 8, 16)] == ["1x1x4", "1x1x8", "1x2x8"]
    target = find_topology("a100:8")._arguments()["target_config"]
    assert "{ major: 8 }" in target
    assert "core_count: 108" in target


def test_memory_of_gpus_is_what_the_environment_leaves_to_jax(monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    gpu, tpu = find_topology("h100:8"), find_topology("v5e:4x4")
    assert (gpu.memory, tpu.memory) == (63_733_825_536, int(15.75 * 2**30))  # 75 % of 84,978,434,048
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        with monkeypatch.context() as context:
            context.setenv(name, "0.5")
            assert (gpu.memory, tpu.memory) == (42_489_217_024, int(15.75 * 2**30))
            for wrong in ("much", "0", "nan", "1.5"):
                context.setenv(name, wrong)
                with pytest.raises(UserError, match=rf"^{name}: is {wrong}, should be a share of a GPU's memory"):
                    _ = gpu.memory


def test_peaks_are_those_of_the_matrix_units_at_their_clock():
    """As published: 128 x 128 multiply-adds a cycle in each unit, of which v3 and v5e have 4, v4 and v5p 8."""
    for name, units in (("v3", 4), ("v4", 8), ("v5e", 4), ("v5p", 8)):
        assert CHIPS[name].peak == pytest.approx(2 * units * 128**2 * CHIPS[name].clock, rel=0.003)
