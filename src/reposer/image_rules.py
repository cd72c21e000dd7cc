"""Which image files are used, and the named rules by which they become upright 8-bit RGB.

A file is refused (ImageError, with the id of the rule), or accepted by rules that are listed (ACCEPTED);
docs/reference/rules.md holds both tables. Pillow opens four formats and nothing else (no Ghostscript, no
exotic parser); bytes and pixels are counted before a pixel is decoded. Decoding goes through reposer.images.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from reposer.image_metadata import count_scans
from reposer.storage.paths import RefusedFileError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
MAX_PIXELS = 25_000_000
MAX_SCANS = 64  # of a JPEG; libjpeg's own progressive files have 10
_MAX_SCANNED = 16 * MAX_PIXELS  # scans times pixels: what bounds the time of decoding
MIN_SIDE = 4  # pixels; nothing smaller shows a person

# Rules by which an image is used although it is not plain RGB; every use is listed.
ACCEPTED = {
    "wrong-extension": "the content has another format than the file name says; the content counts",
    "first-picture": "a JPEG that holds several pictures (MPO); the first is used",
    "gray": "gray values are repeated in red, green and blue",
    "bilevel": "one bit per pixel becomes black and white",
    "palette": "palette indices become their colors",
    "cmyk": "CMYK with Adobe's marker becomes RGB without a color profile",
    "16-bit": "16 bits per channel become 8",
    "alpha-on-black": "transparent pixels are laid on black",
    "exif-rotated": "turned upright as EXIF says",
    "exif-unknown": "EXIF gives an orientation that does not exist; it is ignored",
    "metadata-damaged": "a broken profile, text or maker's part is ignored; the pixels are whole",
    "exif-damaged": "the EXIF data do not tell the orientation; the picture is used as it is stored",
}

_ORIENTATION_TAG = 0x0112
_STRIPPED = "reposer-stripped"  # in an image's info
_WHOLE = {1: "B", 3: "H", 4: "I"}  # TIFF's whole numbers: BYTE, SHORT, LONG
_TURN = Image.Transpose
_TURNS = {
    **{2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE},
    **{6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90},
}
_SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
_BMP_HEADERS = tuple(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))
_HEIC = (b"hei", b"hev", b"mif", b"msf")
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_HEADERS = {0xE0: 18, 0xEE: 16}  # bytes of JFIF's and Adobe's segments, at least
_PNG_PICTURE = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # chunks beside the critical ones
_PNG_PACKED = (b"zTXt", b"iTXt", b"iCCP")
_METADATA = r"(?is).*(EXIF|malformed MPO|TIFF|tag data|metadata|file read)"  # of Pillow's warnings
_CHUNK = 1 << 20  # bytes
_WARNINGS = threading.Lock()  # the warning filters belong to the whole process


class ImageError(RefusedFileError):
    """An image file that is refused; ``rule`` is one of the ids in the table of docs/reference/rules.md."""


def open_image(data: bytes, name: str) -> Image.Image:
    """The image with its header read and checked, no pixel decoded.

    Raises:
        ImageError: rules ``empty``, ``format``, ``too-many-pixels``, ``too-small``, ``animated``,
            ``truncated``, ``damaged``, ``too-many-scans``.
    """
    if not data:
        raise ImageError(name, "empty", "an empty file", "get the file again")
    try:
        image = _opened(data)
    except UnidentifiedImageError as error:
        advice = "convert it to JPEG, PNG, WebP or BMP, or get it again"
        raise ImageError(name, "format", "no readable JPEG, PNG, WebP or BMP", advice) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(name) from error
    except Exception as error:  # whatever Pillow's parsers raise on hostile bytes
        raise _damaged(name, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(name)
    scans = data.count(b"\xff\xda") if file_format(image) == "JPEG" else 0  # each goes over all the pixels
    if _many(scans, image) and _many(scans := count_scans(data), image):  # the first counts thumbnails' too
        problem = f"{scans} scans of {image.width}x{image.height} pixels: decoding could take minutes"
        raise ImageError(name, "too-many-scans", problem, "save it again as a plain JPEG")
    if min(image.size) < MIN_SIDE:
        problem = f"{image.width}x{image.height} pixels, each side must have at least {MIN_SIDE}"
        raise ImageError(name, "too-small", problem, "remove it")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(name, "animated", "holds several frames", "store the wanted frame as one image")
    return image


def _opened(data: bytes) -> Image.Image:
    """What Pillow makes of the file; once more without its metadata where these are what it stumbles over."""
    try:
        with _strict_warnings():
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise
    except Exception:  # whatever Pillow's parsers raise on hostile bytes
        lean, exif = _without_metadata(data)
        if len(lean) == len(data):
            raise
        with _strict_warnings():
            image = Image.open(io.BytesIO(lean), formats=FORMATS)
        image.info |= {"exif": exif, _STRIPPED: True}
        return image


def _without_metadata(data: bytes) -> tuple[bytes, bytes]:
    """What the pixels need of a JPEG or PNG, and its EXIF data; any other file as it is.

    A JPEG loses APP1 to APP13, APP15, comments, and headers that are cut off, which libjpeg skips too.
    """
    kept, exif, place = [data[:2]], b"", 2
    if sniff(data[:32]) == "PNG":
        return _lean_png(data)
    if sniff(data[:32]) == "JPEG":
        while data[place : place + 1] == b"\xff" and data[place + 1] not in (0xDA, 0xD9, 0xFF):
            end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
            segment, marker = data[place:end], data[place + 1]
            if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
                exif = exif or segment[4:]
            if marker not in (*range(0xE1, 0xEE), 0xEF, 0xFE) and len(segment) >= _HEADERS.get(marker, 0):
                kept.append(segment)
            place = end
            if place + 2 > len(data):
                break
    return b"".join([*kept, data[place:]]), exif


def _lean_png(data: bytes) -> tuple[bytes, bytes]:
    """A PNG without chunks that no pixel needs, and its EXIF data.

    Whole packed texts and profiles stay, so that one which unpacks to absurd size is refused.
    """
    kept, exif, place = [data[:8]], b"", 8
    while place + 12 <= len(data):
        kind, end = data[place + 4 : place + 8], place + 12 + int.from_bytes(data[place : place + 4], "big")
        whole = zlib.crc32(data[place + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
        if kind == b"eXIf":
            exif = data[place + 8 : end - 4]
        if not kind[0] & 0x20 or kind in _PNG_PICTURE or (whole and kind in _PNG_PACKED):
            kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]]), exif


def load(image: Image.Image, data: bytes, name: str) -> None:
    """Decode the pixels.

    Args:
        data: the file that ``image`` was opened from.

    Raises:
        ImageError: rule ``truncated`` or ``damaged``.
    """
    try:
        image.load()
        if image.format == "PNG" and not _all_rows(data):  # Pillow leaves missing rows black without a word
            raise ValueError("truncated: the compressed data end before the last row")
    except Exception as error:  # whatever Pillow's decoders raise on hostile bytes
        raise _damaged(name, error) from error


def upright_rgb(image: Image.Image, data: bytes, name: str) -> tuple[Image.Image, list[str]]:
    """A loaded image as upright RGB, and the ids of the rules in ACCEPTED that were applied.

    Args:
        data: the file that ``image`` was opened from.

    Raises:
        ImageError: rules ``cmyk-unmarked``, ``color-mode``.
    """
    found = file_format(image)
    rules = [] if _SUFFIXES.get(Path(name).suffix.lower()) == found else ["wrong-extension"]
    if image.format == "MPO":
        rules.append("first-picture")
    if found == "PNG" and data[24] == 16:  # IHDR's bit depth; of 16-bit RGB Pillow itself keeps the high byte
        rules.append("16-bit")
    if _STRIPPED in image.info:
        rules.append("metadata-damaged")
    rgb = _to_rgb(image, name, rules)
    return _upright(image, rgb, name, rules), rules


def sniff(head: bytes) -> str | None:
    """The image format that a file's first 32 bytes announce; None where they announce no image.

    One of FORMATS, or the name of a format that is refused (GIF, TIFF, HEIC, AVIF, JPEG 2000).
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] == b"BM" and head[14:18] in _BMP_HEADERS:  # two letters alone begin many a text
        return "BMP"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if head[:4] == b"GIF8":
        return "GIF"
    if head[4:8] == b"ftyp":
        return {b"avif": "AVIF", b"avis": "AVIF"}.get(head[8:12], "HEIC" if head[8:11] in _HEIC else None)
    return "JPEG 2000" if head.startswith(b"\0\0\0\x0cjP  \r\n\x87\n") else None


