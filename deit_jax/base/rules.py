"""First-match rules over parameter paths.

One engine serves weight-decay masks, sharding specs and what devices exchange, among others: a list of
`(regex, value)` pairs, tried in order with `re.search` against a dotted path such as `blocks.0.attn.qkv.kernel`.
"""

import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def first_match(rules: Sequence[tuple[str, T]], path: str) -> T:
    """The value of the first rule whose regex is found in `path`; `ValueError` when none is."""
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise ValueError(f"no rule matches {path!r}; rules: {[pattern for pattern, _ in rules]}")


def match_all(rules: Sequence[tuple[str, T]], paths: Iterable[str]) -> dict[str, T]:
    """`{path: value}` for every path; `ValueError` unless the rules cover all of them."""
    return {path: first_match(rules, path) for path in paths}
