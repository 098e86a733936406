"""Small images and folders of them, made on the spot."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def photo() -> Callable[..., np.ndarray]:
    """Makes a uint8 RGB image with smooth parts, edges and noise, different for each seed."""

    def make(height: int, width: int, seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width]
        phase = generator.uniform(0, 6, 3)
        waves = 120 + 80 * np.sin(x[..., None] / 5 + phase) + 50 * np.cos(y[..., None] / 3 + phase)
        return np.clip(waves + generator.normal(0, 9, (height, width, 3)), 0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """Encodes an array or Pillow image: `encode(image, "JPEG", quality=90)`."""

    def make(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
        buffer = io.BytesIO()
        pillow = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        pillow.save(buffer, kind, **options)
        return buffer.getvalue()

    return make


@pytest.fixture
def image_folder(tmp_path: Path, photo: Callable, encode: Callable) -> Callable[[Sequence[str]], str]:
    """Writes an image at each of the paths given and returns the folder."""

    def make(paths: Sequence[str]) -> str:
        kinds = {".png": "PNG", ".webp": "WEBP"}
        for seed, path in enumerate(paths):
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(photo(11, 13, seed), kinds.get(file.suffix.lower(), "JPEG")))
        return str(tmp_path)

    return make
