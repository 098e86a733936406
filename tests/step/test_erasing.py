import math

import jax
import numpy as np
import pytest

from deit_jax.base import rng
from deit_jax.step import erasing, mixing
from deit_jax.step.step import Normalization, student_images

SIZE = 37
USUAL = {"mode": "pixel", "probability": 0.25, "min_count": 1, "max_count": 1, "area": (0.02, 1 / 3)}
USUAL |= {"aspect": (0.3, 1 / 0.3)}


def draw(seed: int = 0, step: int = 0, *, batch_size: int = 4000, image_size: int = SIZE, **settings):
    return erasing.draw(seed, step, batch_size=batch_size, image_size=image_size, **(USUAL | settings))


def erase(images, drawn):
    return np.asarray(jax.jit(erasing.erase)(images, drawn))


def sides(box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y0, y1, x0, x1 = np.moveaxis(box, -1, 0)
    return y1 - y0, x1 - x0


# What is drawn.


def test_draws_depend_on_seed_and_step_alone():
    before = draw(3, 5, batch_size=7)
    np.random.default_rng().random(11)
    for name, value in draw(3, 5, batch_size=7).items():
        np.testing.assert_array_equal(before[name], value)
    for other in (draw(4, 5, batch_size=7), draw(3, 6, batch_size=7)):
        assert (other["key"] != before["key"]).all()


@pytest.mark.parametrize(("mode", "more"), [("pixel", {"key"}), ("rand", {"fill"}), ("const", set())])
def test_what_is_drawn_has_the_shapes_and_types_stated(mode, more):
    drawn = draw(batch_size=5, mode=mode, max_count=3)
    kinds = {"box": ((5, 3, 4), np.int32), "key": ((5, 2), np.uint32), "fill": ((5, 3, 3), np.float32)}
    assert {name: (value.shape, value.dtype) for name, value in drawn.items()} == {
        name: kind for name, kind in kinds.items() if name in {"box"} | more
    }


def reference(count: int, *, area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3), boxes=1) -> np.ndarray:
    """Sides [n, 2] of boxes from the facts, a box at a time; n <= count, since some never fit."""
    random, found = np.random.default_rng(99), []
    for _ in range(count):
        for _ in range(10):
            pixels = random.uniform(*area) * SIZE**2 / boxes
            ratio = math.exp(random.uniform(math.log(aspect[0]), math.log(aspect[1])))
            height, width = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if height < SIZE and width < SIZE:
                found.append((height, width))
                break
    return np.array(found)


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Kolmogorov and Smirnov's distance of two samples, at a level of 1e-4."""
    values = np.union1d(ours, theirs)
    apart = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (ours, theirs)]
    bound = math.sqrt(-math.log(1e-4 / 2) / 2 * (1 / len(ours) + 1 / len(theirs)))
    assert np.abs(apart[0] - apart[1]).max() < bound


@pytest.mark.parametrize("settings", [{}, {"area": (0.3, 0.9)}, {"aspect": (0.5, 1.0)}])
def test_boxes_are_as_large_and_as_long_as_a_references(settings):
    height, width = sides(draw(probability=1.0, **settings)["box"][:, 0])
    there = height > 0
    theirs = reference(4000, **settings)
    assert abs(there.mean() - len(theirs) / 4000) < 0.01
    for ours, wanted in zip((height, width, height * width), (*theirs.T, theirs.prod(axis=1)), strict=True):
        assert_same_distribution(ours[there], wanted)


def test_a_box_lies_anywhere_inside():
    y0, y1, x0, x1 = draw(probability=1.0, area=(0.1, 0.1), aspect=(1.0, 1.0))["box"][:, 0].T
    side = round(math.sqrt(0.1) * SIZE)
    for low, high in ((y0, y1), (x0, x1)):
        assert (high - low == side).all()
        places, counts = np.unique(low, return_counts=True)
        assert places.tolist() == list(range(SIZE - side + 1))
        share = 1 / len(places)
        assert abs(counts / 4000 - share).max() < 5 * math.sqrt(share / 4000)


def test_a_box_as_high_as_the_image_is_none():
    assert not draw(probability=1.0, area=(1.0, 1.0), aspect=(1.0, 1.0))["box"].any()
    below = ((SIZE - 1) / SIZE) ** 2
    assert (sides(draw(probability=1.0, area=(below, below), aspect=(1.0, 1.0))["box"])[0] == SIZE - 1).all()


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_so_many_images_are_erased_in(probability):
    share = draw(probability=probability)["box"].any(axis=(1, 2)).mean()
    assert abs(share - probability) <= 4 * math.sqrt(probability * (1 - probability) / 4000)


def test_counts_are_uniform_and_share_the_area():
    boxes = draw(probability=1.0, min_count=2, max_count=4, area=(0.1, 0.1), aspect=(1.0, 1.0))["box"]
    counts = boxes.any(axis=-1).sum(axis=1)
    numbers, found = np.unique(counts, return_counts=True)
    assert numbers.tolist() == [2, 3, 4]
    assert abs(found / 4000 - 1 / 3).max() < 5 * math.sqrt(1 / 3 * 2 / 3 / 4000)
    for count in (2, 3, 4):
        height, _ = sides(boxes[counts == count])
        assert set(np.unique(height[:, :count])) == {round(math.sqrt(0.1 / count) * SIZE)}
        assert not height[:, count:].any()


