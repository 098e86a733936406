"""Encoded images to uint8 RGB.

Colours are those of `PIL.Image.convert("RGB")`, which drops transparency, as torchvision's loader does. Unlike it, the
EXIF orientation is applied unless told otherwise (phones store photos rotated), and 16-bit grey keeps its range. Plain
JPEGs take a faster way, simplejpeg, that gives the same pixels. All threads together take a bounded memory, however
large the pictures are.
"""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from deit_jax.data import containers

# A whitelist: Pillow also opens formats that start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp")  # of files in these
UNREAD = (".heic", ".heif", ".hif", ".avif", ".tif", ".tiff")  # of photos that are found, and reported as not read
ORIENTATION_TAG = 0x0112
# Of 90 to 180 megapixels Pillow warns; what is larger it refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pictures of more pixels than any common camera's are made smaller as they are decoded. Networks see a thousandth of
# them, and as they are, those of a few threads would fill a machine's memory.
LARGE, REDUCED = 2**26, 4  # pixels; the sides are divided by this
STRIP = 2**22  # pixels that are converted at a time
# Bytes that all pictures take together while they are decoded: threads wait for each other. What needs more has it to
# itself.
MEMORY = 3 * 2**28
BYTES = {"JPEG": 3, "WEBP": 16}  # a pixel
OTHERS = 7  # Pillow's four, and the three of the array
# Pillow takes memory in blocks of at most this many bytes. What is freed of 32 MiB or less, malloc may keep for the
# thread that had it.
Image.core.set_block_size(2**26)


class CorruptImage(Exception):
    """The data is no image that can be decoded whole."""


class _Allowance:
    """An amount that threads share out among themselves."""

    def __init__(self, amount: int):
        self._amount = self._left = amount
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, amount: int) -> Iterator[None]:
        """Waits until so much is left, or all of it, and gives it back at the end."""
        amount = min(amount, self._amount)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


_MEMORY = _Allowance(MEMORY)


def decode(data: bytes | np.ndarray, *, exif: bool = True) -> np.ndarray:
    """Decodes an image file, or widens an array, to uint8 `[height, width, 3]`.

    Args:
        data: a JPEG, PNG, WebP, GIF (its first frame) or BMP file, or uint8 `[height, width]` or `[height, width, 3]`.
            The sides of a file's picture of more than 67 megapixels are divided by four.
        exif: apply a file's EXIF orientation; without, the pixels stay as they are stored.

    Raises:
        CorruptImage: unknown format, truncated or damaged data, or more than Pillow's limit of about 180 megapixels;
            of formats and variants that are known and not read the message says how to convert them.
    """
    if isinstance(data, np.ndarray):
        return data if data.ndim == 3 else np.stack([data] * 3, axis=-1)
    lean, texts = containers.without_metadata(data) if data.startswith(containers.PNG) else (data, {})
    try:
        image = Image.open(io.BytesIO(lean), formats=FORMATS)
        image.info.update(texts)
        needed = image.width * image.height * BYTES.get(image.format or "", OTHERS)
        with _MEMORY.take(needed), contextlib.closing(image):  # which frees the pixels, before others take the memory
            return _upright(_pixels(image, lean), _orientation(image) if exif else 1)
    except UnidentifiedImageError as error:
        what = containers.unread(data)
        raise CorruptImage(what or f"these {len(data)} bytes are no JPEG, PNG, WebP, GIF or BMP image") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise whatever damaged data makes them run into
        raise CorruptImage(containers.unread(data) or f"cannot decode {len(data)} bytes: {error}") from error


def from_pillow(image: Image.Image) -> np.ndarray:
    """A Pillow image as uint8 `[height, width, 3]`, turned as its EXIF orientation says.

    Raises:
        CorruptImage: it cannot be decoded, being one that was opened and not read yet; or it has a mode in which nobody
            knows what is white.
    """
    if image.mode in ("I", "F"):
        raise CorruptImage(f"has Pillow's mode {image.mode}, in which white may be anything; convert it to L or RGB")
    try:
        return _upright(np.asarray(_rgb(image)), _orientation(image))
    except MemoryError:
        raise
    except Exception as error:  # as in `decode`
        reason = str(error) or type(error).__name__
        raise CorruptImage(f"cannot be decoded: {reason}; open it again, or give its path") from error


def from_array(array: np.ndarray) -> np.ndarray:
    """uint8 `[height, width]`, `[height, width, 1]`, `[height, width, 3]` or `[height, width, 4]` as three channels;
    transparency is dropped.

    Raises:
        CorruptImage: it has another type or shape, or no pixels.
    """
    form = f"is {array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else f"is a {type(array).__name__}"
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8:
        raise CorruptImage(f"{form}; give a path, a Pillow image, or uint8 of values from 0 to 255")
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise CorruptImage(f"{form}; give [height, width], or [height, width, channels] of 1, 3 or 4 channels")
    channels = array[..., :3] if array.ndim == 3 else array[..., None]
    return np.ascontiguousarray(np.broadcast_to(channels, (*channels.shape[:2], 3)))


def _pixels(image: Image.Image, data: bytes) -> np.ndarray:
    """uint8 [height, width, 3], or of a large picture [height / 4, width / 4, 3], rounded up."""
    reduced = REDUCED if image.width * image.height > LARGE else 1
    height, width = -(-image.height // reduced), -(-image.width // reduced)
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        try:
            return simplejpeg.decode_jpeg(data, "RGB", min_height=height, min_width=width)
        except ValueError:
            pass  # stricter than Pillow, whose verdict counts
    # In strips, since converting a whole picture takes its memory three times more.
    rows = max(STRIP // image.width, 1) * reduced
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = _rgb(image if rows >= image.height else image.crop(box))
        pixels[top // reduced : (top + rows) // reduced] = np.asarray(strip.reduce(reduced) if reduced > 1 else strip)
    return pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert("RGB") would clip at 255
        image = Image.fromarray(np.clip(np.asarray(image) // 256, 0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns when this step is left out; the colours are the same
    return image if image.mode == "RGB" else image.convert("RGB")


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
