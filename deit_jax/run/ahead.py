"""The training step of a run, and all that it is given, as shapes: what can be counted and compiled without devices."""

import dataclasses

import jax

from deit_jax import parallel
from deit_jax.base.errors import TryAgain, UserError
from deit_jax.config.schema import Config
from deit_jax.data import KNOWN, Source, known_source
from deit_jax.distill.ahead import TeachingShapes, teaching_shapes
from deit_jax.parallel.topologies import Topology
from deit_jax.run.build import Run, build, open_mesh
from deit_jax.run.stream import batch_shapes, check_classes, train_source
from deit_jax.step.step import Batch


@dataclasses.dataclass(frozen=True)
class Step:
    """The training step of a run, whose images are the largest that it has, and the shapes of all that it is given."""

    run: Run
    teaching: TeachingShapes
    batch: Batch


def step_of(config: Config, source: Source, topology: Topology | None) -> Step:
    """The step of a config on a topology (None: on the devices that there are).

    Raises:
        UserError: the config, the data and the devices do not go together.
    """
    if topology and topology.chip.platform == "tpu":
        config = _with_slices(config, topology.slices)
    mesh = open_mesh(config, topology.devices() if topology else None)
    parallel.check_batch(mesh, config.batch_size, config.optim.accumulation)
    run = build(config, mesh, source)
    platform = topology.chip.platform if topology else jax.default_backend()
    teaching = teaching_shapes(config, source.class_names, mesh, platform)
    largest = max(size for _, size in run.sizes)
    return Step(run, teaching, batch_shapes(config, mesh, largest, teaching.recorded))


def _with_slices(config: Config, slices: int) -> Config:
    given = config.mesh.slices
    if given not in (1, slices):
        raise UserError(
            f"--slices: is {slices}, and config.mesh.slices {given}; plan with --slices={given}, or set it to 1"
        )
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, slices=slices))


def planned_source(config: Config) -> tuple[Source, str]:
    """The training split, or its numbers where the data is not at hand but known; and in words where they are from.

    Raises:
        UserError: it is neither at hand nor known.
    """
    try:
        return train_source(config), "at hand"
    except (UserError, TryAgain, OSError) as error:  # of a bucket, too, which only the machines that train may reach
        known = known_source(config.data.name, config.data.train_split, field="config.data.train_split")
        if known is None and not isinstance(error, UserError):
            raise
        if known is None:
            raise UserError(
                f"{error}; or plan with --config.data.name of {', '.join(KNOWN)}, known by number"
            ) from error
        check_classes(config, known)
        return known, "as published; the data is not at hand"
