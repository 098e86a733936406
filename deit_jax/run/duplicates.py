"""Photos that are nearly the same, such as one that was trained on and evaluated on under two names."""

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from deit_jax.base.threads import map_in_threads
from deit_jax.data import Source
from deit_jax.data.decode import FORMATS, CorruptImage, decode, from_pillow

SIDE = 16  # of the thumbnails that are compared
CORRELATED = 0.995  # that their grey levels are at least
APART = 6.0  # levels that they differ by on average, at most
FLAT = 4.0  # standard deviation of a thumbnail below which it looks like all others
AT_ONCE = 1024  # rows that are compared with all others


def thumbnails(source: Source, threads: int) -> UInt8[np.ndarray, "examples side side"]:
    """A grey thumbnail of each image of a split; black of those that cannot be decoded."""

    def thumbnail(index: int) -> np.ndarray:
        try:
            image = Image.fromarray(_decoded(source[index].image))
            return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX))
        except (CorruptImage, OSError):
            return np.zeros((SIDE, SIDE), np.uint8)

    return np.stack(map_in_threads(max(1, threads), thumbnail, list(range(len(source)))))


def nearly_the_same(
    ours: UInt8[np.ndarray, "ours side side"], theirs: UInt8[np.ndarray, "theirs side side"]
) -> dict[int, int]:
    """For the thumbnails of some photos that look like one of others, which one that is; the most like it."""
    found: dict[int, int] = {}
    directions = _directions(theirs)
    for start in range(0, len(ours), AT_ONCE):
        part = ours[start : start + AT_ONCE]
        likeness = _directions(part) @ directions.T
        best = likeness.argmax(axis=1)
        apart = np.abs(part.astype(np.float32) - theirs[best]).mean(axis=(1, 2))
        alike = (likeness[np.arange(len(part)), best] > CORRELATED) & (apart < APART)
        found |= {start + int(row): int(best[row]) for row in np.flatnonzero(alike)}
    return found


def _directions(thumbs: np.ndarray) -> Float[np.ndarray, "rows pixels"]:
    """Grey levels about their mean, of length 1, so that a product is a correlation; 0 of what is flat."""
    rows = thumbs.reshape(len(thumbs), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    spread = rows.std(axis=1, keepdims=True)
    return np.where(spread > FLAT, rows / (np.maximum(spread, 1e-6) * np.sqrt(rows.shape[1])), 0)


def _decoded(data: bytes | np.ndarray) -> np.ndarray:
    """Upright; of a JPEG only as many pixels are decoded as are needed."""
    if not isinstance(data, bytes) or not data.startswith(b"\xff\xd8"):
        return decode(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # as in `decode`, whose words are better
        raise CorruptImage(str(error)) from error
    image.draft("RGB", (2 * SIDE, 2 * SIDE))
    return from_pillow(image)
