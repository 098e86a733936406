"""What a teacher is shown, and that it learns nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from deit_jax import parallel
from deit_jax.distill import Teacher
from deit_jax.models.convolution import convolve
from deit_jax.parallel.programs import collectives

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
IMAGES = np.random.default_rng(0).random((2, 9, 7, 3), np.float32)


def looking(size):
    """A teacher whose "logits" are the images that it sees."""
    return Teacher(lambda variables, images: images.reshape(len(images), -1), {}, MEAN, STD, size)


def by_pillow(images, height, width):
    """Each channel resized by Pillow's bicubic filter in float32, and kept in [0, 1]."""
    resized = [
        [Image.fromarray(image[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        for image in images
    ]
    return np.stack([np.stack([np.asarray(channel) for channel in image], axis=-1) for image in resized]).clip(0, 1)


@pytest.mark.parametrize("size", [(9, 7), (13, 19), (5, 3), (9, 11)])
def test_images_are_resized_and_normalised_for_it(size):
    shown = IMAGES if size == (9, 7) else by_pillow(IMAGES, *size)
    expected = (shown - np.array(MEAN)) / np.array(STD)
    seen = looking(size)({}, jax.device_put(IMAGES)).reshape(2, *size, 3)
    np.testing.assert_allclose(seen, expected, atol=6e-6)


def test_logits_are_float32_whatever_it_computes_in():
    teacher = Teacher(lambda variables, images: images.mean((1, 2)).astype(jnp.bfloat16), {}, MEAN, STD, (9, 7))
    assert teacher({}, jax.device_put(IMAGES)).dtype == jnp.float32


def test_no_gradient_reaches_its_weights_or_passes_to_its_images():
    def apply(variables, images):
        return images.mean((1, 2)) * variables["scale"]

    teacher = Teacher(apply, {}, MEAN, STD, (5, 5))

    def loss(variables, images):
        return jnp.sum(jnp.square(teacher(variables, images)))

    given = ({"scale": jnp.ones(3)}, jax.device_put(IMAGES))
    assert loss(*given) > 0
    assert not any(gradient.any() for gradient in jax.tree.leaves(jax.grad(loss, argnums=(0, 1))(*given)))


def test_each_device_asks_about_its_rows_alone():
    """A grouped convolution, for which XLA would gather the batch on every device."""

    def apply(variables, images):
        twice = jnp.concatenate([images, images], axis=-1)
        return convolve(twice, variables["kernel"], 1, ((1, 1), (1, 1)), 3).mean((1, 2))

    mesh = parallel.make_mesh(data=2, fsdp=2, tensor=2)
    variables = {"kernel": jnp.asarray(np.random.default_rng(1).normal(size=(3, 3, 2, 6)), jnp.float32)}
    images = np.random.default_rng(2).random((8, 5, 5, 3), np.float32)
    teacher = Teacher(apply, variables, MEAN, STD, (5, 5))
    rows = parallel.put_batch({"image": images}, mesh, len(images))["image"]
    asked = jax.jit(teacher.on(mesh)).lower(parallel.place(variables, mesh), rows).compile()
    assert collectives(asked.as_text()) == []
    np.testing.assert_allclose(
        asked(parallel.place(variables, mesh), rows), teacher(variables, jax.device_put(images)), rtol=1e-5
    )
    assert teacher.on(parallel.make_mesh(devices=jax.devices()[:1])).apply is apply
