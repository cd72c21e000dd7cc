"""Takes metadata out of image files without touching the stored pixels; reposer.images checks the result.

A file is split into its parts (JPEG segments, PNG and RIFF chunks); the parts that decoding needs are kept
by name, all others go, known or not. Of EXIF only an orientation that turns the picture comes back, alone.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_ADOBE = b"Adobe"
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"IDAT", b"IEND")
_WEBP_KEPT = (b"VP8X", b"ALPH", b"VP8 ", b"VP8L")
_WEBP_ALPHA, _WEBP_EXIF = 0x10, 0x08  # flags of VP8X


def _exif(turn: int) -> bytes:
    """A TIFF block that holds the orientation and nothing else."""
    return b"II*\x00" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, turn, 0, 0)


def _turns(turn: int) -> bool:
    return 2 <= turn <= 8


def strip_jpeg(data: bytes, turn: int) -> bytes:
    """The segments of the first picture but APPn and comments; JFIF's header without its thumbnail."""
    kept, place = [data[:2]], 2
    exif = b"Exif\x00\x00" + _exif(turn)
    block = b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif if _turns(turn) else b""
    jfif = False
    while place + 1 < len(data):
        if data[place] != 0xFF:
            raise ValueError("no marker where one is due")
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == _EOI:
            kept.append(data[place : place + 2])
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            place += 2
            continue
        (length,) = struct.unpack(">H", data[place + 2 : place + 4])
        end = place + 2 + length
        segment = data[place:end]
        if marker == 0xE0 and segment[4:9] == b"JFIF\x00" and not jfif and length >= 16:
            kept.append(_JFIF[:9] + segment[9:16] + b"\x00\x00")
            jfif = True
        elif marker == 0xEE and segment[4:9] == _ADOBE and length >= 14:
            kept.append(b"\xff\xee\x00\x0e" + segment[4:16])
        elif not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        place = end
        if marker == _SOS:
            place = _scan_end(data, end)
            kept.append(data[end:place])
    at = 2 if jfif else 1  # behind SOI and JFIF's header
    return b"".join([*kept[:at], block, *kept[at:]])


def _scan_end(data: bytes, place: int) -> int:
    """Where the next marker stands that is neither a stuffed zero nor a restart."""
    while (found := data.find(b"\xff", place)) >= 0 and found + 1 < len(data):
        if data[found + 1] not in (0x00, 0xFF) and not 0xD0 <= data[found + 1] <= 0xD7:
            return found
        place = found + (1 if data[found + 1] == 0xFF else 2)
    return len(data)


def strip_png(data: bytes, turn: int) -> bytes:
    """The chunks of _PNG_KEPT up to IEND."""
    kept, place = [data[:8]], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, end = data[place + 4 : place + 8], place + 12 + length
        if kind in _PNG_KEPT:
            if kind == b"IDAT" and _turns(turn):
                body = b"eXIf" + _exif(turn)
                kept.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
                turn = 1
            kept.append(data[place:end])
        place = end
        if kind == b"IEND":
            break
    return b"".join(kept)


def strip_webp(data: bytes, turn: int) -> bytes:
    """The chunks of _WEBP_KEPT; VP8X's flags say what is left."""
    kept, place = [], 12
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
    return data[:end]


STRIPPERS: dict[str, Callable[[bytes, int], bytes]] = {
    "JPEG": strip_jpeg,
    "PNG": strip_png,
    "WEBP": strip_webp,
    "BMP": strip_bmp,
}
