"""Writes eval_transform.npz: image files drawn here and what torchvision's evaluation transform makes of them.

    python tests/golden/make_eval_transform.py

The transform is facebook's `build_transform(is_train=False)` without normalisation: `Resize(int(size / crop_ratio), 3)`
and `CenterCrop(size)`. Pillow decodes and resizes; the arithmetic of torchvision.transforms.functional
(`_compute_resized_output_size`, `center_crop`, `pad`) is written out below, with nothing of deit_jax. Made with Pillow
13.0.0 and NumPy 2.4.6.

Keys: `file/NAME`, the bytes of a JPEG or PNG file; `result/NAME/SIZE/CROP_RATIO`, uint8 [SIZE, SIZE, 3].
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# (height, width), kind: portrait and landscape, odd sides, a side of exactly the resized length, very long.
FILES = {
    "landscape": ((83, 127), "JPEG"),
    "portrait": ((131, 97), "JPEG"),
    "square": ((89, 89), "JPEG"),
    "small": ((19, 23), "JPEG"),
    "grey": ((71, 59), "JPEG"),
    "exact": ((36, 53), "PNG"),
    "tall": ((101, 37), "PNG"),
    "wide": ((31, 113), "PNG"),
    "tiny": ((7, 5), "PNG"),
    "palette": ((61, 67), "PNG"),
}
# Both ways round 0.875: 36 for 32, int(48 / 0.875) = int(54.86) for 48; 1.1 pads.
CASES = [(32, 0.875), (32, 1.0), (48, 0.875), (33, 1.0), (31, 0.9), (32, 1.1)]


def draw(height: int, width: int, seed: int) -> Image.Image:
    """Waves with edges and a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    frequency, phase = random.uniform(0.05, 0.9, (2, 3)), random.uniform(0, 6, 3)
    waves = np.sin(x[..., None] * frequency[0] + phase) * np.cos(y[..., None] * frequency[1] - phase)
    pixels = 127 + 90 * waves + 60 * ((x // 7 + y // 5) % 2)[..., None] + random.normal(0, 2, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def resize(image: Image.Image, size: int) -> Image.Image:
    """`Resize(size, InterpolationMode.BICUBIC)`: the smaller edge becomes `size`."""
    width, height = image.size
    short, long = (width, height) if width <= height else (height, width)
    new_short, new_long = size, int(size * long / short)
    new_width, new_height = (new_short, new_long) if width <= height else (new_long, new_short)
    if (new_width, new_height) == (width, height):
        return image
    return image.resize((new_width, new_height), Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """`CenterCrop(size)`."""
    width, height = image.size
    if size > width or size > height:
        left = (size - width) // 2 if size > width else 0
        top = (size - height) // 2 if size > height else 0
        right = (size - width + 1) // 2 if size > width else 0
        bottom = (size - height + 1) // 2 if size > height else 0
        image = ImageOps.expand(image, border=(left, top, right, bottom), fill=0)
        width, height = image.size
        if size == width and size == height:
            return image
    crop_top = round((height - size) / 2.0)
    crop_left = round((width - size) / 2.0)
    return image.crop((crop_left, crop_top, crop_left + size, crop_top + size))


def encode(image: Image.Image, name: str, kind: str) -> bytes:
    """Of the kind and mode that the name says."""
    if name == "grey":
        image = image.convert("L")
    if name == "palette":
        image = image.quantize(60)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def main() -> None:
    arrays = {}
    for seed, (name, (shape, kind)) in enumerate(FILES.items()):
        data = encode(draw(*shape, seed), name, kind)
        arrays[f"file/{name}"] = np.frombuffer(data, np.uint8)
        for size, crop_ratio in CASES:
            with Image.open(io.BytesIO(data)) as file:
                image = center_crop(resize(file.convert("RGB"), int(size / crop_ratio)), size)
            arrays[f"result/{name}/{size}/{crop_ratio}"] = np.asarray(image)
    np.savez_compressed(Path(__file__).with_name("eval_transform.npz"), **arrays)


if __name__ == "__main__":
    main()
