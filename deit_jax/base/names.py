"""Many names in a line: those that differ only in numbers are told as one, and none is left out."""

import re
from collections.abc import Iterable, Mapping


def listing(problems: Mapping[str, Mapping[str, str]]) -> str:
    """Every name with its problem; "" if there is none.

    Args:
        problems: for each problem the names, and what there is to say of each, such as its shapes. Only names of which
            the same is said are told as one.
    """
    return "; ".join(
        f"{len(names)} {problem}: {', '.join(_told(names))}" for problem, names in problems.items() if names
    )


def ranges(names: Iterable[str]) -> list[str]:
    """Fewer names for the same: `blocks.{0-11}.norm{1,2}.bias` are 24.

    Expanding the braces gives back exactly the names, in the order of their numbers.
    """
    kinds: dict[tuple[str, ...], list[tuple[frozenset[str], ...]]] = {}
    for name in names:
        parts = re.split("([0-9]+)", name)
        kinds.setdefault(tuple(parts[::2]), []).append(tuple(frozenset([number]) for number in parts[1::2]))
    return [_join(words, box) for words, boxes in kinds.items() for box in _merge(boxes)]


def _told(names: Mapping[str, str]) -> list[str]:
    same: dict[str, list[str]] = {}
    for name, said in names.items():
        same.setdefault(said, []).append(name)
    return [f"{name} {said}".rstrip() for said, alike in same.items() for name in ranges(alike)]


def _merge(boxes: list[tuple[frozenset[str], ...]]) -> list[tuple[frozenset[str], ...]]:
    """Puts those together that differ in one place alone, place by place: a union of all would name what is not."""
    for place in range(len(boxes[0])):
        merged: dict[tuple[frozenset[str], ...], frozenset[str]] = {}
        for box in boxes:
            others = box[:place] + box[place + 1 :]
            merged[others] = merged.get(others, frozenset()) | box[place]
        boxes = [(*others[:place], numbers, *others[place:]) for others, numbers in merged.items()]
    return boxes


def _join(words: tuple[str, ...], box: tuple[frozenset[str], ...]) -> str:
    return words[0] + "".join(_braces(numbers) + word for numbers, word in zip(box, words[1:], strict=True))


def _braces(numbers: frozenset[str]) -> str:
    runs: list[list[str]] = []
    for number in sorted(numbers, key=lambda number: (int(number), number)):
        # "01" is a name of its own, no 1.
        if runs and number == str(int(runs[-1][-1]) + 1) and runs[-1][-1] == str(int(runs[-1][-1])):
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(run) for run in runs]
    return f"{{{','.join(parts)}}}" if len(numbers) > 1 else parts[0]
