"""What image files say of themselves before a pixel is decoded: which format they are in, and their metadata."""

import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
# The keys of texts in which editors leave the way up, too, and Pillow looks for it.
_ORIENTING = {b"XML:com.adobe.xmp\0", b"Raw profile type exif\0"}
LONGEST = 2**24  # bytes of such a text that are inflated: an editor's history may be some megabytes

# By the brands that an ISO media file (ISO/IEC 14496-12) states: of HEIF (ISO/IEC 23008-12, annex B) and of AVIF. An
# AVIF file states a brand of HEIF's, too, hence the order.
_BRANDS = {
    "AVIF": {b"avif", b"avis"},
    "HEIC": {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"},
}
_BEGINNINGS = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II\xbc\x01": "JPEG XR",
    b"8BPS": "PSD",
}
_SUFFIXES = {"JPEG 2000": "jp2", "JPEG XL": "jxl", "JPEG XR": "jxr"}
# Frames of a JPEG (ISO/IEC 10918-1, table B.1, and 14495-1) but baseline, extended and progressive.
_FRAMES = (
    dict.fromkeys((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), "arithmetic-coded JPEG")
    | dict.fromkeys((0xC5, 0xC6, 0xC7), "hierarchical JPEG")
    | {0xC3: "lossless JPEG", 0xF7: "JPEG-LS"}
)


def unread(data: bytes) -> str:
    """In words, what an image is that is in none of the formats, or in a variant, that are read, and how to convert it.

    "" where the first bytes do not tell.
    """
    if data.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS in the image's place; fetch the image by `git lfs pull`"
    if data.startswith(b"\xff\xd8"):
        return _jpeg_variant(data)
    name = next((name for start, name in _BEGINNINGS.items() if data.startswith(start)), "") or _iso_media(data)
    suffix = _SUFFIXES.get(name, name.lower())
    return name and (
        f"{name} photos are not read; convert them to JPEG: `magick photo.{suffix} photo.jpg` (ImageMagick), or on a "
        f"Mac `sips -s format jpeg photo.{suffix} --out photo.jpg`"
    )


def _iso_media(data: bytes) -> str:
    # A box `ftyp`: its length, its name, the major brand, a version, and the brands that the file is compatible with.
    length = int.from_bytes(data[:4], "big")
    box = data[8 : min(length, 256)] if data[4:8] == b"ftyp" else b""
    stated = {box[i : i + 4] for i in range(0, len(box), 4)}
    return next((name for name, brands in _BRANDS.items() if stated & brands), "")


def _jpeg_variant(data: bytes) -> str:
    """By the header of the frame, whose first byte is the precision of the samples in bits."""
    at = 2
    while at + 4 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _FRAMES:
            return f"{_FRAMES[marker]}, not read; convert it to a baseline JPEG"
        if marker in (0xC0, 0xC1, 0xC2):
            bits = data[at + 4]
            return f"{bits}-bit JPEG, not read; convert it to 8 bits" if bits != 8 else ""
        # Bytes that fill, and markers that stand alone; all others are followed by their segment's length.
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        at += 1 if marker == 0xFF else 2 if alone else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return ""


def without_metadata(data: bytes) -> tuple[bytes, dict[str, str]]:
    """A PNG without profiles, texts, transparency, further frames and what else its colours do not depend on.

    Pillow refuses a file for the size of its metadata, and for damage in it.

    Returns:
        The file, and its texts that may tell which way up the picture is, by their keys as Pillow's `info` has them.
    """
    view, texts, end = memoryview(data), dict[bytes, str](), len(PNG)
    kept = [view[:end]]
    for name, start, end in _chunks(data):
        if name[:1].isupper() or name == b"eXIf":  # of those whose names begin in lower case no pixel depends
            kept.append(view[start:end])
        elif data.startswith(tuple(_ORIENTING - texts.keys()), start + 8):
            key, end_of_key, content = data[start + 8 : end - 4].partition(b"\0")
            texts[key + end_of_key] = _text(name, content)
    kept.append(view[end:])  # of a file that is cut short the last chunk, of which Pillow tells
    return b"".join(kept), {key[:-1].decode("latin-1"): text for key, text in texts.items()}


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the whole chunks of a PNG: length, name, content, checksum."""
    start = len(PNG)
    while (end := start + 12 + int.from_bytes(data[start : start + 4], "big")) <= len(data):
        yield data[start + 4 : start + 8], start, end
        start = end


def _text(chunk: bytes, content: bytes) -> str:
    """What stands behind a text chunk's key, `LONGEST` bytes of it; "" where it cannot be inflated."""
    compressed = chunk == b"zTXt"
    if compressed:
        content = content[1:]  # without the method of compression
    elif chunk == b"iTXt":  # whether it is compressed, and how; its language, the key in this
        compressed, content = content[:1] == b"\1", content[2:].split(b"\0", 2)[-1]
    try:
        return (zlib.decompressobj().decompress(content, LONGEST) if compressed else content).decode("latin-1")
    except zlib.error:
        return ""