# What it does to images.


@pytest.mark.parametrize("mode", ["rand", "const"])
def test_boxes_are_filled_with_their_colours_and_nothing_else_is(mode):
    drawn = draw(1, batch_size=6, mode=mode, probability=1.0, max_count=3)
    images = np.random.default_rng(0).normal(size=(6, SIZE, SIZE, 3)).astype(np.float32)
    wanted = images.copy()
    for row, boxes in enumerate(drawn["box"]):
        for i, (y0, y1, x0, x1) in enumerate(boxes):
            wanted[row, y0:y1, x0:x1] = drawn["fill"][row, i] if mode == "rand" else 0
    assert (wanted != images).any()
    np.testing.assert_array_equal(erase(images, drawn), wanted)


def test_pixels_are_filled_with_the_noise_of_their_image():
    drawn = draw(1, batch_size=6, probability=0.6)
    images = np.full((6, SIZE, SIZE, 3), 7, np.float32)
    erased = erase(images, drawn)
    noise = np.asarray(rng.noise(jax.device_put(drawn["key"]), (SIZE, SIZE, 3)))
    for row, ((y0, y1, x0, x1),) in enumerate(drawn["box"]):
        np.testing.assert_array_equal(erased[row, y0:y1, x0:x1], noise[row, y0:y1, x0:x1])
        assert (erased[row] == 7).all(axis=-1).sum() == SIZE**2 - (y1 - y0) * (x1 - x0)
    assert 0 < (erased != 7).any(axis=(1, 2, 3)).sum() < 6


def test_images_are_erased_before_they_are_mixed():
    """By hand, from the pieces: each partner brings its own boxes and noise, and no mixed pixel is erased."""
    normalize = Normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    image = np.random.default_rng(0).integers(256, size=(6, SIZE, SIZE, 3), dtype=np.uint8)
    settings = {"mixup": 0.8, "cutmix": 1.0, "probability": 1.0, "switch_probability": 0.5}
    mix = mixing.draw(0, 3, groups=2, members=3, mode="elem", image_size=SIZE, **settings)
    drawn = draw(2, batch_size=6, probability=0.7)
    seen = np.asarray(jax.jit(student_images, static_argnums=1)(
        {"image": image, "mix": mix, "erasing": drawn}, normalize))  # fmt: skip
    noise = np.asarray(rng.noise(jax.device_put(drawn["key"]), (SIZE, SIZE, 3)))
    erased = (image / 255 - np.array(normalize.mean)) / np.array(normalize.std)
    for row, ((y0, y1, x0, x1),) in enumerate(drawn["box"]):
        erased[row, y0:y1, x0:x1] = noise[row, y0:y1, x0:x1]
    for row, partner in enumerate([2, 1, 0, 5, 4, 3]):
        weight = np.full((SIZE, SIZE, 1), mix["image_weight"].ravel()[row])
        y0, y1, x0, x1 = mix["box"].reshape(-1, 4)[row]
        weight[y0:y1, x0:x1] = 0
        np.testing.assert_allclose(seen[row], weight * erased[row] + (1 - weight) * erased[partner], atol=2e-6)


# Noise.


def test_noise_is_the_hash_of_its_key_and_place():
    """Of the same hash in Python's whole numbers."""

    def hashed(x):
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    keys = np.array([[1, 2], [2**32 - 1, 77], [5, 0]], np.uint32)
    uniform = [
        [((hashed((hashed(i ^ hashed(int(a))) + int(b)) % 2**32) >> 8) + 0.5) / 2**24 for i in range(12)]
        for a, b in keys
    ]
    noise = np.asarray(jax.jit(rng.noise, static_argnums=1)(keys, (2, 2, 3)), np.float64).reshape(3, 12)
    below = [[(1 + math.erf(z / math.sqrt(2))) / 2 for z in row] for row in noise]
    np.testing.assert_allclose(below, uniform, atol=1e-6)


def test_noise_is_normal_and_independent():
    """Moments to the fourth, Kolmogorov's distance, and neighbours within an image, between images and keys."""
    keys = np.stack([np.arange(64) // 8, np.arange(64) % 8], axis=1).astype(np.uint32)  # the least different keys
    z = np.asarray(rng.noise(jax.device_put(keys), (1 << 14,)), np.float64)
    n = z.size
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4.5 * math.sqrt(variance / n)
    below = np.sort([(1 + math.erf(x / math.sqrt(2))) / 2 for x in z[::4].ravel()])
    assert np.abs(below - np.arange(1, len(below) + 1) / len(below)).max() < 2.0 / math.sqrt(len(below))
    for lag in (1, 2, 3, 111, 224, 672):
        assert abs((z[:, lag:] * z[:, :-lag]).mean()) < 4.5 / math.sqrt(n)
    across = z @ z.T / z.shape[1] - np.eye(64)
    np.fill_diagonal(across, 0)
    assert np.abs(across).max() < 5.5 / math.sqrt(z.shape[1])
    assert np.abs(z).max() < 5.5
