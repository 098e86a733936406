"""What a run learns from beside its labels, as far as its step is to be compiled: shapes, without any weights."""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from deit_jax import parallel
from deit_jax.base.errors import UserError
from deit_jax.config.schema import Config
from deit_jax.distill.open import FIELD, is_artefact, of_network, open_teacher
from deit_jax.distill.summary import kept_logits, summarize
from deit_jax.distill.teacher import Teacher
from deit_jax.distill.teaching import Teaching, from_recorded
from deit_jax.models import abstract_model, entry, flatten, product_flops


@dataclasses.dataclass(frozen=True)
class TeachingShapes:
    """A teaching with shapes for variables, and their shardings.

    Attributes:
        recorded: of a recorded teacher, by name the shapes of what was kept of a batch.
        parameters: of a teacher that runs beside the student; 0 without one.
        flops: of its forward pass for one image, in floating-point operations; 0 where they cannot be seen.
    """

    teaching: Teaching = dataclasses.field(default_factory=Teaching)
    recorded: dict[str, Any] = dataclasses.field(default_factory=dict)
    parameters: int = 0
    flops: int = 0


def teaching_shapes(config: Config, class_names: Sequence[str], mesh: Mesh, platform: str) -> TeachingShapes:
    """The teaching that a config asks for; neither a store nor the published weights of a teacher need be there.

    Args:
        platform: `cpu`, `gpu` or `tpu`, which the step is compiled for.

    Raises:
        UserError: there is no such teacher, or it does not fit the run.
    """
    distillation, classes = config.distillation, len(class_names)
    if distillation.kind == "none":
        return TeachingShapes()
    if distillation.store:
        top = kept_logits(distillation.kind, distillation.top_k, classes)
        logits = jax.ShapeDtypeStruct((config.batch_size, classes), jnp.float32)
        recorded = jax.eval_shape(functools.partial(summarize, top=top), logits)
        return TeachingShapes(Teaching(from_recorded(classes)), recorded)
    teacher = _teacher_shapes(config, class_names, platform)
    beside = teacher.on(mesh)
    image = jax.ShapeDtypeStruct((1, *teacher.image_size, 3), jnp.float32)
    return TeachingShapes(
        Teaching(lambda variables, images, kept: beside(variables, images), parallel.targets(teacher.variables, mesh)),
        parameters=sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(teacher.variables)),
        flops=product_flops(teacher.apply, teacher.variables, image),
    )


def _teacher_shapes(config: Config, class_names: Sequence[str], platform: str) -> Teacher:
    """As `open_teacher`; a model of the registry whose weights are not at hand is as it was published."""
    chosen = config.distillation.teacher
    if is_artefact(chosen.name) or ":" in chosen.name or _is_here(chosen.weights):
        teacher = open_teacher(config, class_names, platform)
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), teacher.variables)
        return dataclasses.replace(teacher, variables=shapes)
    arguments: dict[str, Any] = {"num_classes": len(class_names), "dtype": config.model.dtype}
    if chosen.image_size:
        arguments["image_size"] = chosen.image_size
    try:
        network: Any = abstract_model(chosen.name, **arguments)
    except (UserError, ValueError) as error:
        raise UserError(f"{FIELD}.name: {error}") from error
    return of_network(network, flatten(network), entry(chosen.name).preprocessing)


def _is_here(weights: str) -> bool:
    """Whether weights lie on this machine, so that nothing is fetched."""
    return bool(weights) and os.path.exists(os.path.expanduser(re.split("[@#]", weights)[0]))