def file_format(image: Image.Image) -> str:
    """One of FORMATS."""
    return "JPEG" if image.format == "MPO" else str(image.format)  # MPO: several JPEGs in one file


def _all_rows(png: bytes) -> bool:
    """Whether the compressed data of a PNG, which Pillow has opened, hold all the bytes of its rows."""
    width, height, depth, color = struct.unpack(">IIBB", png[16:26])
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    grids = _ADAM7 if png[28] else ((0, 0, 1, 1),)  # first column and row, steps
    wanted = 0
    for column, row, across, down in grids:
        columns, rows = -(-(width - column) // across), -(-(height - row) // down)
        wanted += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    stream, found, place = zlib.decompressobj(), 0, 8
    while found < wanted and place + 12 <= len(png):
        length = int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] == b"IDAT":
            rest = png[place + 8 : place + 8 + length]
            while rest and not stream.eof and found < wanted:
                found += len(stream.decompress(rest, _CHUNK))
                rest = stream.unconsumed_tail
        place += 12 + length
    # flush would unpack all that is left: only where nothing is
    return found >= wanted or found + len(stream.flush()) >= wanted


def _to_rgb(image: Image.Image, name: str, rules: list[str]) -> Image.Image:
    mode = image.mode
    if mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.uint32)
        rules.append("gray")
        return Image.fromarray(((gray + 128) // 257).astype(np.uint8)).convert("RGB")
    if mode == "CMYK":
        if "adobe" not in image.info:  # Pillow takes every CMYK JPEG for Adobe's inverted kind
            advice = "convert it to RGB in the program that made it"
            raise ImageError(name, "cmyk-unmarked", "CMYK without Adobe's marker, perhaps inverted", advice)
        rules.append("cmyk")
        return image.convert("RGB")
    if mode not in ("RGB", "RGBA", "L", "LA", "P", "PA", "1"):
        raise ImageError(name, "color-mode", f"pixels of type {mode}", "convert it to 8-bit RGB")
    listed = {"L": "gray", "LA": "gray", "1": "bilevel", "P": "palette", "PA": "palette"}
    if mode in listed:
        rules.append(listed[mode])
    if mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        rules.append("alpha-on-black")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _many(scans: int, image: Image.Image) -> bool:
    return scans > MAX_SCANS or scans * image.width * image.height > _MAX_SCANNED


def exif_orientation(image: Image.Image) -> int:
    """The number that EXIF gives, 1 where it gives none (upright; 2 to 8 are turns, others do not exist).

    Raises:
        ValueError: the EXIF data do not tell it.
    """
    return _orientation(image.info.get("exif", b""))


def _upright(image: Image.Image, rgb: Image.Image, name: str, rules: list[str]) -> Image.Image:
    try:
        orientation = exif_orientation(image)
    except ValueError:  # the pixels are whole: metadata never costs a picture
        rules.append("exif-damaged")
        return rgb
    if orientation in _TURNS:
        rules.append("exif-rotated")
        return rgb.transpose(_TURNS[orientation])
    if orientation != 1:
        rules.append("exif-unknown")
    return rgb


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF data, 1 where there is none; nothing else of them is looked at.

    The first directory of a TIFF structure (TIFF 6.0, section 2): count, then entries of 12 bytes with tag,
    type, count and value. Maker notes, positions, thumbnails and further directories may be broken.

    Raises:
        ValueError: the data end before the first directory does, or the entry is no number.
    """
    data = exif.removeprefix(b"Exif\0\0").removeprefix(b"Exif\0\0")  # some write JPEG's mark into a PNG too
    if not data:
        return 1
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        raise ValueError("no TIFF structure")
    try:
        (place,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, place)
        for entry in range(place + 2, place + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
            if tag == _ORIENTATION_TAG:
                if number != 1 or kind not in _WHOLE:
                    raise ValueError("the orientation is no number")
                return int(struct.unpack_from(order + _WHOLE[kind], data, entry + 8)[0])
    except struct.error as error:
        raise ValueError("the first directory is cut off") from error
    return 1


@contextmanager
def _strict_warnings() -> Iterator[None]:
    """Pillow's warnings (bomb, malformed APNG) as errors; those of metadata cost no picture."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=_METADATA)
        yield


def _too_many_pixels(name: str) -> ImageError:
    return ImageError(name, "too-many-pixels", f"more than {MAX_PIXELS:,} pixels", "make it smaller")


def _damaged(name: str, error: Exception) -> ImageError:
    rule = "truncated" if "truncated" in str(error).lower() else "damaged"
    return ImageError(name, rule, f"{rule} image data", "get the file again")
