"""Pictures in and out: one person for a generator, from files or arrays; generated ones as marked files."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reposer.data.keypoints import Pose, scale_keypoints
from reposer.data.label_files import read_mask
from reposer.data.layouts.labeled_files import IMAGE_SUFFIXES
from reposer.data.parsing import LIP_LABELS, read_parsing
from reposer.errors import UserError, known
from reposer.images import encode_jpeg, encode_png, read_picture
from reposer.storage.files import write_atomic
from reposer.storage.paths import made_folder, printable
from reposer.structures import NUM_JOINTS, MoreSources, PairBatch

if TYPE_CHECKING:
    from torch import Tensor

# ---- One person for a generator: image, parsing, mask and keypoints from files or arrays, at the model's
# size.

ImageLike = str | Path | NDArray[np.uint8]
_BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST  # Pillow's bilinear antialiases


@dataclass(frozen=True, slots=True)
class Person:
    """An image and its annotations, all of the size (H, W) that the model works at."""

    name: str  # file name, or what the caller calls it
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    parsing: NDArray[np.uint8]  # (H, W) LIP-20
    mask: NDArray[np.bool_]  # (H, W) True on the person
    keypoints: Pose  # (J, 2) x, y in pixels of this size, NaN for a missing joint
    original_size: tuple[int, int]  # (H, W) of the image as given
    sha256: str  # of the image file; empty for an array
    corner: tuple[int, int] = (0, 0)  # x, y of the image's corner in the photo that it was cut from


def load_person(
    image: ImageLike,
    parsing: ImageLike | None,
    mask: ImageLike | NDArray[np.bool_] | None = None,
    keypoints: Pose | None = None,
    *,
    size: tuple[int, int],
    name: str = "",
) -> Person:
    """Read one person and bring everything to ``size``.

    Args:
        image: file, or (H, W, 3) uint8 RGB.
        parsing: file (palette or gray PNG, .npy), or (H, W) uint8 LIP-20 labels, as large as the image.
        mask: file, or (H, W); without one, or with an empty one, every pixel with a label other than
            background is the person, and every pixel at all where the label map has none either.
        keypoints: (J, 2) x, y in pixels of the image, NaN for a missing joint.
        size: (H, W) of the model.
        name: what messages call the person; default: the image's file name.

    Raises:
        UserError: no parsing, or something that cannot be read or has another size than the image.
    """
    if isinstance(image, str | Path):
        picture = read_picture(image)
        pixels, digest, name = picture.pixels, picture.sha256, name or Path(image).name
    else:
        pixels, digest, name = checked_array(image, (3,), name or "image"), "", name or "image"
    original = (pixels.shape[0], pixels.shape[1])
    if parsing is None:
        raise no_map(name, "give a LIP-20 label map as large as the image (palette PNG, gray PNG or .npy)")
    labels = _labels(parsing, original, name)
    person = _mask(mask, original, name)
    if person is None or not person.any():
        person = labels != 0 if labels.any() else np.ones(original, np.bool_)
    pose = np.full((NUM_JOINTS, 2), np.nan, np.float32) if keypoints is None else keypoints
    if pose.shape != (NUM_JOINTS, 2):
        raise UserError(f"{printable(name)}: keypoints are {pose.shape}", f"give ({NUM_JOINTS}, 2) x, y")
    return Person(
        name=name,
        image=resize_array(pixels, size, _BILINEAR),
        parsing=resize_array(labels, size, NEAREST),
        mask=resize_array(person.astype(np.uint8), size, NEAREST).astype(np.bool_),
        keypoints=pose if original == tuple(size) else scale_keypoints(pose, original, size),
        original_size=original,
        sha256=digest,
    )


def no_map(name: str, advice: str) -> UserError:
    """What is said of a person without a label map."""
    problem = "has no parsing map; a person is re-posed by the maps of source and donor"
    return UserError(f"{printable(name)}: {problem}", advice)


def beside(image: Path) -> Iterator[tuple[Path, str]]:
    """Where annotations of an image may lie: folders, and what they call the image; the first counts.

    Its own folder; the one above, as ``annotate`` names what lies deeper (``sub/a.jpg``); that one again, as
    data sets do (``a.jpg``), unless an image there has this name, whose annotations these are.
    """
    yield image.parent, image.name
    own = image.parent
    if own.name in ("", ".."):  # "." and "..": what the folder is called
        own = own.resolve()
    above = own.parent
    if above == own:
        return
    yield above, f"{own.name}/{image.name}"
    names: list[str] = []
    with suppress(OSError):  # it may not be listed
        names = os.listdir(above)
    parts = (os.path.splitext(name) for name in names)
    if not any(stem == image.stem and suffix.lower() in IMAGE_SUFFIXES for stem, suffix in parts):
        yield above, image.name


def people_batch(sources: Sequence[Person | Sequence[Person]], donors: Sequence[Person]) -> PairBatch:
    """The PairBatch of B sources and as many donors; pids are -1, since nobody is known here.

    Args:
        sources: an image of each source person, or several, the first of which counts most.
        donors: in whose poses.
    """
    import torch  # here: who only asks whether a picture is marked does without

    views = [[source] if isinstance(source, Person) else list(source) for source in sources]
    own, targets = _stacked([view[0] for view in views]), _stacked(donors)
    most = max(len(view) for view in views)
    more = None
    if most > 1:
        columns = [_stacked([view[min(k, len(view) - 1)] for view in views]) for k in range(1, most)]
        known = [[k < len(view) for k in range(1, most)] for view in views]
        images, parsing, mask, keypoints = (torch.stack(column, 1) for column in zip(*columns, strict=True))
        more = MoreSources(images, parsing, mask, keypoints, torch.tensor(known))
    return PairBatch(
        *(own[0], targets[0], own[1], targets[1], own[2], targets[2], own[3], targets[3]),
        pids=torch.full((len(views),), -1, dtype=torch.int64),
        more_sources=more,
    )


def _stacked(people: Sequence[Person]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (N, 3, H, W), parsing maps, masks and keypoints of N people."""
    import torch

    images = torch.from_numpy(np.stack([p.image for p in people])).permute(0, 3, 1, 2)
    rest = ([p.parsing for p in people], [p.mask for p in people], [p.keypoints for p in people])
    parsing, mask, keypoints = (torch.from_numpy(np.stack(arrays)) for arrays in rest)
    return images, parsing, mask, keypoints


