"""A teacher: a network with frozen weights that sees what the student sees, in its own size and normalisation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from deit_jax.parallel import by_rows

Images = Float[Array, "batch height width channels"]


@dataclasses.dataclass(frozen=True, eq=False)  # by identity, so that it can be jitted
class Teacher:
    """`teacher(variables, images)` gives logits; a pure function for use inside a jitted step.

    Attributes:
        apply: of (variables, normalised images of the teacher's size) to logits `[batch, classes]`.
        variables: its weights and statistics; an argument of the step and no constant in it, so that they are sharded
            as the student's are.
        mean, std: of the channels of images in [0, 1], as the teacher was trained.
        image_size: height and width that the teacher takes.
        function: what tells `apply` apart from other functions of the same variables; for fingerprints.
    """

    apply: Callable[[Any, Images], Array]
    variables: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    function: str = ""

    def on(self, mesh: Mesh) -> "Teacher":
        """The same, where each device asks about its rows of the batch alone."""
        return dataclasses.replace(self, apply=by_rows(self.apply, mesh))

    def __call__(self, variables: Any, images: Images) -> Float[Array, "batch classes"]:
        """Logits in float32 for images in [0, 1]; no gradient passes through.

        Images of another size are resized by the bicubic filter that photos are resized by, with values kept in [0, 1].
        """
        images = jax.lax.stop_gradient(images.astype(jnp.float32))
        if images.shape[1:3] != self.image_size:
            shape = (len(images), *self.image_size, images.shape[-1])
            images = jnp.clip(jax.image.resize(images, shape, "bicubic"), 0, 1)
        normalised = (images - jnp.array(self.mean, jnp.float32)) / jnp.array(self.std, jnp.float32)
        return jax.lax.stop_gradient(self.apply(variables, normalised)).astype(jnp.float32)
