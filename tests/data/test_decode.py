"""Decoding: the right pixels for every kind of file, and one error for what is none."""

import contextlib
import io
import struct
import subprocess
import sys
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from deit_jax.data import containers
from deit_jax.data import decode as decoding
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


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_may_be_left_alone(orientation, photo, encode) -> None:
    """As torchvision's loader reads a photo."""
    data = encode(photo(37, 53), "JPEG", exif=exif(orientation))
    with Image.open(io.BytesIO(data)) as image:
        stored = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(data, exif=False), stored)
    assert not np.array_equal(decode(data), stored)


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


# Metadata of PNGs.


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def with_chunks(png: bytes, *chunks: bytes, last: bool = False) -> bytes:
    """Behind the header, or before the end."""
    at = len(png) - 12 if last else 33
    return png[:at] + b"".join(chunks) + png[at:]


MILLION = bytes(10**6)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
METADATA = {
    "profile": [chunk(b"iCCP", b"icc\0\0" + zlib.compress(3 * MILLION))],
    "profile that is no zlib stream": [chunk(b"iCCP", b"icc\0\0" + MILLION)],
    "profile of an unknown method": [chunk(b"iCCP", b"icc\0\7abc")],
    "profile with a false checksum": [chunk(b"iCCP", b"icc\0\0" + zlib.compress(MILLION), 1)],
    "profile without content": [chunk(b"iCCP", b"")],
    "text": [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(3 * MILLION))],
    "plain text": [chunk(b"tEXt", b"Comment\0" + 70 * MILLION)],
    "text in Unicode": [chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(3 * MILLION))],
    "many texts": [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(MILLION))] * 70,
    "text of an unknown method": [chunk(b"zTXt", b"Comment\0\7abc")],
    "transparency cut short": [chunk(b"tRNS", b"\0")],
    "100,000 chunks": [chunk(b"prVt", b"")] * 100_000,
    "animation that is damaged": [chunk(b"acTL", b"\0\0\0\2\0\0\0\0"), chunk(b"fcTL", b"\0\0\0\7" + bytes(22))],
}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kind", METADATA)
def test_metadata_of_a_png_is_of_no_interest(kind, last, photo, encode) -> None:
    for image in (Image.fromarray(photo(37, 53)), Image.fromarray(photo(37, 53)).convert("P")):
        assert (
            decode(with_chunks(encode(image), *METADATA[kind], last=last)) == np.asarray(image.convert("RGB"))
        ).all()


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP + 3 * MILLION)),
        chunk(b"zTXt", b"XML:com.adobe.xmp\0\0" + zlib.compress(XMP)),
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n      26\n" + exif(6).tobytes().hex().encode()),
        chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n26\n" + exif(6).tobytes().hex().encode())
        ),
        chunk(b"eXIf", exif(6).tobytes()[6:] + 3 * MILLION),
    ],
    ids=["plain", "large", "zTXt", "raw profile", "compressed raw profile", "large EXIF"],
)
@pytest.mark.parametrize("last", [False, True])
def test_metadata_that_says_which_way_is_up_is_read(text, last, photo, encode) -> None:
    data = with_chunks(encode(photo(37, 53)), *METADATA["profile"], text, last=last)
    assert (decode(data) == np.rot90(photo(37, 53), -1)).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("default_image", [False, True])
