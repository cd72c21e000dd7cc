"""Makes, by code, the corpus of bad and odd image files, each with its outcome (docs/reference/rules.md)."""

from __future__ import annotations

import functools
import io
import os
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 24, 40


@dataclass(frozen=True)
class Case:
    """One file: ``refused`` is the rule that refuses it, else ``rules`` are those that accept it."""

    label: str
    suffix: str
    make: Callable[[Path], object]
    refused: str | None = None
    rules: tuple[str, ...] = ()


def pixels(seed: int = 0, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A smooth (H, W, 3) uint8 picture with some noise; no two corners are alike."""
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 / max(width - 1, 1), y * 255 / max(height - 1, 1), (x + y) * 2 % 256], axis=-1)
    noise = np.random.default_rng(seed).integers(0, 20, (height, width, 3))
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def picture(mode: str = "RGB", **size: int) -> Image.Image:
    return Image.fromarray(pixels(**size)).convert(mode)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def jpeg(**options: object) -> bytes:
    return encoded(picture(), "JPEG", quality=90, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int = 8, color: int = 2, rows: bytes | None = None, extra: bytes = b""
) -> bytes:
    """A PNG written by hand; ``rows`` are the raw bytes with their filter bytes, None leaves them out."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    data = b"" if rows is None else chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + header + extra + data + chunk(b"IEND", b"")


def png_pixels(values: np.ndarray, color: int, extra: bytes = b"") -> bytes:
    """A PNG of (H, W) or (H, W, C) uint8 or uint16 values."""
    height, width = values.shape[:2]
    big = values.astype(">u2" if values.dtype == np.uint16 else "u1").reshape(height, -1)
    rows = b"".join(b"\0" + row.tobytes() for row in big)
    return png(width, height, 16 if values.dtype == np.uint16 else 8, color, rows, extra)


def bmp(width: int, height: int, bits: int = 24, data: bytes | None = None) -> bytes:
    """A BMP written by hand, rows from the bottom up (from the top down where height is negative)."""
    row = (width * bits // 8 + 3) // 4 * 4
    body = bytes(row * abs(height)) if data is None else data
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, 0, len(body), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + head + body


def webp_header(width: int, height: int) -> bytes:
    """An extended WebP that promises a canvas and holds no picture."""
    canvas = bytes([0, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas
    return b"RIFF" + struct.pack("<I", len(body)) + body


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """(marker, whole segment) of a JPEG's header; the last is everything from the start of the scan."""
    found, place = [], 2
    while data[place + 1] != 0xDA:
        length = 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        found.append((data[place + 1], data[place : place + length]))
        place += length
    return [*found, (0xDA, data[place:])]


def joined(parts: list[tuple[int, bytes]]) -> bytes:
    return b"\xff\xd8" + b"".join(part for _, part in parts)


def without(data: bytes, marker: int) -> bytes:
    return joined([part for part in segments(data) if part[0] != marker])


def exif(orientation: int | str) -> bytes:
    record = Image.Exif()
    record[0x0112] = orientation
    return record.tobytes()


def _cut_profile() -> bytes:
    """A color profile's segment that ends before its number, which Pillow stumbles over."""
    plain = jpeg()
    return plain[:2] + b"\xff\xe2\0\x0eICC_PROFILE\0" + plain[2:]


def _first(segment: bytes) -> bytes:
    """A JPEG that begins with this segment."""
    return jpeg()[:2] + segment + without(jpeg(), 0xE0)[2:]


def _before_pixels(extra: bytes) -> bytes:
    """A PNG with this behind its header."""
    plain = encoded(picture(), "PNG")
    return plain[:33] + extra + plain[33:]


def _wrong_sum(kind: bytes, data: bytes) -> bytes:
    return _before_pixels(chunk(kind, data)[:-4] + bytes(4))


def giant_jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose header promises another size."""
    parts = [
        (marker, part[:5] + struct.pack(">HH", height, width) + part[9:] if marker == 0xC0 else part)
        for marker, part in segments(jpeg())
    ]
    return joined(parts)


def many_scans(number: int, side: int = 64) -> bytes:
    """A progressive JPEG whose last scan stands there again and again."""
    data = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * (number - data.count(b"\xff\xda") + 1) + data[-2:]


def _writer(data: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    made = functools.cache(data) if callable(data) else lambda: data
    return lambda path: path.write_bytes(made())


def _two(file_format: str, mode: str = "RGB") -> bytes:
    """Two different pictures in one file."""
    other = Image.fromarray(pixels(1)).convert(mode)
    return encoded(picture(mode), file_format, save_all=True, append_images=[other])


def _film(frames: int) -> bytes:
    others = [Image.fromarray(pixels(i)) for i in range(frames)]
    return encoded(picture(), "PNG", save_all=True, append_images=others)


def _png_with(kind: bytes) -> bytes:
    """A good PNG with a chunk that unpacks to 100 MB."""
    extra = chunk(kind, b"a\0\0" + zlib.compress(bytes(10**8), 9))
    return png(16, 16, rows=bytes(49 * 16), extra=extra)


def _color_alpha() -> Image.Image:
    return Image.merge("RGBA", [*picture().split(), picture("L")])


def _deep(color: int) -> bytes:
    values = pixels().astype(np.uint16) * 257
    return png_pixels(values if color == 2 else values[..., 0], color)


def _file(label: str, suffix: str, data: bytes | Callable[[], bytes], refused: str) -> Case:
    return Case(label, suffix, _writer(data), refused)


def _used(label: str, suffix: str, data: bytes | Callable[[], bytes], *rules: str) -> Case:
    return Case(label, suffix, _writer(data), None, rules)


def _socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the address of a socket is a short path
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _link_outside(path: Path) -> None:
    target = path.parents[2] / "outside.jpg"
    target.write_bytes(jpeg())
    path.symlink_to(target)


def _link_inside(path: Path) -> None:
    target = path.parents[1] / f"target_of_{path.name}"
    target.write_bytes(jpeg())
    path.symlink_to(target)


def _sparse(path: Path) -> None:
    path.write_bytes(jpeg())
    os.truncate(path, 50_000_001)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


SPECIAL_FILES = [
    Case("fifo", ".jpg", os.mkfifo, "not-a-file"),
    Case("folder", ".jpg", Path.mkdir, "not-a-file"),
    Case("socket", ".jpg", _socket, "not-a-file"),
    Case("link to a device", ".jpg", lambda path: path.symlink_to("/dev/zero"), "link-outside"),
    Case("link to itself", ".jpg", _loop, "link-loop"),
    Case("link to nothing", ".jpg", lambda path: path.symlink_to("nothing.jpg"), "missing"),
    Case("link outside the root", ".jpg", _link_outside, "link-outside"),
    Case("link inside the root", ".jpg", _link_inside),
    Case("larger than 50 MB", ".jpg", _sparse, "too-large"),
]

OTHER_FORMATS = [
    _file("empty", ".jpg", b"", "empty"),
    _file("one byte", ".jpg", b"\xff", "format"),
    _file("text", ".jpg", b"this is no picture\n" * 20, "format"),
    _file("HTML page", ".jpg", b"<!DOCTYPE html><html><body>404 not found</body></html>", "format"),
    _file("SVG", ".jpg", b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="128"/>', "format"),
    _file("NULs before a JPEG", ".jpg", lambda: bytes(16) + jpeg(), "format"),
    _file("all NUL", ".png", bytes(4096), "format"),
    _file("GIF", ".jpg", lambda: encoded(picture("P"), "GIF"), "format"),
    _file("animated GIF", ".jpg", lambda: _two("GIF", "P"), "format"),
    _file(
        "GIF bomb", ".jpg", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(64), "format"
    ),
    _file("TIFF", ".jpg", lambda: encoded(picture(), "TIFF"), "format"),
    _file("float TIFF", ".jpg", lambda: encoded(picture("F"), "TIFF"), "format"),
    _file("ICO", ".png", lambda: encoded(picture(), "ICO"), "format"),
    _file("PPM", ".jpg", lambda: encoded(picture(), "PPM"), "format"),
    _file("EPS", ".jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 128\nshowpage\n", "format"),
    _file("PDF", ".jpg", lambda: encoded(picture(), "PDF"), "format"),
    _file("JPEG 2000", ".jpg", lambda: encoded(picture(), "JPEG2000"), "format"),
    _file(
        "Radiance HDR", ".jpg", b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 8\n" + bytes(256), "format"
    ),
    _file("FITS", ".jpg", b"SIMPLE  =                    T".ljust(2880), "format"),
    _file(
        "PSD", ".jpg", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 16, 16, 8, 3) + bytes(64), "format"
    ),
    _file("pickle", ".jpg", b"\x80\x04cos\nsystem\n(S'true'\ntR.", "format"),
    _file("zip", ".png", b"PK\x03\x04" + bytes(60), "format"),
]

DAMAGED = [
    _file("JPEG cut in the header", ".jpg", lambda: jpeg()[:30], "truncated"),
    _file("JPEG cut in the tables", ".jpg", lambda: jpeg()[:300], "truncated"),
    _file("JPEG cut in half", ".jpg", lambda: jpeg()[: len(jpeg()) // 2], "truncated"),
    _file("JPEG without its last bytes", ".jpg", lambda: jpeg()[:-20], "truncated"),
    _file("progressive JPEG cut in half", ".jpg", lambda: jpeg(progressive=True)[:700], "truncated"),
    _file("JPEG without a frame header", ".jpg", lambda: without(jpeg(), 0xC0), "format"),
    _file("JPEG without quantization tables", ".jpg", lambda: without(jpeg(), 0xDB), "damaged"),
    _used("JPEG with the standard Huffman tables left out", ".jpg", lambda: without(jpeg(), 0xC4)),
    _file("PNG cut in the header", ".png", lambda: encoded(picture(), "PNG")[:20], "truncated"),
    _file("PNG cut in half", ".png", lambda: encoded(picture(), "PNG")[:1000], "truncated"),
    _file(
        "PNG with a wrong checksum",
        ".png",
        lambda: png(8, 8, rows=bytes(8 * 25))[:-25] + bytes(25),
        "damaged",
    ),
    _file("PNG without pixels", ".png", lambda: png(16, 16), "damaged"),
    _file("PNG with too few rows", ".png", lambda: png(16, 16, rows=bytes(49 * 4)), "truncated"),
    _file(
        "PNG with a broken stream", ".png", lambda: png(16, 16, extra=chunk(b"IDAT", b"x" * 40)), "damaged"
    ),
    _file("WebP cut in half", ".webp", lambda: encoded(picture(), "WEBP")[:150], "damaged"),
    _file("WebP header alone", ".webp", lambda: encoded(picture(), "WEBP")[:12], "format"),
    _file("BMP cut in half", ".bmp", lambda: bmp(16, 16)[:400], "truncated"),
    _file("BMP header alone", ".bmp", lambda: bmp(16, 16)[:54], "truncated"),
    _file("BMP with 7 bits a pixel", ".bmp", lambda: bmp(16, 16, bits=7, data=bytes(512)), "damaged"),
]

SIZES = [
    _file("0x0 PNG", ".png", lambda: png(0, 0, rows=b""), "format"),
    _file("0x0 BMP", ".bmp", lambda: bmp(0, 0), "format"),
    _file("1x1", ".png", lambda: encoded(picture(width=1, height=1), "PNG"), "too-small"),
    _file("65000x1", ".png", lambda: encoded(Image.new("RGB", (65000, 1)), "PNG"), "too-small"),
    _file("3x128", ".jpg", lambda: encoded(picture(width=3, height=128), "JPEG"), "too-small"),
    _used("4x4", ".png", lambda: encoded(picture(width=4, height=4), "PNG")),
]

BOMBS = [
    _file(
        "12,000 x 12,000 bits",
        ".png",
        lambda: png(12000, 12000, 1, 0, bytes(1501 * 12000)),
        "too-many-pixels",
    ),
    _file("30,000 x 30,000 PNG", ".png", lambda: png(30000, 30000, rows=bytes(1000)), "too-many-pixels"),
    _file("2^31 x 2^31 PNG", ".png", lambda: png(2**31 - 1, 2**31 - 1, rows=bytes(1000)), "too-many-pixels"),
    _file(
        "5001 x 5000, just too large", ".png", lambda: png(5001, 5000, 16, 0, bytes(100)), "too-many-pixels"
    ),
    _file("65,500 x 65,500 JPEG", ".jpg", lambda: giant_jpeg(65500, 65500), "too-many-pixels"),
    _file("6000 x 6000 JPEG", ".jpg", lambda: giant_jpeg(6000, 6000), "too-many-pixels"),
    _file("JPEG of 300 scans", ".jpg", lambda: many_scans(300), "too-many-scans"),
    _file("JPEG of 20 scans of 25 megapixels", ".jpg", lambda: many_scans(20, 5000), "too-many-scans"),
    _file("40,000 x 40,000 BMP", ".bmp", lambda: bmp(40000, 40000, data=bytes(64)), "too-many-pixels"),
    _file("BMP of negative height", ".bmp", lambda: bmp(40000, -40000, data=bytes(64)), "too-many-pixels"),
    _file("16,384 x 16,384 WebP", ".webp", lambda: webp_header(16384, 16384), "too-many-pixels"),
    _file(
        "WebP of one color",
        ".webp",
        lambda: encoded(Image.new("RGB", (8000, 8000)), "WEBP", lossless=True, method=0),
        "too-many-pixels",
    ),
    _file("PNG text of 100 MB", ".png", lambda: _png_with(b"zTXt"), "damaged"),
    _file("PNG profile of 100 MB", ".png", lambda: _png_with(b"iCCP"), "damaged"),
    _file("animated PNG of 60 frames", ".png", lambda: _film(60), "animated"),
]

MODES = [
    _used("plain JPEG", ".jpg", jpeg),
    _used("upper-case extension", ".JPG", jpeg),
    _used("two extensions", ".jpg.jpg", jpeg),
    _used("progressive JPEG", ".jpg", lambda: jpeg(progressive=True)),
    _used("JPEG with bytes behind it", ".jpg", lambda: jpeg() + b"behind" * 100),
    _used("junk color profile", ".jpg", lambda: jpeg(icc_profile=b"junk" * 200)),
    _used("plain WebP", ".webp", lambda: encoded(picture(), "WEBP")),
    _used("plain BMP", ".bmp", lambda: encoded(picture(), "BMP")),
    _used("BMP from the top down", ".bmp", lambda: bmp(16, -16)),
    _used("gray JPEG", ".jpg", lambda: encoded(picture("L"), "JPEG"), "gray"),
    _used("gray PNG with alpha", ".png", lambda: encoded(picture("LA"), "PNG"), "gray", "alpha-on-black"),
    _used("RGBA PNG", ".png", lambda: encoded(picture("RGBA"), "PNG"), "alpha-on-black"),
    _used("RGBA WebP", ".webp", lambda: encoded(_color_alpha(), "WEBP"), "alpha-on-black"),
    _used("palette PNG", ".png", lambda: encoded(picture("P"), "PNG"), "palette"),
    _used(
        "palette with a clear color",
        ".png",
        lambda: encoded(picture("P"), "PNG", transparency=3),
        "palette",
        "alpha-on-black",
    ),
    _used(
        "palette with alpha values",
        ".png",
        lambda: encoded(picture("P"), "PNG", transparency=bytes(range(256))),
        "palette",
        "alpha-on-black",
    ),
    _used(
        "RGB with a clear color",
        ".png",
        lambda: encoded(picture(), "PNG", transparency=(0, 0, 0)),
        "alpha-on-black",
    ),
    _used("1-bit PNG", ".png", lambda: encoded(picture("1"), "PNG"), "bilevel"),
    _used("1-bit BMP", ".bmp", lambda: encoded(picture("1"), "BMP"), "bilevel"),
    _used("palette BMP", ".bmp", lambda: encoded(picture("P"), "BMP"), "palette"),
    _used("16-bit gray PNG", ".png", lambda: _deep(0), "16-bit", "gray"),
    _used("16-bit RGB PNG", ".png", lambda: _deep(2), "16-bit"),
    _used("CMYK JPEG of Adobe's kind", ".jpg", lambda: encoded(picture("CMYK"), "JPEG"), "cmyk"),
    _file(
        "CMYK JPEG without a marker",
        ".jpg",
        lambda: without(encoded(picture("CMYK"), "JPEG"), 0xEE),
        "cmyk-unmarked",
    ),
    _used("two pictures in a JPEG", ".jpg", lambda: _two("MPO"), "first-picture"),
    _file("animated WebP", ".webp", lambda: _two("WEBP"), "animated"),
    _used("PNG named .jpg", ".jpg", lambda: encoded(picture(), "PNG"), "wrong-extension"),
    _used("BMP named .jpg", ".jpg", lambda: encoded(picture(), "BMP"), "wrong-extension"),
    _used("WebP named .png", ".png", lambda: encoded(picture(), "WEBP"), "wrong-extension"),
    _used("JPEG named .png", ".png", jpeg, "wrong-extension"),
    _used("EXIF orientation 1", ".jpg", lambda: jpeg(exif=exif(1))),
    *(
        _used(f"EXIF orientation {i}", ".jpg", lambda i=i: jpeg(exif=exif(i)), "exif-rotated")
        for i in range(2, 9)
    ),
    _used("EXIF that is noise", ".jpg", lambda: jpeg(exif=b"Exif\0\0" + bytes(range(60))), "exif-damaged"),
    _used("EXIF cut short", ".jpg", lambda: jpeg(exif=exif(6)[:16]), "exif-damaged"),
    _used("profile cut short", ".jpg", _cut_profile, "metadata-damaged"),
    _used("JFIF header cut short", ".jpg", lambda: _first(b"\xff\xe0\0\7JFIF\0"), "metadata-damaged"),
    _used("Adobe header cut short", ".jpg", lambda: _first(b"\xff\xee\0\10Adobe\0"), "metadata-damaged"),
    _used("PNG text with a wrong checksum", ".png", lambda: _wrong_sum(b"tEXt", b"a\0b"), "metadata-damaged"),
    _used(
        "PNG with EXIF and a wrong checksum",
        ".png",
        lambda: _wrong_sum(b"eXIf", exif(6)[6:]),
        "metadata-damaged",
        "exif-rotated",
    ),
    _used(
        "PNG resolution cut short", ".png", lambda: _before_pixels(chunk(b"pHYs", b"\0")), "metadata-damaged"
    ),
    _used("PNG with JPEG's EXIF", ".png", lambda: _before_pixels(chunk(b"eXIf", exif(6))), "exif-rotated"),
    _file(
        "PNG whose transparency has a wrong checksum", ".png", lambda: _wrong_sum(b"tRNS", bytes(6)), "format"
    ),
    _used("EXIF orientation 99", ".jpg", lambda: jpeg(exif=exif(99)), "exif-unknown"),
    _used("EXIF orientation 0", ".jpg", lambda: jpeg(exif=exif(0)), "exif-unknown"),
    _used("PNG with EXIF", ".png", lambda: encoded(picture(), "PNG", exif=exif(6)), "exif-rotated"),
    _used("WebP with EXIF", ".webp", lambda: encoded(picture(), "WEBP", exif=exif(8)), "exif-rotated"),
]

CORPUS = [*SPECIAL_FILES, *OTHER_FORMATS, *DAMAGED, *SIZES, *BOMBS, *MODES]


def file_name(index: int, case: Case) -> str:
    """A Market-1501 name for the case with this place in the corpus."""
    return f"{index + 1:04d}_c1s1_{index + 1:06d}_00{case.suffix}"


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """The file after one to four random faults: flipped bits, bytes set, cut, inserted, doubled or zeroed."""
    faulty = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(0, max(len(faulty), 1)))
        length = int(rng.integers(1, 33))
        kind = int(rng.integers(0, 6))
        if kind == 0 and faulty:
            faulty[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1 and faulty:
            faulty[place] = int(rng.choice([0, 0xFF, 0x7F, 0x80]))
        elif kind == 2:
            del faulty[place : place + (length if rng.random() < 0.8 else len(faulty))]
        elif kind == 3:
            faulty[place:place] = rng.bytes(length)
        elif kind == 4:
            faulty[place:place] = faulty[place : place + length]
        else:
            faulty[place : place + length] = bytes(min(length, len(faulty) - place))
    return bytes(faulty)


def seeds() -> list[tuple[str, bytes]]:
    """(name, bytes) of good files of every kind that is accepted, for mutation."""
    small = picture(width=16, height=24)
    return [
        ("a.jpg", encoded(small, "JPEG", exif=exif(6))),
        ("b.jpg", encoded(small, "JPEG", progressive=True)),
        ("c.jpg", encoded(small.convert("CMYK"), "JPEG")),
        ("d.png", encoded(small, "PNG", exif=exif(3))),
        ("e.png", encoded(small.convert("P"), "PNG", transparency=3)),
        ("f.webp", encoded(small, "WEBP", exif=exif(6))),
        ("g.webp", encoded(small, "WEBP", lossless=True)),
        ("h.bmp", encoded(small.convert("P"), "BMP")),
        ("i.png", png_pixels(pixels(width=16, height=24).astype(np.uint16) * 200, 2)),
        ("j.jpg", encoded(small, "MPO", save_all=True, append_images=[small])),
    ]
