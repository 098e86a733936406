"""The whole of what a training image goes through: drawn as ever, and done as timm and torchvision do it."""

import dataclasses
import json

import numpy as np
import pytest
from golden_files import assert_close, load
from PIL import Image
from scipy import stats

from deit_jax.data.color_jitter import draw_jitter
from deit_jax.data.decode import CorruptImage
from deit_jax.data.operations import Operation
from deit_jax.data.train_transform import TrainTransform, View
from deit_jax.data.transforms import random_box

GOLDEN = load("augment.npz")
VIEWS = sorted(int(key.removeprefix("view/")) for key in GOLDEN if key.startswith("view/"))
FULL = TrainTransform(32, interpolation="random", augment="rand-m9-mstd0.5-inc1", color_jitter=0.3)


@pytest.mark.parametrize("number", VIEWS)
def test_what_timm_drew_gives_timms_picture(number):
    told = json.loads(str(GOLDEN[f"view/{number}"]))
    operations = tuple(Operation(*operation) for operation in told["operations"])
    view = View(tuple(told["box"]), told["flip"], told["interpolation"], operations)
    image = GOLDEN[f"image/{told['image']}"]
    transform = TrainTransform(32, **told["settings"])
    found = transform.apply(image, view)
    assert_close(found, GOLDEN[f"pixels/{number}"], "augment.npz", "pixels", strict=True)
    # What is drawn here is of the same form.
    drawn = transform.draw(*image.shape[:2], np.random.default_rng(number))
    assert transform.apply(image, drawn).shape == (32, 32, 3)
    if transform.crop != "random_resized":
        assert drawn.box[2:] == view.box[2:]


def test_replayed_views_have_everything():
    told = [json.loads(str(GOLDEN[f"view/{number}"])) for number in VIEWS]
    assert {view["flip"] for view in told} == {True, False}
    assert {view["interpolation"] for view in told} == {"bilinear", "bicubic"}
    assert len({operation[0] for view in told for operation in view["operations"]}) > 12


def test_crop_and_flip_are_drawn_as_ever(photo):
    """From the generator in this order, and what came later after them: streams of before stay as they are."""
    for number in range(20):
        generator = np.random.default_rng(number)
        box = random_box(37, 53, generator, (0.08, 1.0), (3 / 4, 4 / 3))
        flip = generator.random() < 0.5
        views = [t.draw(37, 53, np.random.default_rng(number)) for t in (TrainTransform(32), FULL)]
        assert [(view.box, view.flip) for view in views] == [(box, flip)] * 2
        image = photo(37, 53, number)
        top, left, height, width = box
        part = Image.fromarray(image).crop((left, top, left + width, top + height))
        pixels = np.asarray(part.resize((32, 32), Image.Resampling.BICUBIC))
        found = TrainTransform(32)(image, np.random.default_rng(number))
        assert found.dtype == np.uint8
        assert np.array_equal(found, pixels[:, ::-1] if flip else pixels)


def test_the_crop_sees_nothing_outside():
    image = np.full((61, 7, 3), 255, np.uint8)
    image[26:35] = 0
    assert not TrainTransform(32, crop_scale=(1.0, 1.0))(image, np.random.default_rng(0)).any()


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flips_are_as_frequent_as_asked_for(probability):
    generator, transform = np.random.default_rng(0), TrainTransform(8, flip=probability)
    flips = sum(transform.draw(9, 9, generator).flip for _ in range(2000))
    assert flips / 2000 == pytest.approx(probability, abs=0.03 * (0 < probability < 1))


def test_equal_draws_make_equal_images(photo):
    image = photo(37, 53)
    views = [FULL.draw(37, 53, np.random.default_rng(number)) for number in range(50)]
    first = [FULL.apply(image, view) for view in views]
    assert len({pixels.tobytes() for pixels in first}) == 50
    assert np.array_equal(image, photo(37, 53))  # which none of them changed
    for number in reversed(range(50)):
        assert np.array_equal(FULL(image, np.random.default_rng(number)), first[number])


def test_interpolation_is_drawn_evenly_where_it_is_random():
    generator = np.random.default_rng(0)
    drawn = [FULL.draw(37, 53, generator).interpolation for _ in range(1000)]
    assert stats.binomtest(drawn.count("bicubic"), 1000).pvalue > 1e-3
    assert drawn.count("bicubic") + drawn.count("bilinear") == 1000


@pytest.mark.parametrize("crop", ["simple", "pad"])
def test_border_crops_reach_every_place_evenly(crop):
    generator, transform = np.random.default_rng(0), TrainTransform(32, crop=crop)
    boxes = np.array([transform.draw(32, 34, generator).box for _ in range(6000)])
    assert (boxes[:, 2:] == 32).all()
    for offsets, places in ((boxes[:, 0], 9), (boxes[:, 1], 11)):
        counts = np.bincount(offsets)
        assert len(counts) == places
        assert stats.chisquare(counts).pvalue > 1e-3


def test_small_images_keep_their_pixels(photo):
    """Those of the target's size are shifted within a black border alone."""
    image = photo(32, 32)
    transform = TrainTransform(32, crop="pad")
    found = transform.apply(image, View((1, 7, 32, 32), False, "bicubic"))
    assert not found[:3].any()
    assert not found[:, 29:].any()
    assert np.array_equal(found[3:, :29], image[:29, 3:])
    mirrored = dataclasses.replace(transform, crop="simple").apply(image, View((1, 7, 32, 32), False, "bicubic"))
    assert np.array_equal(mirrored[3:, :29], image[:29, 3:])
    assert np.array_equal(mirrored[:3], mirrored[6:3:-1])
    assert np.array_equal(mirrored[:, 29:], mirrored[:, 27:24:-1])


def test_an_image_that_would_fill_the_memory_is_refused():
    with pytest.raises(CorruptImage, match="30000 x 2 pixels: too thin"):
        TrainTransform(224, crop="simple")(np.zeros((2, 30_000, 3), np.uint8), np.random.default_rng(0))


def test_colour_jitter_draws_three_factors_in_every_order():
    generator = np.random.default_rng(0)
    drawn = [draw_jitter(generator, 0.3) for _ in range(3000)]
    orders = [tuple(op.name for op in ops) for ops in drawn]
    assert stats.chisquare([orders.count(order) for order in set(orders)]).pvalue > 1e-3
    assert len(set(orders)) == 6
    for name in ("Brightness", "Contrast", "Color"):
        factors = [op.argument for ops in drawn for op in ops if op.name == name]
        assert stats.kstest(factors, stats.uniform(0.7, 0.6).cdf).pvalue > 1e-3
    assert draw_jitter(generator, 0.0) == ()