def _labels(parsing: ImageLike, size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    if isinstance(parsing, str | Path):
        return read_parsing(parsing, size)
    labels = checked_array(parsing, (), f"parsing of {name}", size)
    known = len(LIP_LABELS)
    if int(labels.max()) >= known:
        problem = f"label {labels.max()} is not in lip20 (0 to {known - 1})"
        raise UserError(f"parsing of {printable(name)}: {problem}", "convert the label map")
    return labels


def _mask(
    mask: ImageLike | NDArray[np.bool_] | None, size: tuple[int, int], name: str
) -> NDArray[np.bool_] | None:
    if mask is None:
        return None
    if isinstance(mask, str | Path):
        return read_mask(mask, size)
    return checked_array(np.asarray(mask).astype(np.uint8), (), f"mask of {name}", size) > 0


def checked_array(
    array: NDArray[Any], channels: tuple[int, ...], what: str, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """``array`` if it is uint8 of (H, W, *channels), not empty, and of ``size`` where one is given.

    Args:
        what: the array is, for the message.

    Raises:
        UserError: it is anything else.
    """
    wanted = ", ".join(str(side) for side in (*(size or ("H", "W")), *channels))
    if not isinstance(array, np.ndarray):
        problem = f"is of type {type(array).__name__}, an array of uint8 ({wanted}) is wanted"
        raise UserError(f"{printable(what)}: {problem}", "convert it")
    fits = array.dtype == np.uint8 and array.ndim == 2 + len(channels) and array.shape[2:] == channels
    if not fits or (size is not None and array.shape[:2] != size):
        problem = f"is {array.dtype} {array.shape}, uint8 ({wanted}) is wanted"
        raise UserError(f"{printable(what)}: {problem}", "convert it")
    if not array.size:
        raise UserError(f"{printable(what)}: is {array.shape}, without a pixel", "give a picture")
    return array


def resize_array(
    array: NDArray[np.uint8], size: tuple[int, int], how: Image.Resampling = _BILINEAR
) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) uint8 at another (H, W); bilinear with antialiasing for pictures, as packing
    does.
    """
    if array.shape[:2] == tuple(size):
        return np.ascontiguousarray(array)
    return np.array(Image.fromarray(array).resize((size[1], size[0]), how))


# ---- Generated pictures as files: portable names, encoded bytes, and the mark that says a machine made them.
#
# The mark is IPTC's digital source type ``trainedAlgorithmicMedia`` in an XMP packet: the machine-readable
# marking that needs no signing key (IPTC Photo Metadata Standard 2023.1; EU AI Act, Art. 50(2)). It is put
# into the encoded bytes, so it does not depend on the encoder, and nothing of the input file's metadata can
# come along.

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
    return known("format", file_format, FORMATS)


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
    claim_picture(path)
    write_atomic(path, encode_marked(pixels, suffix))


def claim_picture(path: Path) -> None:
    """Refuse to replace what is no generated picture.

    Raises:
        UserError: something else has this name.
    """
    if not os.path.lexists(path):
        return
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(MARKED_BYTES)
    if not is_marked(start):
        raise UserError(
            f"{printable(path)}: is there already, and is no generated picture", "choose another name"
        )


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
