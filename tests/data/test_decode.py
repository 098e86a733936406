"""Decoding: the right pixels for every kind of file, and one error for what is none."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from deit_jax.data.decode import ORIENTATION_TAG, CorruptImage, decode


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[ORIENTATION_TAG] = orientation
    return block


@pytest.fixture
def fast_path(monkeypatch) -> list[int]:
    """Counts the images that simplejpeg decodes."""
    calls, real = [], simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *args, **kwargs: (real(*args, **kwargs), calls.append(1))[0])
    return calls


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("size", [(64, 48), (37, 53), (17, 2), (1, 1)])
def test_the_fast_path_gives_pillows_pixels(size, subsampling, progressive, photo, encode, fast_path) -> None:
    for quality in (35, 92):
        data = encode(photo(*size), "JPEG", quality=quality, subsampling=subsampling, progressive=progressive)
        assert (decode(data) == by_pillow(data)).all()
    assert len(fast_path) == 2


@pytest.mark.parametrize("progressive", [False, True])
def test_grey_jpeg(progressive, photo, encode, fast_path) -> None:
    data = encode(photo(37, 53)[..., 0], "JPEG", progressive=progressive)
    assert decode(data).shape == (37, 53, 3)
    assert (decode(data) == by_pillow(data)).all()
    assert len(fast_path) == 2


def test_jpeg_that_stores_rgb(photo, encode) -> None:
    data = encode(photo(37, 53), "JPEG", keep_rgb=True)
    assert (decode(data) == by_pillow(data)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(kind, orientation, photo, encode) -> None:
    data = encode(photo(37, 53), kind, exif=exif(orientation))
    pixels = decode(data)
    assert pixels.shape == ((53, 37, 3) if orientation > 4 else (37, 53, 3))
    assert (pixels == by_pillow(data)).all()


def test_damaged_exif_does_not_cost_the_image(photo, encode) -> None:
    data = encode(photo(37, 53), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage")
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        pixels = decode(data)
    assert (pixels == decode(encode(photo(37, 53), "JPEG"))).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes(mode, photo, encode) -> None:
    image = Image.fromarray(photo(11, 13)).convert(mode)
    assert (decode(encode(image)) == np.asarray(image.convert("RGB"))).all()


def test_palette_with_transparency_keeps_its_colours(photo, encode) -> None:
    image = Image.fromarray(photo(11, 13)).convert("P")
    expected = np.asarray(image.convert("RGB"))
    for transparency in (5, bytes(range(0, 250, 2))):
        assert (decode(encode(image, transparency=transparency)) == expected).all()


def test_cmyk_jpeg(photo, encode, fast_path) -> None:
    data = encode(Image.fromarray(photo(11, 13)).convert("CMYK"), "JPEG", quality=95)
    assert (decode(data) == by_pillow(data)).all()
    assert not fast_path


def test_16_bit_grey_keeps_its_range(encode) -> None:
    values = np.linspace(0, 65535, 11 * 13).astype(np.uint16).reshape(11, 13)
    assert (decode(encode(values)) == (values >> 8)[..., None]).all()


def test_webp_and_gif(photo, encode) -> None:
    assert (decode(encode(photo(11, 13), "WEBP", lossless=True)) == photo(11, 13)).all()
    image = Image.fromarray(photo(11, 13)).convert("P")
    assert (decode(encode(image, "GIF")) == np.asarray(image.convert("RGB"))).all()


def test_arrays(photo) -> None:
    assert (decode(photo(11, 13)) == photo(11, 13)).all()
    grey = photo(11, 13)[..., 0]
    assert (decode(grey) == grey[..., None]).all()
    assert decode(grey).shape == (11, 13, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("kept", [0, 0.01, 0.3, 0.6, 0.95])
def test_truncated(kind, kept, photo, encode) -> None:
    data = encode(photo(37, 53), kind)
    with pytest.raises(CorruptImage, match=r"^cannot decode \d+ bytes: |^these \d+ bytes are no"):
        decode(data[: int(len(data) * kept)])


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 999, b"GIF89a", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff"]
)
def test_no_image_at_all(data: bytes) -> None:
    with pytest.raises(CorruptImage):
        decode(data)


def iso_media(*brands: bytes) -> bytes:
    """The start of an ISO media file: `ftyp` with the major brand, a version and the compatible brands, then data."""
    major, *compatible = brands
    content = b"ftyp" + major + bytes(4) + b"".join(compatible)
    return (4 + len(content)).to_bytes(4, "big") + content + b"\0\0\0\x10meta" + bytes(99)


@pytest.mark.parametrize(
    ("brands", "kind"),
    [
        ((b"heic", b"mif1", b"heic"), "HEIC"),
        ((b"mif1", b"mif1", b"heix"), "HEIC"),
        ((b"heis",), "HEIC"),
        ((b"avif", b"mif1", b"miaf"), "AVIF"),
        ((b"mif1", b"miaf", b"avif"), "AVIF"),
    ],
)
def test_heic_and_avif_name_the_mend(brands: tuple[bytes, ...], kind: str) -> None:
    command = f"`magick photo.{kind.lower()} photo.jpg`"
    with pytest.raises(CorruptImage, match=f"^{kind} photos are not read; convert them to JPEG: {command}"):
        decode(iso_media(*brands))
    with pytest.raises(CorruptImage, match=f"^{kind} photos"):  # cut off after the first brand that tells
        decode(iso_media(*brands)[: 8 + 4 * (1 + len(brands))])


@pytest.mark.parametrize(
    "data",
    [iso_media(b"isom", b"mp41"), iso_media(b"heic")[:8], iso_media(b"isom") + iso_media(b"heic"), b"\0\0\0\0ftyp"],
)
def test_other_iso_media_are_no_photos(data: bytes) -> None:
    with pytest.raises(CorruptImage, match=r"^these \d+ bytes are no JPEG"):
        decode(data)


def test_damage_that_pillow_reads_over_is_not_corrupt(photo, encode, fast_path) -> None:
    data = encode(photo(37, 53), "JPEG")
    data = data[:-2] + bytes(16) + data[-2:]  # stray bytes before the end marker, as some ImageNet files have
    with pytest.raises(ValueError, match="extraneous bytes"):
        simplejpeg.decode_jpeg(data, "RGB")
    assert (decode(data) == by_pillow(data)).all()
    assert not fast_path


def test_random_damage_is_corrupt_or_an_image(photo, encode) -> None:
    generator = np.random.default_rng(0)
    outcomes = set()
    for kind in ("JPEG", "PNG", "WEBP"):
        data = np.frombuffer(encode(photo(11, 13), kind), np.uint8)
        for _ in range(150):
            damaged = data.copy()
            damaged[generator.integers(0, len(data), 3)] = generator.integers(0, 256, 3)
            try:
                assert decode(damaged.tobytes()).shape[2] == 3
                outcomes.add("image")
            except CorruptImage:
                outcomes.add("corrupt")
    assert outcomes == {"image", "corrupt"}


def test_decompression_bomb(monkeypatch, encode) -> None:
    data = encode(Image.new("L", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 40 // 2 - 1)
    with pytest.raises(CorruptImage, match="exceeds limit"):
        decode(data)
