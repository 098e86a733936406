"""Photos named on a command line: files, folders and patterns, read as the networks see them."""

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator

import numpy as np

from deit_jax.base.errors import UserError
from deit_jax.data.decode import SUFFIXES, UNREAD, CorruptImage, decode
from deit_jax.data.transforms import eval_transform
from deit_jax.data.tree import is_system, walk

LARGEST = 2**30  # bytes of a file: the largest picture that is decoded has no more where it is not compressed


def find_images(arguments: Iterable[str]) -> list[str]:
    """The paths that arguments stand for, each once, in the order of the arguments.

    Args:
        arguments: a file, whatever its suffix; a folder, for the images in it and its subfolders by their suffixes; or
            a pattern (`*`, `?`, `[...]`, `**`), for what it matches. Hidden files are found by their names alone. What
            does not exist stands for itself, as in a shell, and is reported by whoever reads it.

    Raises:
        UserError: there is no image, or a folder cannot be listed.
    """
    arguments = list(arguments)
    if not arguments:
        raise UserError("no images: name files, folders or patterns such as 'photos/*.jpg'")
    try:
        paths = [path for argument in arguments for path in _expand(os.path.expanduser(argument))]
    except OSError as error:
        raise UserError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error
    if not paths:
        raise UserError(f"no images in {', '.join(arguments)}; known by their suffixes: {' '.join(SUFFIXES + UNREAD)}")
    return list(dict.fromkeys(paths))


def read_image(path: str, *, image_size: int, crop_ratio: float) -> np.ndarray:
    """A photo as evaluation shows it to a network, see `eval_transform`: uint8 `[image_size, image_size, 3]`.

    Raises:
        CorruptImage: it cannot be read or decoded; the message says why and does not name the path.
    """
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe may wait for ever
            raise CorruptImage("no file, but a pipe, socket or device")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise CorruptImage(f"more than {LARGEST / 2**30:.0f} GiB, not read; make the image smaller")
            data = file.read()
    except OSError as error:
        raise CorruptImage(error.strerror or str(error)) from error
    return eval_transform(decode(data), size=image_size, crop_ratio=crop_ratio)


def _expand(argument: str) -> Iterator[str]:
    # A name with brackets in it may exist, too.
    matches = [argument] if os.path.exists(argument) else sorted(_matching(argument))
    for match in matches or [argument]:
        if os.path.isdir(match):
            for _, photos in walk(match):
                yield from sorted(photo.path for photo in photos)
        else:
            yield match


def _matching(pattern: str) -> Iterator[str]:
    """What a pattern matches: `**` any folders that `walk` visits, all else as in a shell, but no system's folders."""
    deep = re.fullmatch(r"(|.*?/)\*\*(?:/+(.*))?", pattern, re.DOTALL)
    if not deep:  # glob's own `**` would follow links in circles
        named = set(pattern.split("/"))
        for match in glob.glob(pattern):
            if all(part in named or not is_system(part) for part in match.split("/")):
                yield match
        return
    before, after = deep[1], deep[2] or "*"
    for top in glob.glob(before) if before else ["."]:
        for folder, _ in walk(top):
            for match in _matching(os.path.join(glob.escape(folder), after)):
                yield match if before else match.removeprefix("./")
