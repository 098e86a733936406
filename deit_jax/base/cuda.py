"""Whether JAX's CUDA plugin and the NVIDIA driver of this machine go together."""

import importlib.util
import re
from collections.abc import Collection
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")
# The oldest driver of each CUDA major version, as NVIDIA's CUDA compatibility guide has them.
OLDEST_DRIVER = {12: 525, 13: 580}


def problem(*, works: bool) -> str:
    """Why JAX will not use this machine's NVIDIA GPU, and the mend; "" where all is well.

    Args:
        works: JAX does run on a GPU: then only two plugins at a time are a problem. Not every system that has a driver
            tells its version here (WSL does not).
    """
    found = re.search(r"\b(\d{3,})\.\d", DRIVER.read_text()) if DRIVER.exists() else None
    plugins = [cuda for cuda in OLDEST_DRIVER if importlib.util.find_spec(f"jax_cuda{cuda}_plugin")]
    return "" if works and len(plugins) < 2 else mismatch(int(found[1]) if found else 0, plugins)


def mismatch(driver: int, plugins: Collection[int]) -> str:
    """As `problem`.

    Args:
        driver: major version of the NVIDIA driver; 0 where there is none.
        plugins: CUDA versions for which JAX's plugin is installed.
    """
    fitting = [cuda for cuda, oldest in OLDEST_DRIVER.items() if driver >= oldest]
    if len(plugins) > 1:
        other = min(plugins) if max(plugins) in fitting else max(plugins)
        remove = f"pip uninstall jax-cuda{other}-plugin jax-cuda{other}-pjrt"
        return f"JAX's plugins for CUDA {' and '.join(map(str, sorted(plugins)))} are both installed; {remove}"
    if not driver:
        return f"JAX's plugin for CUDA {min(plugins)} is installed, and no NVIDIA driver" if plugins else ""
    if not fitting:
        oldest = min(OLDEST_DRIVER.values())
        return f"the NVIDIA driver {driver} is too old for JAX, which needs {oldest}; update it"
    if not set(plugins) & set(fitting):
        there = f"JAX's plugin is for CUDA {min(plugins)}" if plugins else "JAX has no plugin for it"
        return f"the NVIDIA driver is {driver}, and {there}; pip install -e '.[cuda{max(fitting)}]'"
    return ""
