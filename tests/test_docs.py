"""What the documents name is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_paths_in_the_architecture_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    paths = re.findall(r"`((?:deit_jax|docs|tests|configs)/[^`\s]*|[\w/]+\.(?:py|md))`", text)
    known = [path.relative_to(ROOT) for folder in ("deit_jax", "tests", "docs") for path in (ROOT / folder).rglob("*")]
    lost = [p for p in paths if not (ROOT / p).exists() and not any(k.match(p) for k in known)]
    assert len(paths) > 40
    assert lost == []
