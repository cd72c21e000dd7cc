"""Generated pictures as files: portable names, encoded bytes, and the mark that says a machine made them.

The mark is IPTC's digital source type ``trainedAlgorithmicMedia`` in an XMP packet: the machine-readable
marking that needs no signing key (IPTC Photo Metadata Standard 2023.1; EU AI Act, Art. 50(2)). It is put
into the encoded bytes, so it does not depend on the encoder, and nothing of the input file's metadata can
come along.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from reposer.errors import UserError
from reposer.images import encode_jpeg, encode_png
from reposer.storage.files import write_atomic
from reposer.storage.paths import made_folder, printable

FORMATS = ("png", "jpg")
JPEG_QUALITY = 95
MAX_NAME_BYTES = 100  # so that a path still fits everywhere (tar's name field, Windows' 260 characters)
SEPARATOR = "___"  # the field's habit for pairs (PATN, SPGNet)
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"'
    ' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="reposer"/>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")
_PNG_START, _PNG_HEADER_END = b"\x89PNG\r\n\x1a\n", 33  # signature 8 + IHDR 25
_JPEG_START, _XMP_NAMESPACE = b"\xff\xd8", b"http://ns.adobe.com/xap/1.0/\0"


def check_format(file_format: str) -> str:
    """``file_format`` itself if pictures can be written in it.

    Raises:
        UserError: it is not one of FORMATS.
    """
    if file_format not in FORMATS:
        raise UserError(f"format {file_format}: unknown", f"choose from {', '.join(FORMATS)}")
    return file_format


def encode_marked(pixels: NDArray[np.uint8], file_format: str) -> bytes:
    """(H, W, 3) uint8 RGB -> bytes of a PNG, or of a JPEG of quality 95 without chroma subsampling, with the
    mark.
    """
    if check_format(file_format) == "png":
        return mark(encode_png(pixels, level=1))
    return mark(encode_jpeg(pixels, JPEG_QUALITY))


def mark(data: bytes) -> bytes:
    """The PNG or JPEG with the XMP packet as the first thing after its header."""
    if data.startswith(_PNG_START):
        body = b"iTXt" + b"XML:com.adobe.xmp\0\0\0\0\0" + _PACKET  # uncompressed, no language, no translation
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return data[:_PNG_HEADER_END] + chunk + data[_PNG_HEADER_END:]
    if data.startswith(_JPEG_START):
        segment = _XMP_NAMESPACE + _PACKET
        header = 2
        if data[2:4] == b"\xff\xe0":  # JFIF's segment must stay the first
            header += 2 + struct.unpack(">H", data[4:6])[0]
        return data[:header] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[header:]
    raise ValueError("neither PNG nor JPEG")


MARKED_BYTES = 4096  # at the start of a file; the mark lies within


def is_marked(data: bytes) -> bool:
    """Whether a PNG or JPEG carries our packet at the place where :func:`mark` puts it."""
    return _PACKET in data[: _PNG_HEADER_END + len(_PACKET) + 256]


def write_picture(path: str | Path, pixels: NDArray[np.uint8]) -> None:
    """Write one generated picture, marked; .png, .jpg or .jpeg.

    Args:
        pixels: (H, W, 3) uint8 RGB.

    Raises:
        UserError: another extension, or the disk refuses.
    """
    path = Path(path)
    suffix = path.suffix.lower().removeprefix(".").replace("jpeg", "jpg")
    if suffix not in FORMATS:
        raise UserError(f"{path}: pictures are written as .png or .jpg", "give the file such a name")
    made_folder(path.parent)
    if os.path.lexists(path) and not (path.is_file() and is_marked(path.read_bytes()[:MARKED_BYTES])):
        raise UserError(
            f"{printable(path)}: is there already, and is no generated picture", "choose another name"
        )
    write_atomic(path, encode_marked(pixels, suffix))


def output_names(pairs: Sequence[tuple[str, str]], file_format: str) -> list[str]:
    """File names ``<source stem>___<donor stem>.<format>`` for pairs of image names, all different.

    A name with other characters than A-Z a-z 0-9 . _ - has them replaced by _, a long one is cut; then, and
    where two names would be one on a disk that ignores case, a hash of the pair is added. A name depends on
    nothing but the names of the job.

    Raises:
        UserError: a pair occurs twice.
    """
    twice = [pair for pair, times in Counter(pairs).items() if times > 1]
    if twice:
        raise UserError(
            f"{len(twice)} pairs occur more than once, first {twice[0][0]} -> {twice[0][1]}",
            "list each pair once",
        )
    plain = [SEPARATOR.join(PurePosixPath(name).stem for name in pair) for pair in pairs]
    times = Counter(name.lower() for name in plain)
    names = []
    for pair, name in zip(pairs, plain, strict=True):
        safe = _UNSAFE.sub("_", name).lstrip(".-")
        fits = safe == name and len(safe) + 1 + len(file_format) <= MAX_NAME_BYTES
        if not fits or times[name.lower()] > 1:
            tag = hashlib.sha256("\0".join(pair).encode("utf-8", "surrogateescape")).hexdigest()[:12]
            safe = f"{safe[: MAX_NAME_BYTES - len(tag) - 2 - len(file_format)]}-{tag}"
        names.append(f"{safe}.{file_format}")
    return names
