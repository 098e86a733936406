"""Which NVIDIA driver goes with which of JAX's plugins."""

import pytest

from deit_jax.base import cuda


@pytest.mark.parametrize(
    ("driver", "plugins", "says"),
    [
        (0, [], ""),
        (535, [12], ""),
        (580, [12], ""),
        (580, [13], ""),
        (0, [12], "plugin for CUDA 12 is installed, and no NVIDIA driver"),
        (470, [12], "driver 470 is too old for JAX, which needs 525"),
        (535, [], "driver is 535, and JAX has no plugin for it; pip install -e '.[cuda12]'"),
        (580, [], "driver is 580, and JAX has no plugin for it; pip install -e '.[cuda13]'"),
        (535, [13], "driver is 535, and JAX's plugin is for CUDA 13; pip install -e '.[cuda12]'"),
        (535, [12, 13], "both installed; pip uninstall jax-cuda13-plugin"),
        (580, [12, 13], "both installed; pip uninstall jax-cuda12-plugin"),
        (0, [12, 13], "both installed"),
    ],
)
def test_what_is_said(driver, plugins, says):
    said = cuda.mismatch(driver, plugins)
    assert says in said if says else said == ""


@pytest.mark.parametrize(
    ("version", "says"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.07  Sat Feb 17\nGCC version: 12.3",
            "535",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580"),
    ],
)
def test_the_driver_is_read(version, says, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "DRIVER", tmp_path / "version")
    assert cuda.problem(works=False) == ""
    cuda.DRIVER.write_text(version)
    assert f"driver is {says}, and JAX has no plugin for it" in cuda.problem(works=False)
    assert cuda.problem(works=True) == ""