def test_of_an_animation_the_first_picture(kind, default_image, photo, encode) -> None:
    frames = [Image.fromarray(photo(37, 53, seed)) for seed in range(3)]
    options = {"default_image": default_image} if kind == "PNG" else {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames > 2
        assert (decode(data) == np.asarray(image.convert("RGB"))).all()


def test_texts_that_cannot_be_inflated_do_not_cost_the_image(photo, encode) -> None:
    for content in (b"", b"\0", b"\0\1\0", b"\0\1\0\0\0garbage", b"\0\xff\xff"):
        for kind in (b"zTXt", b"iTXt", b"tEXt"):
            data = with_chunks(encode(photo(37, 53)), chunk(kind, b"XML:com.adobe.xmp" + content))
            assert (decode(data) == photo(37, 53)).all()


def test_metadata_is_no_bomb(photo, encode, monkeypatch) -> None:
    """A hundred megabytes each, of which one of each key is inflated, and no more of it than a bound."""
    inflated, inflate = [], zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", lambda: (inflated.append(1), inflate())[1])
    bomb = zlib.compress(bytes(10**8))
    data = with_chunks(
        encode(photo(37, 53)),
        *(chunk(b"iCCP", b"icc\0\0" + bomb), chunk(b"zTXt", b"Comment\0\0" + bomb)),
        *[chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb)] * 5,
        *[chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + bomb)] * 5,
    )
    tracemalloc.start()
    try:
        assert (decode(data) == photo(37, 53)).all()
        assert tracemalloc.get_traced_memory()[1] < 5 * containers.LONGEST
        assert len(inflated) == 2
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_metadata_of_other_formats(kind, photo, encode) -> None:
    profile, block = 3 * MILLION, exif(6)
    block[0x9286] = bytes(60_000)  # a comment, as long as a JPEG's segment allows
    expected = decode(encode(photo(37, 53), kind, exif=exif(6)))
    assert (decode(encode(photo(37, 53), kind, icc_profile=profile, exif=block)) == expected).all()


# Formats and variants that are not read.


def jpeg_frame(data: bytes, marker: int, bits: int = 8) -> bytes:
    """A baseline JPEG that says that it is another."""
    at = data.index(b"\xff\xc0")
    return data[:at] + bytes([0xFF, marker]) + data[at + 2 : at + 4] + bytes([bits]) + data[at + 5 :]


@pytest.mark.parametrize(
    ("marker", "bits", "kind"),
    [
        (0xC0, 12, "12-bit JPEG, not read; convert it to 8 bits"),
        (0xC1, 12, "12-bit JPEG, not read; convert it to 8 bits"),
        (0xC2, 12, "12-bit JPEG, not read; convert it to 8 bits"),
        (0xC3, 16, "lossless JPEG, not read; convert it to a baseline JPEG"),
        (0xC5, 8, "hierarchical JPEG, not read; convert it to a baseline JPEG"),
        (0xCB, 8, "arithmetic-coded JPEG, not read; convert it to a baseline JPEG"),
        (0xF7, 8, "JPEG-LS, not read; convert it to a baseline JPEG"),
    ],
)
def test_variants_of_jpeg_that_are_not_read(marker, bits, kind, photo, encode) -> None:
    plain = encode(photo(37, 53), "JPEG", comment=b"\xff\xc0 of a comment", exif=exif(6))
    for before in (b"", b"\xff\xff\xff", b"\xff\x01"):
        data = jpeg_frame(encode(photo(37, 53), "JPEG"), marker, bits)
        with pytest.raises(CorruptImage, match=f"^{kind}$"):
            decode(data[:2] + plain[2 : plain.index(b"\xff\xdb")] + before + data[2:])


