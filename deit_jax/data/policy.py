"""The text that names an augmentation, in timm's grammar: `rand-m9-mstd0.5-inc1`, `original-mstd0.5`, `3a`."""

import math
import re
from collections.abc import Mapping
from functools import lru_cache

from deit_jax.base.errors import UserError, nearest
from deit_jax.data.autoaugment import AutoAugment
from deit_jax.data.randaugment import WEIGHTS, Levels, Meaning, RandAugment
from deit_jax.data.three_augment import ThreeAugment

FIELD = "config.data.augment"
# What levels mean to the policies of AutoAugment.
_AUTO: dict[str, Meaning] = {"original": "original", "v0": "falling"}
KINDS = ("rand", "3a", *_AUTO)
# Tokens: whole numbers or not, and from where to where.
_NOISE = {"mstd": (float, 0, math.inf)}
_RAND = _NOISE | {
    "m": (int, 0, 100),
    "n": (int, 1, 100),
    "p": (float, 0, 1),
    "mmax": (int, 1, 100),
    "inc": (int, 0, 1),
    "w": (int, 0, 0),
}
_UNIFORM = 100  # of mstd: above it levels are uniform

Policy = RandAugment | AutoAugment | ThreeAugment


@lru_cache
def parse_policy(spec: str) -> Policy | None:
    """The policy that a text names; None for "".

    `rand` (RandAugment) takes `m` (magnitude, default 10), `n` (operations drawn, 2), `p` (probability of each, 0.5),
    `mstd` (noise of the magnitude, 0; over 100: uniform from 0 to it), `mmax` (where it is cut off, 10), `inc1` (all
    operations grow stronger with it) and `w0` (choice by weights); AutoAugment's `original` and `v0` take `mstd`; `3a`
    (3-Augment) takes nothing.

    Raises:
        UserError: the text is of no such form; the message points at the token.
    """
    if not spec:
        return None
    kind, *tokens = spec.split("-")
    if kind not in KINDS:
        raise UserError(f"{FIELD}: {spec!r}: unknown augmentation {kind!r}{nearest(kind, KINDS)}")
    known = {"rand": _RAND, "3a": {}}.get(kind, _NOISE)
    given = _values(spec, kind, tokens, known)
    if kind == "3a":
        return ThreeAugment()
    std = given.get("mstd", 0.0)
    if kind in _AUTO:
        return AutoAugment(kind, Levels(std=std, meaning=_AUTO[kind]))
    levels = Levels(
        std=math.inf if std > _UNIFORM else std,
        most=given.get("mmax", 10),
        meaning="increasing" if given.get("inc") else "falling",
    )
    layers, usable = int(given.get("n", 2)), sum(weight > 0 for weight in WEIGHTS.values())
    if "w" in given and layers > usable:
        raise UserError(f"{FIELD}: {spec!r}: n{layers}: w0 draws each of {usable} operations once at most; lower n")
    return RandAugment(int(given.get("m", 10)), layers, given.get("p", 0.5), levels, "w" in given)


def _values(
    spec: str, kind: str, tokens: list[str], known: Mapping[str, tuple[type, float, float]]
) -> dict[str, float]:
    """The numbers of the tokens by their letters."""
    values: dict[str, float] = {}
    for token in tokens:
        match = re.fullmatch(r"([a-z]+)([0-9]+(?:\.[0-9]+)?)", token)
        name = match[1] if match else token.rstrip("0123456789.")
        if name not in known:
            takes = f"{kind} takes {', '.join(known)}" if known else f"{kind} takes none"
            raise UserError(f"{FIELD}: {spec!r}: unknown token {token!r}; {takes}")
        number, low, high = known[name]
        if name in values:
            raise UserError(f"{FIELD}: {spec!r}: {token!r}: {name} comes twice; leave one out")
        if not match or (number is int and "." in match[2]) or not low <= float(match[2]) <= high:
            bounds = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
            what = f"{name} with a {'whole number' if number is int else 'number'} {bounds}"
            raise UserError(f"{FIELD}: {spec!r}: {token!r}: should be {what if low < high else f'{name}{low}'}")
        values[name] = float(match[2])
    return values
