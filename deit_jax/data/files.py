"""Photos named on a command line: files, folders and patterns, read as the networks see them."""

import glob
import os
from collections.abc import Iterable, Iterator

import numpy as np

from deit_jax.base.errors import UserError
from deit_jax.data.decode import SUFFIXES, UNREAD, CorruptImage, decode
from deit_jax.data.transforms import eval_transform


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
    paths = [path for argument in arguments for path in _expand(os.path.expanduser(argument))]
    if not paths:
        raise UserError(f"no images in {', '.join(arguments)}; known by their suffixes: {' '.join(SUFFIXES + UNREAD)}")
    return list(dict.fromkeys(paths))


def read_image(path: str, *, image_size: int, crop_ratio: float) -> np.ndarray:
    """A photo as evaluation shows it to a network, see `eval_transform`: uint8 `[image_size, image_size, 3]`.

    Raises:
        CorruptImage: it cannot be read or decoded; the message says why and does not name the path.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise CorruptImage(error.strerror or str(error)) from error
    return eval_transform(decode(data), size=image_size, crop_ratio=crop_ratio)


def _expand(argument: str) -> Iterator[str]:
    # A name with brackets in it may exist, too.
    matches = [argument] if os.path.exists(argument) else sorted(glob.glob(argument, recursive=True))
    for match in matches or [argument]:
        if os.path.isdir(match):
            yield from _in_folder(match)
        else:
            yield match


def _in_folder(root: str) -> Iterator[str]:
    """The images of a folder, sorted; links to folders are followed, each folder visited once."""
    seen = {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_cannot_list):
        fresh = []
        for name in sorted(subfolders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                fresh.append(name)
        subfolders[:] = fresh
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(SUFFIXES + UNREAD):
                yield os.path.join(folder, name)


def _cannot_list(error: OSError) -> None:
    raise UserError(f"cannot list {error.filename}: {error.strerror}; make it readable") from error