@pytest.mark.parametrize(
    ("start", "kind", "suffix"),
    [
        (b"II*\0\x08\0\0\0", "TIFF", "tiff"),
        (b"MM\0*\0\0\0\x08", "TIFF", "tiff"),
        (b"II+\0\x08\0\0\0", "TIFF", "tiff"),
        (b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ", "JPEG 2000", "jp2"),
        (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000", "jp2"),
        (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "JPEG XL", "jxl"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL", "jxl"),
        (b"8BPS\0\x01", "PSD", "psd"),
    ],
)
def test_other_formats_are_told_by_their_content(start, kind, suffix) -> None:
    with pytest.raises(CorruptImage, match=f"^{kind} photos are not read; .* `magick photo.{suffix} photo.jpg`"):
        decode(start + bytes(99))


def test_a_pointer_in_an_images_place() -> None:
    with pytest.raises(CorruptImage, match="Git LFS in the image's place; fetch the image by `git lfs pull`"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")


# Large pictures.


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "transparent"])
@pytest.mark.parametrize("large", [False, True])
def test_large_pictures_are_the_whole_ones_in_less_memory(mode, large, photo, encode, monkeypatch) -> None:
    """37 x 53 is no multiple of the strips, nor of what sides are divided by."""
    if mode == "I;16":
        data = encode(photo(37, 53)[..., 0].astype(np.uint16) * 257)
    elif mode == "transparent":
        data = encode(Image.fromarray(photo(37, 53)).convert("P"), transparency=bytes(range(250)))
    else:
        data = encode(Image.fromarray(photo(37, 53)).convert(mode))
    whole = decode(data)
    monkeypatch.setattr(decoding, "STRIP", 53 * 5)
    if large:
        monkeypatch.setattr(decoding, "LARGE", 37 * 53 - 1)
        whole = np.asarray(Image.fromarray(whole).reduce(4))
        assert whole.shape == (10, 14, 3)
    assert (decode(data) == whole).all()


@pytest.mark.parametrize("progressive", [False, True])
def test_large_jpegs(progressive, photo, encode, monkeypatch) -> None:
    upright = Image.fromarray(photo(61, 59)).resize((430, 370), Image.Resampling.BICUBIC)
    data = encode(upright, "JPEG", quality=95, progressive=progressive, exif=exif(6))
    monkeypatch.setattr(decoding, "LARGE", 430 * 370 - 1)
    small = decode(data)
    assert small.shape == (108, 93, 3)
    expected = np.rot90(np.asarray(upright.reduce(4)), -1)
    assert np.abs(small.astype(int) - expected).mean() < 3


def test_threads_share_the_memory(photo, encode, monkeypatch) -> None:
    """One that needs more than there is has it to itself; those for which there is room go on side by side."""
    data, inside, most = encode(photo(37, 53)), [], []
    real = decoding._pixels

    def pixels(*arguments):
        inside.append(1)
        most.append(len(inside))
        together.wait()
        inside.pop()
        return real(*arguments)

    monkeypatch.setattr(decoding, "_pixels", pixels)
    for rooms, threads in ((0.5, 1), (1.9, 1), (3.1, 3)):
        monkeypatch.setattr(decoding, "_MEMORY", decoding._Allowance(int(rooms * 37 * 53 * decoding.OTHERS)))
        together = threading.Barrier(threads, timeout=60)
        most.clear()
        with ThreadPoolExecutor(6) as pool:
            assert all((image == photo(37, 53)).all() for image in pool.map(decode, [data] * 6))
        assert max(most) == threads


def test_memory_is_given_back_by_pictures_that_are_corrupt(photo, encode, monkeypatch) -> None:
    monkeypatch.setattr(decoding, "_MEMORY", decoding._Allowance(10**6))
    with pytest.raises(CorruptImage):
        decode(encode(photo(37, 53))[:-99])
    with decoding._MEMORY.take(10**6):
        pass


def test_pixels_are_freed_before_others_take_their_memory(photo, encode, monkeypatch) -> None:
    opened, freed, real = [], [], Image.open

    class Watched(decoding._Allowance):
        @contextlib.contextmanager
        def take(self, amount: int) -> Iterator[None]:
            with super().take(amount):
                yield
            with pytest.raises(ValueError, match="closed image"):
                opened[0].im.size  # noqa: B018
            freed.append(amount)

    monkeypatch.setattr(Image, "open", lambda *args, **options: (opened.append(real(*args, **options)), opened[0])[1])
    monkeypatch.setattr(decoding, "_MEMORY", Watched(10**9))
    assert (decode(encode(photo(37, 53))) == photo(37, 53)).all()
    assert freed == [37 * 53 * decoding.OTHERS]


@pytest.mark.long
def test_the_memory_of_large_pictures(tmp_path, encode) -> None:
    """Six threads with a picture each that takes 81 MB, its 35 MB of pixels included, where 70 MB are allowed."""
    (tmp_path / "large.png").write_bytes(encode(Image.new("RGB", (3400, 3400), (9, 99, 199)), compress_level=1))
    code = f"""
import resource
from concurrent.futures import ThreadPoolExecutor
from deit_jax.data import decode
data = open({str(tmp_path / "large.png")!r}, "rb").read()
decode._MEMORY = decode._Allowance(70 * 10**6)
used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = used()
with ThreadPoolExecutor(6) as pool:
    list(pool.map(lambda _: decode.decode(data)[::500, ::500].sum(), range(8)))
print(used() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) * 1024 < 200e6
