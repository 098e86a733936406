"""Split expressions as TFDS writes them (`train`, `train[:90%]`, `train[:500]+test`), and how folders call splits."""

import collections
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from deit_jax.base.errors import UserError

T = TypeVar("T")

_BOUND = r"-?\d+(?:\.\d+)?%|-?\d+"
_PART = re.compile(rf"([\w-]+)(?:\[(?!:\])({_BOUND})?:({_BOUND})?\])?")

_WORDS = {
    "train": "train|training|trn",
    "validation": "val|valid|validation|dev|eval|evaluation",
    "test": "test|testing|tst",
}
_BESIDE = r"(data)?sets?|data|images?|imgs?|photos?|pictures?|pics?|splits?|folder|files"
_SPLIT = re.compile(rf"(?:{'|'.join(f'(?P<{split}>{words})' for split, words in _WORDS.items())})(?:{_BESIDE})?")


class SplitPart(NamedTuple):
    """One term of an expression: a split's name and the bounds of its slice as written (`None`: the split's end)."""

    name: str
    start: str | None
    stop: str | None

    def take(self, examples: Sequence[T], *, field: str) -> Sequence[T]:
        """The slice of a split's examples. Percentages are rounded to the nearest example, halves to even."""
        start = 0 if self.start is None else _position(self.start, len(examples), field=field)
        stop = len(examples) if self.stop is None else _position(self.stop, len(examples), field=field)
        if start >= stop:
            bounds = f"[{self.start or ''}:{self.stop or ''}]" if self.start or self.stop else ""
            raise UserError(f"{field}: {self.name}{bounds} is empty: the split has {len(examples)} examples; widen it")
        return examples[start:stop]


def parse_split(expression: str, *, field: str) -> list[SplitPart]:
    """The terms of a split expression, in order; `UserError` when it is malformed."""
    parts = []
    for term in re.split(r"\s*\+\s*", expression):
        match = _PART.fullmatch(term)
        if not match:
            raise UserError(
                f"{field}: cannot read {expression!r}; write train, train[:90%], train[10%:20%], train[-100:]"
            )
        part = SplitPart(*match.groups())
        if part.start and part.stop and part.start.endswith("%") != part.stop.endswith("%"):
            raise UserError(f"{field}: {term!r} mixes a percentage with a count; write both bounds alike")
        parts.append(part)
    return parts


def says_data(folder: str) -> bool:
    """Whether a folder's name says no more than that there are photos in it."""
    return bool(re.fullmatch(_BESIDE, folder.lower()))


def split_names(folders: Iterable[str]) -> dict[str, str]:
    """The folders whose names say a split, and which: `train`, `validation` or `test`.

    Such a name has a word for the split (train, training; val, valid, validation, dev, eval, evaluation; test,
    testing), in any case, alone or with words for data ("Testing", "train_images", "valset", "train2017"); or with
    words that another folder has beside that of another split ("seg_train" where there is "seg_test").
    """
    read = {folder: _read_name(folder) for folder in folders}
    beside: dict[tuple[str, ...], set[str]] = collections.defaultdict(set)
    for split, rest in read.values():
        beside[rest] |= {split} - {""}
    return {folder: split for folder, (split, rest) in read.items() if split and (not rest or len(beside[rest]) > 1)}


def _read_name(folder: str) -> tuple[str, tuple[str, ...]]:
    """The one split that a folder's name has a word for, "" for none; and its words that are not for data."""
    words = re.findall(r"[^\W\d_]+", re.sub("([a-z])([A-Z])", r"\1 \2", folder).lower())
    matches = {word: _SPLIT.fullmatch(word) for word in words}
    splits = {split for match in matches.values() if match for split in _WORDS if match[split]}
    rest = tuple(word for word in words if not matches[word] and not re.fullmatch(_BESIDE, word))
    return splits.pop() if len(splits) == 1 else "", rest


def unknown_split(name: str, available: Iterable[str], *, field: str) -> UserError:
    """The error for a split that is not there: it lists those that are, and the nearest."""
    names = list(available)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else "set it to one of them, or to a part, such as train[90%:]"
    return UserError(f"{field}: no split {name!r}; there are {', '.join(names)}; {hint}")


def _position(bound: str, count: int, *, field: str) -> int:
    """The index a bound stands for, in `0..count`; negative bounds count from the end."""
    if bound.endswith("%"):
        percent = float(bound[:-1])
        if abs(percent) > 100:
            raise UserError(f"{field}: {bound} is outside -100%..100%")
        position = round(percent * count / 100)
    else:
        position = int(bound)
        if abs(position) > count:
            raise UserError(f"{field}: bound {bound} is beyond the {count} examples of the split")
    return position + count if position < 0 else position
