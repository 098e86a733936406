"""How a data directory is laid out: which of its folders are splits and which are classes.

`dir/split/class/*`: a subfolder that is called like a split (`split_names`) has subfolders of its own, or all are
called so. Every subfolder is a split then. A split without a folder is taken from another: `validation` is the test
split, or, where there is a train folder alone, what is held out of that.

`dir/class/*`: anything else. It has the splits `train` and `validation`, which is what is held out of each class.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from deit_jax.base.errors import UserError
from deit_jax.data import tree
from deit_jax.data.splits import says_data, split_names, unknown_split

ALIASES = {"val": "validation", "validation": "val"}


class Place(NamedTuple):
    """Where the photos of a split are."""

    folder: str
    """What holds the class folders, relative to the data directory; "" for that itself."""
    side: str
    """Of each class: "validation", what is held out; "train", the rest; "", all."""


def read_splits(root: str) -> dict[str, str]:
    """The subfolders of `root` and the splits that they are called like ("": none); {} where they are classes."""
    folders = [entry.name for entry in subfolders(root)]
    if not folders:
        raise UserError(f"config.data.dir: {root} has no subfolders; images belong in split/class/* or class/*")
    named = split_names(folders)
    if len(named) < len(folders) and not any(subfolders(root, name) for name in named):
        return {}
    places: dict[str, str] = {}
    for name in folders:
        other = places.setdefault(os.path.realpath(os.path.join(root, name)), name)
        if other != name:
            tree.tell(f"{root}: the splits {other} and {name} are one folder, by a link")
    if beside := [name for name in folders if name not in named]:
        tree.tell(
            f"{root}: {_few(sorted(named))} are splits; what is in {_few(beside)} is not read, unless "
            f"config.data.train_split or config.data.eval_split names it"
        )
    return {name: named.get(name, "") for name in folders}


def find_split(root: str, splits: Mapping[str, str], split: str, *, field: str) -> Place:
    """Where a split is, or what stands in for it; tells what it is where that is not its name."""
    kind = split_names([split]).get(split, "")
    if not splits:
        if kind not in ("train", "validation"):
            raise unknown_split(split, ("train", "validation"), field=field)
        return Place("", kind)
    kinds = splits.values()
    # Without class folders a test split has no labels.
    tests = {name: "test" for name in splits if splits[name] == "test" and subfolders(root, _inner(root, name))}
    alone = "train" in kinds and "validation" not in kinds and not tests
    folder, side = _folder(splits, split, kind, field=field), ""
    if not folder and kind == "validation":
        stand_in = "test" if tests else "train"
        folder = _folder(tests or splits, stand_in, stand_in, field=field)
        side = "validation" if alone else ""
    elif alone and splits.get(folder) == "train":
        side = "train"
    if not folder:
        raise unknown_split(split, [*splits, "validation"] if alone else splits, field=field)
    if side:
        tree.tell(
            f"{root} has no validation folder: of each class in {folder} a tenth is the split validation, not train"
        )
    elif folder not in (split, ALIASES.get(split)):
        tree.tell(f"{root}: the split {split} is the folder {folder}")
    return Place(_inner(root, folder), side)


def check_classes(root: str, folder: str, classes: Mapping[str, Sequence[str]], given: Sequence[str]) -> None:
    """Refuses class folders that look like something else, and says which folder to give.

    Args:
        folder: what holds the class folders, relative to `root`.
        classes: the paths of each class's photos, relative to `root`.
        given: the names of the classes where they are known: folders that are called so are these.
    """
    if given and set(classes) <= set(given):
        return
    top = os.path.join(root, folder) if folder else root
    if len(classes) == 1:
        holding = {os.path.dirname(path) for paths in classes.values() for path in paths}
        deeper = os.path.join(root, os.path.commonpath(holding))
        if len(holding) > 1 and os.path.realpath(deeper) != os.path.realpath(top):
            raise UserError(
                f"config.data.dir: {top} has one class folder, {deeper}, with folders of photos in it; if those are "
                f"the classes, give --config.data.dir={deeper}"
            )
    if folder:  # that of a split
        return
    inside = {name: {path.split("/")[1] for path in paths if path.count("/") > 1} for name, paths in classes.items()}
    for name, folders in inside.items():
        kinds = set(split_names(folders).values())
        if "train" in kinds and len(kinds) > 1:
            one = os.path.join(top, name)
            raise UserError(
                f"config.data.dir: {one} has splits in it ({', '.join(sorted(folders))}); give "
                f"--config.data.dir={one}, or, if {name} is a class, sort the photos into split/class/*"
            )
    common = sorted(set.intersection(*inside.values()))
    own = any(path.count("/") == 1 for paths in classes.values() for path in paths)
    if len(classes) > 1 and len(common) > 1 and not own:
        largest = max(classes, key=lambda name: len(classes[name]))
        raise UserError(
            f"config.data.dir: all folders of {top} have the same folders in them ({_few(common)}); if those are the "
            f"classes, give one, such as --config.data.dir={top}/{largest}, or call them train, validation and "
            f"test; if the classes are {_few(sorted(classes))}, move them into {top}/train"
        )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _folder(splits: Mapping[str, str], split: str, kind: str, *, field: str) -> str:
    """The folder of a split, by its name or by the kind of split that both are called like; "" where there is none."""
    named = [name for name, of in splits.items() if kind and of == kind]
    for name in (split, ALIASES.get(split), kind, ALIASES.get(kind)):
        if name and name in splits:
            if others := [other for other in named if other != name]:
                tree.tell(f"the split {split} is {name}, and {_few(others)} beside it is not read")
            return name
    if len(named) > 1:
        raise UserError(f"{field}: {' and '.join(named)} may each be the split {split}; name one, or rename the others")
    return named[0] if named else ""


def _inner(root: str, folder: str) -> str:
    """The folder of a split, or the one in it, where that is all and called the same, or "images": archives do so."""
    outer, inside = os.path.basename(folder), subfolders(root, folder)
    inner = inside[0].name if len(inside) == 1 else ""
    kinds = split_names([inner]).get(inner), split_names([outer]).get(outer, "")
    same = inner.lower() == outer.lower() or kinds[0] == kinds[1] or says_data(inner)
    return _inner(root, f"{folder}/{inner}") if same else folder


def subfolders(root: str, folder: str = "") -> list[tree.Entry]:
    """The folders in a folder, which is relative to `root`, by name."""
    with in_data_dir():
        return tree.listed(os.path.join(root, folder))[1]


@contextlib.contextmanager
def in_data_dir() -> Iterator[None]:
    """What the system refuses is the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(f"config.data.dir: cannot list {error.filename}: {error.strerror}; make it readable") from error
