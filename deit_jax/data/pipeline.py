"""Batches as pure functions of their step, built by Grain's threads.

Every example follows from its position in the stream alone, so batches are bit-equal for any number of threads or
hosts and wherever the iteration starts.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from deit_jax.base import rng
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.base.text import printable
from deit_jax.data.decode import CorruptImage, decode
from deit_jax.data.index import example_index
from deit_jax.data.records import Record, Source, fingerprint
from deit_jax.data.train_transform import TrainTransform, View
from deit_jax.data.transforms import eval_transform

MAX_NEIGHBOURS = 16
WAITS = (0.1, 1.0, 5.0, 20.0)  # seconds after each try to read a record
MOST_NAMED = 8  # images that are read at once
MOST_TOLD = 100  # images that cannot be decoded and are named
LATE = 60  # seconds without a batch after which something is said, again and again
SLOW = 2  # seconds after which an image that is being read is named
# To be raised by whoever lets the same config, seed and files give other images: what a teacher said of the old ones
# is then refused.
IMAGES_VERSION = 1

Batch = dict[str, np.ndarray]
Example = dict[str, np.ndarray | np.generic]

log = logging.getLogger(__name__)

_told: set[str] = set()
_reading: dict[int, tuple[Source, int, float]] = {}  # by thread: which image, and since when


def train_batches(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    rows: Sequence[int],
    first_step: int,
    total_steps: int,
    transform: TrainTransform,
    repeats: int = 1,
    groups: int = 1,
    exif: bool = True,
    threads: int,
    prefetch: int,
) -> Iterator[Batch]:
    """This host's rows of the training batches of steps `first_step` to `total_steps - 1`.

    Args:
        source: the train split.
        seed: decides the order and every random choice; at least 0.
        batch_size: rows of the global batch.
        rows: those that this host makes, in any order.
        first_step: where to start; no earlier batch is computed.
        total_steps: where to end.
        transform: what the images go through.
        repeats: how often each example comes in a row.
        groups: parts of a batch that copies of an example are dealt to.
        exif: turn photos as their EXIF orientation says.
        threads: how many build batches, each a whole one; 0 builds them in the caller.
        prefetch: batches made ahead of the caller (at least one for each thread).

    Yields:
        `image` uint8 `[rows, image_size, image_size, 3]`, `label` int32 `[rows]`, `index` int32 `[rows]` of the example
        in the split, and `replaced` bool `[rows]`: a neighbour stands in for an image that could not be read.

    Raises:
        UserError: too many neighbouring images cannot be decoded. Any exception ends the iteration.
        TryAgain: an image cannot be read.
    """
    example = partial(
        train_example,
        source,
        seed=seed,
        batch_size=batch_size,
        transform=transform,
        repeats=repeats,
        groups=groups,
        exif=exif,
    )
    return _batches(example, range(first_step, total_steps), rows, batch_size, threads, prefetch)


def train_example(source: Source, position: int, *, transform: TrainTransform, **order: Any) -> Example:
    """The augmented example at a position of the stream: one row of `train_batches`; arguments as `draw_example`."""
    drawn = draw_example(source, position, transform=transform, **order)
    return {
        "image": transform.apply(drawn.stored, drawn.view),
        "label": np.int32(drawn.label),
        "index": np.int32(drawn.example),
        "replaced": np.bool_(drawn.replaced),
    }


class DrawnExample(NamedTuple):
    """An example of the training stream, and what is to be done to it."""

    stored: np.ndarray
    """The decoded image, uint8 `[height, width, 3]`."""
    label: int
    example: int
    """Its index in the split."""
    replaced: bool
    """Whether it stands in for one that could not be read."""
    view: View


def draw_example(
    source: Source,
    position: int,
    *,
    seed: int,
    batch_size: int,
    transform: TrainTransform,
    repeats: int = 1,
    groups: int = 1,
    exif: bool = True,
) -> DrawnExample:
    """What is drawn for a position of the stream: its example, or the next that can be read, and how it is seen."""
    place = partial(
        example_index,
        position,
        seed=seed,
        examples=len(source),
        batch_size=batch_size,
        repeats=repeats,
        groups=groups,
    )
    for neighbour in range(MAX_NEIGHBOURS):
        index = place(neighbour=neighbour)
        try:
            stored, label = _read(source, index, exif=exif)
            view = transform.draw(stored.shape[0], stored.shape[1], rng.generator(seed, "augment", position))
        except CorruptImage as error:
            _warn_once(f"{error}; replaced by its neighbour")
            reason = str(error)
            continue
        return DrawnExample(stored, label, index, neighbour > 0, view)
    raise UserError(f"config.data.dir: {MAX_NEIGHBOURS} neighbouring images cannot be decoded, the last: {reason}")


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    rows: Sequence[int],
    image_size: int,
    crop_ratio: float,
    exif: bool = True,
    threads: int,
    prefetch: int,
    steps: range | None = None,
) -> Iterator[Batch]:
    """This host's rows of the whole split in its own order, the last batch padded; arguments as `train_batches`.

    Args:
        steps: of the batches that are wanted (None: all).

    Yields:
        `image` uint8 `[rows, image_size, image_size, 3]`, `label` int32 `[rows]`, `index` int32 `[rows]` of the example
        (-1: padding), `mask` bool `[rows]` (False: padding or corrupt; image and label are then zeros), and `corrupt`
        bool `[rows]` (the image could not be read).
    """
    example = partial(eval_example, source, image_size=image_size, crop_ratio=crop_ratio, exif=exif)
    whole = range(-(-len(source) // batch_size))
    return _batches(example, whole if steps is None else steps, rows, batch_size, threads, prefetch)


def eval_example(source: Source, position: int, *, image_size: int, crop_ratio: float, exif: bool = True) -> Example:
    """The example at a position of the split, or padding beyond its end: one row of `eval_batches`."""
    image, label = np.zeros((image_size, image_size, 3), np.uint8), 0
    exists, corrupt = position < len(source), False
    if exists:
        try:
            stored, label = _read(source, position, exif=exif)
            image = eval_transform(stored, size=image_size, crop_ratio=crop_ratio)
        except CorruptImage as error:
            corrupt = True
            _warn_once(f"{error}; left out of the evaluation")
    return {
        "image": image,
        "label": np.int32(label),
        "index": np.int32(position if exists else -1),
        "mask": np.bool_(exists and not corrupt),
        "corrupt": np.bool_(corrupt),
    }


def _batches(
    example: Callable[[int], Example], steps: range, rows: Sequence[int], batch_size: int, threads: int, prefetch: int
) -> Iterator[Batch]:
    import grain  # a quarter of a second, which commands that read photos alone need not wait for

    def at(item: int) -> Example:
        step, row = divmod(item, len(rows))
        return example(step * batch_size + rows[row])

    items = grain.MapDataset.range(steps.start * len(rows), steps.stop * len(rows)).map(at).batch(len(rows))
    # A batch is one task, so a buffer shorter than the threads would leave some idle.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch))
    with closing(iter(items.to_iter_dataset(options))) as batches, closing(_Watch()) as watch:
        watch.start()
        # Counted, since a `for` over Grain's iterator could end early without a word; and after an exception this
        # generator is over, where Grain's iterator would go on with the next batch.
        for _ in steps:
            watch.since = time.monotonic()
            batch = next(batches)
            watch.since = None
            yield batch


def readable(source: Source, index: int) -> bool:
    """Whether an image of a source can be decoded; says so where it cannot. Errors as of the batches."""
    try:
        _read(source, index)
    except CorruptImage as error:
        _warn_once(f"{error}; cannot be decoded")
        return False
    return True


def checksum(source: Source, index: int) -> str:
    """Of an image as it is stored, and of its label, in words, also where it is damaged. Errors as of the batches."""
    try:
        image, label, _ = _fetch(source, index)
    except CorruptImage:
        return "damaged"
    return f"of checksum {fingerprint((image if isinstance(image, bytes) else image.tobytes(), str(label)))}"


def _read(source: Source, index: int, *, exif: bool = True) -> tuple[np.ndarray, int]:
    """The decoded image and the label at an index.

    Raises:
        CorruptImage: it was read, and is no image.
        TryAgain: it cannot be read, which says nothing of the image: another one in its place would be another run.
        UserError: as before, and waiting will not help.
    """
    _reading[threading.get_ident()] = source, index, time.monotonic()
    try:
        record = _fetch(source, index)
        try:
            return decode(record.image, exif=exif), record.label
        except CorruptImage as error:
            raise CorruptImage(f"{record.name}: {error}") from error
    finally:
        del _reading[threading.get_ident()]


def _fetch(source: Source, index: int) -> Record:
    try:
        for wait in WAITS:
            with suppress(OSError):
                return source[index]
            time.sleep(wait)
        return source[index]
    except OSError as error:
        line = f"{source.name(index)}: cannot be read: {error.strerror or error}, tried {len(WAITS) + 1} times"
        if isinstance(error, FileNotFoundError | PermissionError):
            raise UserError(f"{line}; bring it back, or take it out of the data") from error
        raise TryAgain(f"{line}; the same command goes on when the disk is well again") from error


def slow_reads() -> str:
    """In words, the images that have been read for long now, as people say it of what waits for them; "" for none."""
    now = time.monotonic()
    names = {printable(source.name(index)) for source, index, since in list(_reading.values()) if now - since > SLOW}
    return f", reading {', '.join(sorted(names)[:MOST_NAMED])}" if names else ""


class _Watch(threading.Thread):
    """Says every so often which images are being read while a batch does not come after `since`; one a stream."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.since: float | None = None
        self._over = threading.Event()

    def run(self) -> None:
        told = 0.0
        while not self._over.wait(LATE / 4):
            since, now = self.since, time.monotonic()
            if since is not None and now - max(since, told) > LATE:
                log.warning("no batch for %.0f seconds%s", now - since, slow_reads() or ", reading nothing")
                told = now

    def close(self) -> None:
        self._over.set()


def _warn_once(message: str) -> None:
    """A bad file comes round every epoch, and where there are many, a few are enough to see what they are."""
    if message in _told or len(_told) > MOST_TOLD:
        return
    _told.add(message)
    log.warning(printable(message) if len(_told) <= MOST_TOLD else "others cannot be decoded either, and are not named")
