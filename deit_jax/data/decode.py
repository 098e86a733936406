"""Encoded images to uint8 RGB.

Colours are those of `PIL.Image.convert("RGB")`, which drops transparency, as torchvision's loader does. Unlike it, the
EXIF orientation is applied (phones store photos rotated), and 16-bit grey keeps its range. Plain JPEGs take a
faster way, simplejpeg, that gives the same pixels.
"""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

# A whitelist: Pillow also opens formats that start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp")  # of files in these
UNREAD = (".heic", ".heif", ".hif", ".avif", ".tif", ".tiff")  # of photos that are found, and reported as not read
ORIENTATION_TAG = 0x0112
# Of 90 to 180 megapixels Pillow warns; what is larger it refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# By the brands that an ISO media file (ISO/IEC 14496-12) states: of HEIF (ISO/IEC 23008-12, annex B) and of AVIF. An
# AVIF file states a brand of HEIF's, too, hence the order.
BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"},
}


class CorruptImage(Exception):
    """The data is no image that can be decoded whole."""


def decode(data: bytes | np.ndarray) -> np.ndarray:
    """Decodes an image file, or widens an array, to uint8 `[height, width, 3]`.

    Args:
        data: a JPEG, PNG, WebP, GIF (its first frame) or BMP file, or uint8 `[height, width]` or `[height, width, 3]`.

    Raises:
        CorruptImage: unknown format, truncated or damaged data, or more than Pillow's limit of about 180 megapixels;
            of HEIC, HEIF and AVIF the message says how to convert them.
    """
    if isinstance(data, np.ndarray):
        return data if data.ndim == 3 else np.stack([data] * 3, axis=-1)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _upright(_pixels(image, data), _orientation(image))
    except UnidentifiedImageError as error:
        raise CorruptImage(_what_it_is(data)) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever damaged data makes them run into
        raise CorruptImage(f"cannot decode {len(data)} bytes: {error}") from error


def _what_it_is(data: bytes) -> str:
    """What to say of data in none of the formats: for phones' photos how to convert them."""
    # A box `ftyp`: its length, its name, the major brand, a version, and the brands that the file is compatible with.
    length = int.from_bytes(data[:4], "big")
    if data[4:8] == b"ftyp":
        box = data[8 : min(length, 256)]
        stated = {box[i : i + 4] for i in range(0, len(box), 4)}
        for name, brands in BRANDS.items():
            if stated & brands:
                suffix = name.lower()
                return (
                    f"{name} photos are not read; convert them to JPEG: `magick photo.{suffix} photo.jpg` "
                    f"(ImageMagick), or on a Mac `sips -s format jpeg photo.{suffix} --out photo.jpg`"
                )
    return f"these {len(data)} bytes are no JPEG, PNG, WebP, GIF or BMP image"


def _pixels(image: Image.Image, data: bytes) -> np.ndarray:
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        try:
            return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError:
            pass  # stricter than Pillow, whose verdict counts
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip at 255
        grey = np.clip(np.asarray(image) // 256, 0, 255).astype(np.uint8)
        return np.stack([grey] * 3, axis=-1)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when this step is left out; the colours are the same
    return np.asarray(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) where there is none or the EXIF block is damaged."""
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # the pixels are good; many cameras and editors write damaged EXIF
        return 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an EXIF orientation: its values 2 to 8 are the other symmetries of the rectangle."""
    match orientation:
        case 2:
            return pixels[:, ::-1]
        case 3:
            return pixels[::-1, ::-1]
        case 4:
            return pixels[::-1]
        case 5:
            return pixels.swapaxes(0, 1)
        case 6:
            return np.rot90(pixels, -1)
        case 7:
            return np.rot90(pixels, 2).swapaxes(0, 1)
        case 8:
            return np.rot90(pixels)
        case _:
            return pixels
