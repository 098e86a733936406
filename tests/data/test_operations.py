"""Each operation of augmentation, against timm's, and by hand where timm has none."""

import numpy as np
import pytest
from golden_files import assert_close, load
from PIL import Image

from deit_jax.data.operations import FILL, OPERATIONS, WARPS, Operation, operate

GOLDEN = load("augment.npz")
CASES = [key for key in GOLDEN if key.startswith("operation/")]


def after(image: np.ndarray, *operation) -> np.ndarray:
    return np.asarray(operate(Image.fromarray(image), Operation(*operation)))


@pytest.mark.parametrize("image", ["photo", "extremes"])
@pytest.mark.parametrize("name", [*OPERATIONS, *WARPS])
def test_operations_are_timms_to_the_bit(image, name):
    cases = [key for key in CASES if key.startswith(f"operation/{image}/{name}/")]
    assert len(cases) >= (6 if name in WARPS else 1)
    for key in cases:
        argument, interpolation = key.split("/")[3:]
        value = float(argument) if "." in argument else int(argument) if argument else None
        found = after(GOLDEN[f"image/{image}"], name, value, interpolation)
        assert_close(found, GOLDEN[key], "augment.npz", "pixels", err_msg=key, strict=True)


def test_golden_pictures_tell_the_operations_apart():
    made = {key: GOLDEN[key].tobytes() for key in CASES if key.startswith("operation/photo/")}
    same = {"Posterize/8/", "Solarize/256/", "SolarizeAdd/0/", "GaussianBlur/0.1/", "Solarize/0/", "Solarize/26/"}
    same |= {f"{name}/1.0/" for name in ("Color", "Contrast", "Brightness", "Sharpness")}
    told = [pixels for key, pixels in made.items() if key.removeprefix("operation/photo/") not in same]
    assert len(set(told)) == len(told) > 50


@pytest.mark.parametrize("bits", [0, -2])
def test_no_bits_are_black(bits):
    assert not after(GOLDEN["image/photo"], "Posterize", bits).any()


def test_directions_and_fill_by_hand():
    """A white picture with a black pixel, whose way tells the sign; what comes in from outside has the fill."""
    image = np.full((9, 9, 3), 255, np.uint8)
    image[4, 6] = 0
    where = {
        ("Rotate", 90): (2, 4),  # counter-clockwise: from the right to the top
        ("TranslateXRel", 2 / 9): (4, 4),  # what is seen comes from further right
        ("TranslateYRel", -2 / 9): (6, 6),
        ("ShearX", 1 / 4.5): (4, 5),  # row 4 looks 1 further right, at its centre 4.5
        ("ShearY", -1 / 6.5): (5, 6),  # column 6 looks 1 further up
    }
    for (name, argument), (row, column) in where.items():
        found = after(image, name, argument, "bilinear")
        assert (found[row, column] == 0).all(), name
    shifted = after(image, "TranslateXRel", 2 / 9, "bicubic")
    assert (shifted[:, 7:] == FILL).all()
    assert not (shifted[:, :7] == FILL).any()
