"""The files in golden/, read, and compared as closely as golden/MANIFEST.json says.

Of each file the manifest has `made_by`, the script; `command`, from the root of the repository; `versions`, with which
the command gave the same file again, to the byte unless a `note` says otherwise; `seed`, or several; `read_by`, the
tests; `sha256`; and `tolerance`, for each kind of number that the tests compare.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "golden"
MANIFEST: dict[str, dict[str, Any]] = json.loads((FOLDER / "MANIFEST.json").read_text())


def load(name: str) -> dict[str, np.ndarray]:
    return arrays(FOLDER / name)


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def assert_close(ours: Any, theirs: Any, name: str, kind: str, **options: Any) -> None:
    """As the manifest has it: |ours - theirs| <= rtol |theirs| + atol + of_largest max |theirs|."""
    stated = MANIFEST[name]["tolerance"][kind]
    atol = stated["atol"] + stated["of_largest"] * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=stated["rtol"], atol=atol, **options)
