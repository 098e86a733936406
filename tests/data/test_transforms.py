"""Random boxes and the evaluation transform."""

import math

import numpy as np
import pytest
from golden_files import assert_close, load
from PIL import Image

from deit_jax.data.decode import CorruptImage, decode
from deit_jax.data.transforms import eval_transform, random_box

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def boxes(height: int, width: int, count: int, scale=SCALE, ratio=RATIO) -> np.ndarray:
    generator = np.random.default_rng(0)
    return np.array([random_box(height, width, generator, scale, ratio) for _ in range(count)])


def test_area_and_shape_of_random_boxes() -> None:
    side = 1009
    top, left, height, width = boxes(side, side, 20_000).T
    assert (np.stack([top, left, side - top - height, side - left - width]) >= 0).all()
    # Area s is uniform, log ratio r is uniform in +-L; kept where s <= exp(-|r|), so s has density min(L, -ln s).
    low, bound, edge = SCALE[0], math.log(RATIO[1]), RATIO[0]
    kept = bound * (edge - low) + (1 - edge + edge * math.log(edge))
    mean = bound * (edge**2 - low**2) / 2 + (1 - edge**2) / 4 + edge**2 * math.log(edge) / 2
    area = height * width / side**2
    assert area.mean() == pytest.approx(mean / kept, abs=0.005)
    assert (area.min(), area.max()) == pytest.approx((low, 1), abs=0.03)
    ratio = np.log(width / height)
    small = area < edge  # where no shape is rejected
    assert np.abs(ratio).max() <= bound + 0.01
    assert ratio.mean() == pytest.approx(0, abs=0.005)
    assert ratio[small].std() == pytest.approx(2 * bound / math.sqrt(12), rel=0.02)


def test_random_boxes_reach_every_corner() -> None:
    top, left, height, width = boxes(5, 7, 3000).T
    room = np.stack([5 - height, 7 - width])
    place = np.stack([top, left])
    for axis in range(2):
        for free in (1, 2, 3):
            found = place[axis][room[axis] == free]
            counts = np.bincount(found, minlength=free + 1)
            assert counts.min() > 0.7 * counts.mean()


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(61, 7, (26, 0, 9, 7)), (7, 61, (0, 26, 7, 9)), (1, 50, (0, 24, 1, 1)), (7, 6, (0, 0, 7, 6))],
)
def test_fallback_is_the_largest_centred_box(height: int, width: int, box: tuple[int, ...]) -> None:
    # Whole area and a shape that fits: hardly ever for 7 x 6, never for the others.
    found = {tuple(map(int, found)) for found in boxes(height, width, 5, scale=(1.0, 1.0))}
    assert found == {box}


@pytest.mark.parametrize(
    ("height", "width", "ratio"), [(8, 8, (99.0, 100.0)), (8, 8, (0.01, 0.011)), (9, 1, (2.1, 3.0))]
)
def test_a_box_of_no_shape_that_fits_still_holds_pixels(height: int, width: int, ratio: tuple[float, float]) -> None:
    for _, _, box_height, box_width in boxes(height, width, 5, ratio=ratio):
        assert box_height >= 1
        assert box_width >= 1


# torchvision, for a shorter side s and a longer side l:
#   Resize(r):        s -> r, l -> int(r * l / s)
#   CenterCrop(c):    offset int(round((side - c) / 2.0)), Python's round (half to even)
#   CenterCrop pads a side smaller than c with (c - side) // 2 before and (c - side + 1) // 2 after, in black.
@pytest.mark.parametrize(
    ("height", "width", "crop_ratio", "resized", "offset"),
    [
        (37, 53, 0.875, (36, 51), (2, 10)),  # 36 * 53 / 37 = 51.6; 9.5 rounds to 10
        (37, 51, 0.875, (36, 49), (2, 8)),  # 49.6; 8.5 rounds to 8
        (53, 37, 0.875, (51, 36), (10, 2)),
        (41, 41, 0.875, (36, 36), (2, 2)),
        (13, 17, 1.0, (32, 41), (0, 4)),  # upwards: 41.8; 4.5 rounds to 4
        (32, 32, 1.0, (32, 32), (0, 0)),
        (37, 53, 0.9, (35, 50), (2, 9)),  # int(35.6); 50.1; 1.5 rounds to 2
    ],
)
def test_eval_transform(photo, height, width, crop_ratio, resized, offset) -> None:
    image = photo(height, width)
    whole = Image.fromarray(image).resize((resized[1], resized[0]), Image.Resampling.BICUBIC)
    top, left = offset
    expected = np.asarray(whole)[top : top + 32, left : left + 32]
    found = eval_transform(image, size=32, crop_ratio=crop_ratio)
    assert found.dtype == np.uint8
    assert found.shape == (32, 32, 3)
    assert (found == expected).all()


def test_eval_transform_pads_what_is_too_small(photo) -> None:
    image = photo(41, 61)
    found = eval_transform(image, size=32, crop_ratio=1.25)  # 25 x int(37.2)
    whole = np.asarray(Image.fromarray(image).resize((37, 25), Image.Resampling.BICUBIC))
    expected = np.zeros((32, 32, 3), np.uint8)
    expected[3:28] = whole[:, 2:34]  # 3 rows above, 4 below; 2.5 rounds to 2
    assert (found == expected).all()


GOLDEN = load("eval_transform.npz")


@pytest.mark.parametrize(
    "name", ["landscape", "portrait", "square", "small", "grey", "exact", "tall", "wide", "tiny", "palette"]
)
def test_decoding_and_eval_transform_are_torchvisions_to_the_bit(name: str) -> None:
    image = decode(GOLDEN[f"file/{name}"].tobytes())
    cases = [key for key in GOLDEN if key.startswith(f"result/{name}/")]
    assert len(cases) == 6
    for key in cases:
        size, crop_ratio = key.split("/")[2:]
        found = eval_transform(image, size=int(size), crop_ratio=float(crop_ratio))
        assert_close(found, GOLDEN[key], "eval_transform.npz", "pixels", err_msg=key, strict=True)


def test_an_image_that_would_fill_the_memory_is_refused() -> None:
    with pytest.raises(CorruptImage, match="30000 x 2 pixels: too thin"):
        eval_transform(np.zeros((2, 30_000, 3), np.uint8), size=224, crop_ratio=0.875)
