"""The data of a run: the splits that a config names, and the training stream, on the host and on the devices."""

import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.config import schema
from deit_jax.config.schema import Config
from deit_jax.config.sizes import parse_sizes
from deit_jax.data import (
    DrawnExample,
    Source,
    TrainTransform,
    draw_example,
    examples_per_epoch,
    open_source,
    train_batches,
)
from deit_jax.data.index import example_index
from deit_jax.distill import Store
from deit_jax.parallel import hosts
from deit_jax.run.corrupt import EVERY, Corrupt
from deit_jax.step import erasing, mixing
from deit_jax.step.step import Batch


def train_source(config: Config) -> Source:
    """The training split; `UserError` where `check_classes` raises it."""
    hosts.at("the training split", compiling=True)
    data = config.data
    source = open_source(name=data.name, directory=data.dir, split=data.train_split, field="config.data.train_split")
    check_classes(config, source)
    return source


def check_classes(config: Config, source: Source) -> None:
    """Raises `UserError` where a split has one class alone, or not as many as the model was told to have."""
    classes = len(source.class_names)
    if classes < 2:
        raise UserError(
            f"config.data.train_split: all {len(source)} photos, such as {source.name(0)}, are of one class, "
            f"{source.class_names[0]!r}, and there is nothing to tell apart; add another class"
        )
    if config.model.num_classes not in (-1, classes):
        raise UserError(
            f"config.model.num_classes: is {config.model.num_classes}, the data has {classes} classes; "
            f"set --config.model.num_classes=-1 to take the data's"
        )


def eval_source(config: Config, class_names: tuple[str, ...] | None) -> Source:
    """The evaluation split, its labels counted by `class_names` (None: by its own)."""
    hosts.at("the evaluation split", compiling=True)
    data = config.data
    return open_source(
        name=data.name,
        directory=data.dir,
        split=data.eval_split,
        class_names=class_names,
        field="config.data.eval_split",
    )


def stream(
    config: Config, source: Source, rows: Sequence[int], *, first_step: int, total_steps: int
) -> Iterator[dict[str, np.ndarray]]:
    """Rows of a config's training batches on the host, of images of the sizes that it names; see `train_batches`."""
    for (first, size), (end, _) in itertools.pairwise([*image_sizes(config, source), (total_steps, 0)]):
        start, stop = max(first, first_step), min(end, total_steps)
        if start < stop:
            yield from train_batches(
                source,
                rows=rows,
                first_step=start,
                total_steps=stop,
                threads=config.data.threads,
                prefetch=config.data.prefetch,
                **_order(config, size),
            )


def drawn_example(config: Config, source: Source, position: int, image_size: int) -> DrawnExample:
    """What `stream` draws for a position; `image_size`, in pixels, is that of its step."""
    return draw_example(source, position, **_order(config, image_size))


def _arrangement(config: Config) -> dict[str, Any]:
    """What decides which example is at a position of the stream."""
    return {
        "seed": config.seed,
        "batch_size": config.batch_size,
        "repeats": config.data.repeats,
        "groups": mixing_groups(config),
    }


def _order(config: Config, image_size: int) -> dict[str, Any]:
    """The same, and what is done to it."""
    return {
        **_arrangement(config),
        "transform": train_transform(config.data, image_size),
        "exif": config.data.exif,
    }


def image_sizes(config: Config, source: Source) -> list[tuple[int, int]]:
    """(first step, side of its images in pixels) of each stage of the training stream; the first begins with step 0."""
    data, batch_size = config.data, config.batch_size
    epoch_steps = examples_per_epoch(len(source), batch_size, data.repeats) / batch_size
    stages = parse_sizes(data.image_size_schedule) or ((data.image_size, 0.0),)
    return [(schema.Duration(0, epoch, 0).in_steps(batch_size, epoch_steps), size) for size, epoch in stages]


def train_transform(data: schema.Data, image_size: int) -> TrainTransform:
    """What the training images of a config go through where they become so many pixels wide and high."""
    return TrainTransform(
        image_size=image_size,
        crop=data.crop,
        crop_scale=data.crop_scale,
        crop_aspect=data.crop_aspect,
        interpolation=data.interpolation,
        flip=data.flip,
        augment=data.augment,
        color_jitter=data.color_jitter,
    )


def mixing_groups(config: Config) -> int:
    """In how many groups a batch mixes."""
    return config.batch_size // config.mixing_group


