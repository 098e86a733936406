"""What a run learns from beside its labels: a teacher that runs beside the student, or a recorded one."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.base.storage import place
from deit_jax.config.resolve import recorded_fields, stream_fields
from deit_jax.config.schema import Config
from deit_jax.data import IMAGES_VERSION, Source
from deit_jax.data.records import fingerprint as digest
from deit_jax.distill.open import FIELD, is_artefact, open_teacher
from deit_jax.distill.store import FIELD as STORE
from deit_jax.distill.store import Header, Store, read_header
from deit_jax.distill.summary import expand
from deit_jax.distill.teacher import Teacher
from deit_jax.parallel import hosts

# What decides which images a teacher is shown, beside the data: of centre crops these fields, of the stream all those
# of `stream_fields` but these.
CENTRE_CROPS = ("data.name", "data.image_size", "data.crop_ratio", "data.exif")
NOT_SHOWN = ("data.train_split", "mixing.label_smoothing")
OF_TEACHER = ("image_size", "mean", "std", "function")  # what decides, beside its weights, what a teacher says


@dataclasses.dataclass(frozen=True)
class Teaching:
    """What a run learns from beside its labels.

    Attributes:
        logits: of (`variables`, the student's images in [0, 1], what was recorded); None without a teacher.
        variables: the teacher's, on the mesh; None for a recorded one.
        store: what was recorded, for a recorded teacher.
        predict: as `Run.predict`, for one that runs beside the student.
        notes: what to know of the teacher, a line each.
    """

    logits: Callable[[Any, Array, Mapping[str, Array]], Array] | None = None
    variables: Any = None
    store: Store | None = None
    predict: Callable[[Any, Array], tuple[Array, ...]] | None = None
    notes: tuple[str, ...] = ()


def open_teaching(config: Config, source: Source, mesh: Mesh, *, rows: int) -> Teaching:
    """The teaching that a config asks for.

    Args:
        source: the training split.
        rows: positions of the stream that the run will see.

    Raises:
        UserError: the teacher or its store is not there, or does not fit the run.
    """
    distillation, classes = config.distillation, len(source.class_names)
    if distillation.kind == "none":
        return Teaching()
    if distillation.store:
        store = open_store(config, source, rows)
        require_same_store(store)
        notes = _notes(store.header, config)
        return Teaching(from_recorded(classes), store=store, notes=notes)
    teacher = open_teacher(config, source.class_names).on(mesh)
    require_same_teacher(teacher)
    return Teaching(
        lambda variables, images, recorded: teacher(variables, images),
        parallel.place(teacher.variables, mesh),
        predict=predict(teacher),
    )


def from_recorded(classes: int) -> Callable[[Any, Array, Mapping[str, Array]], Array]:
    """`Teaching.logits` of a recorded teacher."""
    return lambda variables, images, recorded: expand(recorded, classes)


def predict(teacher: Teacher) -> Callable[[Any, Array], tuple[Array, ...]]:
    """As `Run.predict`: a teacher's logits for uint8 images of the student's size."""
    return lambda variables, images: (teacher(variables, images.astype(jnp.float32) / 255),)


def open_store(config: Config, source: Source, rows: int) -> Store:
    """The store of the config, for a run of so many positions.

    Where the config names the teacher, too, it has to be the one that was recorded.

    Raises:
        UserError: it was recorded for another run, is not whole, or holds less than `distillation.kind` needs.
    """
    distillation = config.distillation
    folder = place(distillation.store, "config.distillation.store")
    header, name = read_header(folder), distillation.teacher.name
    teacher = None
    if distillation.teacher.weights or ":" in name or is_artefact(name):
        try:
            teacher = open_teacher(config, source.class_names)
        except UserError as error:
            raise UserError(f"{error}; or leave {FIELD}.name and .weights empty, and rely on {folder}") from error
    return Store(
        folder,
        fingerprint=fingerprint(config, source, teacher, header.views),
        rows=len(source) if header.views == "one" else rows,
        soft=distillation.kind == "soft",
    )


def require_same_teacher(teacher: Teacher) -> None:
    """Raises `UserError`, in all processes, unless they have opened the same one."""
    hosts.require_same({f"config.distillation.teacher, its {name}": getattr(teacher, name) for name in OF_TEACHER})
    hosts.require_equal("the weights of config.distillation.teacher", teacher.variables)


def require_same_store(store: Store) -> None:
    """Raises `UserError`, in all processes, unless the first chunk of what they have opened is the same."""
    if hosts.several():
        rows = np.arange(min(store.header.chunk, store.header.rows))
        hosts.require_equal(f"what is in {STORE}", (dataclasses.asdict(store.header), store.read(rows, rows)))


def fingerprint(config: Config, source: Source, teacher: Teacher | None, views: str) -> dict[str, Any]:
    """All that a recording depends on, by name; without what is the teacher's where that is not at hand.

    Args:
        views: "stream", for augmented and mixed images by position, or "one", for centre crops by example.
    """
    if views == "one":
        chosen = {name: value for name, value in recorded_fields(config).items() if name in CENTRE_CROPS}
    else:
        chosen = {name: value for name, value in stream_fields(config).items() if name not in NOT_SHOWN}
    chosen |= {"data": source.fingerprint, "classes": list(source.class_names), "images": IMAGES_VERSION}
    name = config.distillation.teacher.name
    if name:
        chosen["distillation.teacher.name"] = PurePath(name).name
    if teacher:
        leaves = jax.tree_util.tree_leaves_with_path(teacher.variables)
        parts = (part for path, leaf in leaves for part in (jax.tree_util.keystr(path), leaf.tobytes()))
        chosen["distillation.teacher.weights"] = digest(parts)
        for field in OF_TEACHER:
            chosen[f"distillation.teacher.{field}"] = getattr(teacher, field)
    return json.loads(json.dumps(chosen))  # as it comes back from a file


def _notes(header: Header, config: Config) -> tuple[str, ...]:
    notes = []
    if header.views == "one":
        notes.append("the recorded teacher saw each image's centre crop, not what the student sees: an approximation")
        mixing = config.mixing
        if mixing.probability and (mixing.mixup or mixing.cutmix or any(mixing.cutmix_minmax)):
            notes.append("of a mixed image it tells its first part alone; without, config.mixing.probability=0")
    if config.distillation.kind == "soft" and header.top < header.classes:
        notes.append(
            f"the recorded teacher's {header.top} best of {header.classes} logits are known, the others evened"
        )
    return tuple(notes)
