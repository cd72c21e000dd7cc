"""Takes metadata out of image files without touching the stored pixels; reposer.images checks the result.

A file is split into its parts (JPEG segments, PNG and RIFF chunks); the parts that decoding needs are kept
by name, all others go, known or not. Of EXIF only an orientation that turns the picture comes back, alone.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator

_EOI, _SOS = 0xD9, 0xDA
_BARE = (0x01, *range(0xD0, 0xD8))  # markers without a length
_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)  # more bytes of 255 before it are filling
_SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # no stuffed zero, no restart
_ADOBE, _ICC = b"Adobe", b"ICC_PROFILE\0"
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_PNG_KEPT = (
    *(b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"),
    *(b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"cICP", b"iCCP"),
)
_WEBP_KEPT = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L")
_WEBP_PROFILE, _WEBP_ALPHA, _WEBP_EXIF = 0x20, 0x10, 0x08  # flags of VP8X
MAX_PROFILE_BYTES = 1_000_000  # of an ICC profile; those of printing have 0.6 MB, those of screens 4 kB


def _exif(turn: int) -> bytes:
    """A TIFF block that holds the orientation and nothing else."""
    return b"II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, turn, 0, 0)


def _turns(turn: int) -> bool:
    return 2 <= turn <= 8


def _profile(data: bytes) -> bool:
    """Whether this is a whole ICC profile of a sane size; its color tables matter to viewers."""
    size = int.from_bytes(data[:4], "big")
    return data[36:40] == b"acsp" and len(data) <= MAX_PROFILE_BYTES and size <= len(data) <= size + 3


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, bytes) of the segments of a JPEG's first picture, as libjpeg finds them: what stands before a
    marker is skipped. A scan's bytes go with its header. The last one may be cut off.
    """
    place = 2
    while found := _MARKER.search(data, place):
        place, marker = found.start(), data[found.end() - 1]
        if marker == _EOI:
            return
        if marker in _BARE:
            place += 2
            continue
        end = place + 2 + max(2, int.from_bytes(data[place + 2 : place + 4], "big"))
        if marker == _SOS:
            ended = _SCAN_END.search(data, end)
            end = ended.start() if ended else len(data)
        yield marker, data[place:end]
        place = end


def count_scans(data: bytes) -> int:
    """Scans of a JPEG's first picture; those of thumbnails and of pictures behind it do not count."""
    return sum(marker == _SOS for marker, _ in _segments(data))


def _jpeg_profile(segments: list[tuple[int, bytes]]) -> bool:
    """Whether the segments hold one ICC profile, whole and in order."""
    parts = [segment for marker, segment in segments if marker == 0xE2 and segment[4:16] == _ICC]
    numbers = [(part[16], part[17]) for part in parts if len(part) > 18]
    right = numbers == [(number, len(parts)) for number in range(1, len(parts) + 1)]
    return bool(parts) and right and _profile(b"".join(part[18:] for part in parts))


def strip_jpeg(data: bytes, turn: int) -> bytes:
    """The segments of the first picture but APPn and comments; JFIF's header without its thumbnail."""
    segments = list(_segments(data))
    profile = _jpeg_profile(segments)
    kept, head = [], data[:2]
    for marker, segment in segments:
        if marker == 0xE0 and segment[4:9] == b"JFIF\x00" and len(head) == 2 and len(segment) >= 18:
            head += _JFIF[:9] + segment[9:16] + b"\x00\x00"
        elif marker == 0xEE and segment[4:9] == _ADOBE and len(segment) >= 16:
            kept.append(b"\xff\xee\x00\x0e" + segment[4:16])
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE) or (profile and segment[4:16] == _ICC):
            kept.append(segment)
    exif = b"Exif\x00\x00" + _exif(turn)
    block = b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif if _turns(turn) else b""
    return b"".join([head, block, *kept, b"\xff\xd9"])


def _png_profile(body: bytes) -> bytes:
    """An iCCP chunk without the name that an editor gave the profile; empty where it is none."""
    unpacking = zlib.decompressobj()
    _, _, packed = body[:81].partition(b"\0")
    packed = body[len(body[:81]) - len(packed) + 1 :]  # behind the name and the method
    try:
        if not _profile(unpacking.decompress(packed, MAX_PROFILE_BYTES + 1)) or not unpacking.eof:
            return b""
    except zlib.error:
        return b""
    return _png_chunk(b"iCCP", b"ICC Profile\0\0" + packed[: len(packed) - len(unpacking.unused_data)])


def _png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def strip_png(data: bytes, turn: int) -> bytes:
    """The chunks of _PNG_KEPT up to IEND."""
    kept, place = [data[:8]], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, end = data[place + 4 : place + 8], place + 12 + length
        if kind in _PNG_KEPT:
            if kind == b"IDAT" and _turns(turn):
                kept.append(_png_chunk(b"eXIf", _exif(turn)))
                turn = 1
            chunk = data[place:end]
            kept.append(_png_profile(chunk[8:-4]) if kind == b"iCCP" else chunk)
        place = end
        if kind == b"IEND":
            break
    return b"".join(kept)


def strip_webp(data: bytes, turn: int) -> bytes:
    """The chunks of _WEBP_KEPT; VP8X's flags say what is left."""
    kept: list[bytes] = []
    place = 12
    end_of_file = min(len(data), 8 + struct.unpack("<I", data[4:8])[0])
    extended = False
    while place + 8 <= end_of_file:
        (length,) = struct.unpack("<I", data[place + 4 : place + 8])
        kind, end = data[place : place + 4], place + 8 + length + length % 2
        chunk = data[place:end]
        if kind == b"VP8X":
            extended = True
            flags = chunk[8] & _WEBP_ALPHA | (_WEBP_EXIF if _turns(turn) else 0)
            chunk = chunk[:8] + bytes((flags, 0, 0, 0)) + chunk[12:18]
        if kind == b"ICCP" and len(kept) == 1 and extended and _profile(chunk[8 : 8 + length]):
            kept = [kept[0][:8] + bytes((kept[0][8] | _WEBP_PROFILE,)) + kept[0][9:], chunk]
        if kind in _WEBP_KEPT:
            kept.append(chunk)
        place = end
    if extended and _turns(turn):
        body = _exif(turn)
        kept.append(b"EXIF" + struct.pack("<I", len(body)) + body)
    content = b"WEBP" + b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def strip_bmp(data: bytes, turn: int) -> bytes:
    """Up to the last pixel: a profile or other bytes may follow it."""
    (start,), (header,) = struct.unpack("<I", data[10:14]), struct.unpack("<I", data[14:18])
    if header < 40:
        return data
    width, height, _, bits, compression, stored = struct.unpack("<iiHHII", data[18:38])
    plain = -(-abs(width) * bits // 32) * 4 * abs(height)
    end = start + (stored if compression in (1, 2) and stored else plain)
    linked = header >= 124 and data[70:74] in (b"DEBM", b"KNIL")  # a profile behind the pixels, or a path
    if end >= len(data) and not linked:
        return data
    head = data[:2] + struct.pack("<I", min(end, len(data))) + data[6:70]
    if linked:
        return head + b" niW" + data[74:126] + bytes(8) + data[134:end]  # the system's own colors
    return head + data[70:end]


STRIPPERS: dict[str, Callable[[bytes, int], bytes]] = {
    "JPEG": strip_jpeg,
    "PNG": strip_png,
    "WEBP": strip_webp,
    "BMP": strip_bmp,
}