def device_batches(
    config: Config,
    mesh: Mesh,
    source: Source,
    start: int,
    stop: int,
    store: Store | None = None,
    *,
    unmixed_from: int | None = None,
) -> Generator[tuple[Batch, int], None, None]:
    """The device batches of the steps from `start` to `stop`, each with how many of its images were corrupt.

    Of images that several processes have, the first of these counts them.

    Beside what a step computes with they have `index` int32 [batch], the examples in the split. Rows are as the devices
    hold them, see `mixing.places`.

    Args:
        store: what a teacher said of them, if that was recorded.
        unmixed_from: the first step whose images are not mixed; None: all are.

    Raises:
        UserError: more images than `data.max_corrupt` allows could not be decoded.
    """
    batch_size = config.batch_size
    places = _places(config, mesh)
    own = places.ravel()[parallel.local_rows(mesh, batch_size)]
    corrupt, order = Corrupt(len(source), config.data.max_corrupt), _arrangement(config)
    counted = _first_here(mesh, batch_size)
    made = stream(config, source, own.tolist(), first_step=start, total_steps=stop)
    for step, host in enumerate(made, start):
        replaced = host.pop("replaced")
        positions = step * batch_size + own
        corrupt.add(example_index(position, examples=len(source), **order) for position in positions[replaced].tolist())
        if (step - start) % EVERY == 0 or step == stop - 1:
            corrupt.check()
        size = host["image"].shape[1]
        taught = store.read(positions, host["index"]) if store else {}
        mix = mixing.placed(_mix(config, step, size, unmixed_from), places)
        device: Batch = {
            **parallel.put_batch({**host, "place": own.astype(np.int32)}, mesh, batch_size),
            "mix": parallel.put_replicated(mix, mesh),
            "teacher": parallel.put_batch(taught, mesh, batch_size),
        }
        if config.erasing.probability:
            erased = {name: value[own] for name, value in _erase(config, step, size).items()}
            device["erasing"] = parallel.put_batch(erased, mesh, batch_size)
        yield device, int((replaced & counted).sum())


def _first_here(mesh: Mesh, batch_size: int) -> Bool[np.ndarray, " rows"]:
    """Which of this process's rows no process before it has, too, as it may where `tensor` goes over processes."""
    before = [parallel.local_rows(mesh, batch_size, process) for process in range(jax.process_index())]
    return np.array([not any(row in rows for rows in before) for row in parallel.local_rows(mesh, batch_size)])


def batch_shapes(config: Config, mesh: Mesh, image_size: int, recorded: Mapping[str, Any]) -> Batch:
    """Shapes and shardings of what `device_batches` gives for a step whose images have so many pixels a side.

    Args:
        recorded: of what a recorded teacher said of a batch, the shapes by name.
    """
    batch_size = config.batch_size
    rows = {
        "image": jax.ShapeDtypeStruct((batch_size, image_size, image_size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), np.int32),
        "index": jax.ShapeDtypeStruct((batch_size,), np.int32),
        "place": jax.ShapeDtypeStruct((batch_size,), np.int32),
    }
    mix = mixing.placed(_mix(config, 0, image_size, None), _places(config, mesh))
    shapes: Batch = {
        **parallel.row_shapes(rows, mesh),
        "mix": parallel.replicated_shapes(mix, mesh),
        "teacher": parallel.row_shapes(recorded, mesh),
    }
    if config.erasing.probability:
        shapes["erasing"] = parallel.row_shapes(_erase(config, 0, image_size), mesh)
    return shapes


def _places(config: Config, mesh: Mesh) -> np.ndarray:
    """Where in the batch the rows stand that the mesh's devices hold, see `mixing.places`."""
    return mixing.places(
        config.batch_size,
        groups=mixing_groups(config),
        devices=parallel.batch_devices(mesh),
        accumulation=config.optim.accumulation,
    )


def _mix(config: Config, step: int, image_size: int, unmixed_from: int | None) -> mixing.Mix:
    """What is drawn to mix the batch of a step; from the step `unmixed_from` on it stays as it is."""
    groups = mixing_groups(config)
    return mixing.draw(
        config.seed,
        step,
        groups=groups,
        members=config.batch_size // groups,
        image_size=image_size,
        mixup=config.mixing.mixup,
        cutmix=config.mixing.cutmix,
        probability=config.mixing.probability if unmixed_from is None or step < unmixed_from else 0.0,
        switch_probability=config.mixing.switch_probability,
        mode=config.mixing.mode,
        cutmix_minmax=config.mixing.cutmix_minmax,
    )


def _erase(config: Config, step: int, image_size: int) -> dict[str, np.ndarray]:
    """What is drawn to erase in the whole batch of a step."""
    return erasing.draw(
        config.seed,
        step,
        batch_size=config.batch_size,
        image_size=image_size,
        mode=config.erasing.mode,
        probability=config.erasing.probability,
        min_count=config.erasing.min_count,
        max_count=config.erasing.max_count,
        area=config.erasing.area,
        aspect=config.erasing.aspect,
    )
