"""The only file that decodes, encodes and converts images; three named ranges, one place where they change.

* uint8: RGB in [0, 255], as stored;
* model float: float32 in [-1, 1], what generators and discriminators see;
* ImageNet-normalized: what torchvision's classification networks see.

Decoding is strict: a file is refused, or accepted by listed rules (image_rules.py, docs/reference/rules.md).
It is no integrity check (61 % of single-bit flips in a JPEG decode without a word): keep the sha256.
Only what converts tensors imports torch, which alone takes 500 MB.
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reposer.image_metadata import STRIPPERS
from reposer.image_rules import ImageError as ImageError  # what decode raises belongs to its interface
from reposer.image_rules import exif_orientation, file_format, load, open_image, upright_rgb
from reposer.storage.paths import RefusedFileError, read_regular

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_VOC_LABELS, _TELLING = 32, 3  # colors that are looked for; so many of them are no chance
MAX_FILE_BYTES = 50_000_000


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image and how it was read."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB, upright
    rules: tuple[str, ...]  # ids in image_rules.ACCEPTED, empty for a plain RGB image
    format: str  # one of image_rules.FORMATS
    sha256: str  # of the file's bytes


# ---- ranges


def to_float(image: Tensor) -> Tensor:
    """uint8 [0, 255] -> model float [-1, 1]; a floating-point image is one already and passes unchanged."""
    import torch

    if image.dtype == torch.uint8:
        return image.to(torch.float32).div_(127.5).sub_(1.0)
    return image


def require_uint8(images: Tensor) -> Tensor:
    """The same images, if they are uint8 RGB (B, 3, H, W); for code whose numbers would be wrong otherwise.

    Raises:
        ValueError: they are something else.
    """
    import torch

    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    return images


def to_uint8(image: Tensor) -> Tensor:
    """Model float [-1, 1] -> uint8 [0, 255], rounded to nearest and clipped."""
    import torch

    return image.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def imagenet_normalize(image: Tensor) -> Tensor:
    """Model float [-1, 1] (..., 3, H, W) -> ImageNet-normalized."""
    mean = image.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = image.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return (image * 0.5 + 0.5 - mean) / std


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) of either uint8 or float -> the same at ``size`` (H, W), bilinear with antialiasing."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    import torch
    import torch.nn.functional as F

    if image.dtype == torch.uint8 and image.device.type != "cpu":  # torch has no such kernel elsewhere
        return to_uint8(resize(to_float(image), size))
    return F.interpolate(image, size, mode="bilinear", align_corners=False, antialias=True)


# ---- decoding


def decode(path: Path | str, root: Path | None = None) -> NDArray[np.uint8]:
    """The image as (H, W, 3) uint8 RGB, upright.

    Args:
        path: the image file.
        root: where given, a link that leads outside it is refused.

    Raises:
        ImageError: the file is refused; its ``rule`` says why.
    """
    return read_picture(path, root).pixels


def decode_bytes(data: bytes, name: str) -> NDArray[np.uint8]:
    """As :func:`decode`, for a file in memory; ``name`` is for messages and the check of its extension."""
    return _picture(data, name).pixels


def read_picture(path: Path | str, root: Path | None = None) -> Picture:
    """As :func:`decode`, with the rules that were applied and the file's sha256 (the file is read once)."""
    return _picture(_read(path, root), str(path))


def decode_indices(path: Path | str, root: Path | None = None, *, exact: bool = False) -> NDArray[np.uint8]:
    """The raw (H, W) uint8 values of a one-channel image: palette indices (P), gray (L) or 0/1 (bilevel).

    Gray that is stored as RGB (all three channels equal, any alpha full) is one channel too.

    Args:
        exact: these are labels: JPEG and lossy WebP are refused (rule ``lossy``), which invent values beside
            every edge, and palettes whose colors name other labels than their indices (``palette-order``).

    Raises:
        ImageError: refused like any image, or rule ``not-one-channel``: colors are no labels.
    """
    name = str(path)
    data = _read(path, root)
    with open_image(data, name) as image:
        kind = file_format(image)
        if exact and (kind == "JPEG" or (kind == "WEBP" and b"VP8 " in data[:64])):
            lossy = "a JPEG" if kind == "JPEG" else "a lossy WebP"
            problem = f"{lossy}, which invents labels beside every edge"
            raise ImageError(name, "lossy", problem, "save the labels as PNG or NPY where they are made")
        if image.mode in ("RGB", "RGBA", "LA"):
            load(image, data, name)
            gray = _gray(np.array(image, dtype=np.uint8))
            if gray is not None:
                return gray
        if image.mode not in ("P", "L", "1"):
            advice = "store label indices as an 8-bit palette or gray PNG"
            problem = f"mode {image.mode}, one 8-bit channel is wanted"
            raise ImageError(name, "not-one-channel", problem, advice)
        load(image, data, name)
        values = np.array(image, dtype=np.uint8)
        if image.mode == "L" and kind == "PNG" and data[24] in (2, 4):
            values //= {2: 85, 4: 17}[data[24]]  # Pillow spreads 2 and 4 bits of gray over 0 to 255
        if exact and image.mode == "P" and (meant := _meant_by_palette(image, values)):
            problem = f"a palette of {meant}, as an optimizer of PNG writes it"
            raise ImageError(name, "palette-order", problem, "save the labels as a gray PNG or NPY")
        return values


def voc_palette(count: int) -> NDArray[np.uint8]:
    """(count, 3) PASCAL VOC colors: bits 0, 1, 2 of the label become the top bits of R, G, B, and so on."""
    labels = np.arange(count)
    palette = np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((labels >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def _meant_by_palette(image: Image.Image, values: NDArray[np.uint8]) -> str:
    """What the colors of three or more used indices say instead of them; "" where they say nothing."""
    used = np.unique(values)
    if len(used) < _TELLING:
        return ""
    table = np.zeros((256, 3), np.uint8)
    colors = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    table[: len(colors)] = colors
    shown = table[used]
    if (shown == shown[:, :1]).all() and (shown[:, 0] != used).any():
        return "grays which are not their indices"
    places = {tuple(color): label for label, color in enumerate(voc_palette(_VOC_LABELS).tolist())}
    labels = [places.get(tuple(color)) for color in shown.tolist()]
    if None not in labels and labels != used.tolist():
        return "PASCAL VOC's colors in another order"
    return ""


def _gray(pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """(H, W) of (H, W, 2 to 4) gray, RGB or RGBA pixels that are gray and opaque; None for others."""
    colors = pixels if pixels.shape[2] == 3 else pixels[..., :-1]
    if (colors != colors[..., :1]).any() or (pixels.shape[2] != 3 and (pixels[..., -1] != 255).any()):
        return None
    return np.ascontiguousarray(colors[..., 0])


def binary(path: Path | str, values: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W) values of the mask ``path`` as bool, True where they are not 0 (0/1 and 0/255 are both in use).

    Raises:
        ImageError: rule ``not-binary``: more than two values, or two of which none is 0.
    """
    found = np.unique(values)
    if len(found) > 2:
        advice = "threshold it (prepare: --soft-masks)"
        raise ImageError(path, "not-binary", "a mask with more than two values", advice)
    if len(found) == 2 and found[0]:
        problem = f"a mask of {found[0]} and {found[1]}, of which neither is 0"
        raise ImageError(path, "not-binary", problem, "write 0 for the background and one other value")
    return np.asarray(values > 0)


# ---- encoding: pixels only, nothing of a source file's metadata


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = 95) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG bytes, no chroma subsampling."""
    return _save(Image.fromarray(_checked(pixels, (3,))), "JPEG", quality=quality, subsampling=0)


def encode_png(pixels: NDArray[Any], palette: NDArray[np.uint8] | None = None, level: int = 6) -> bytes:
    """PNG bytes of (H, W, 3) uint8 RGB, (H, W) uint8 gray or bool, or uint8 indices of a (K, 3) palette.

    ``level`` is zlib's effort; on photographs 1 takes half the time of 6 and gives files of the same size.
    """
    if pixels.dtype == np.bool_:
        return _save(Image.fromarray(pixels), "PNG", compress_level=level)
    image = Image.fromarray(_checked(pixels, (2, 3) if palette is None else (2,)))
    if palette is not None:
        image.putpalette(np.ascontiguousarray(palette, dtype=np.uint8).tobytes())
    return _save(image, "PNG", compress_level=level)


# ---- copies: the stored pixels, bit for bit, without what the camera or an editor wrote beside them


def without_metadata(data: bytes, name: str) -> bytes:
    """An image file without its metadata; its pixels stay as they are stored. The same bytes give the same.

    Kept is what decoding needs: tables, transparency, the orientation (alone, where it turns the picture),
    Adobe's marker of a JPEG, gamma and primaries of a PNG, and a whole ICC profile of at most 1 MB, since a
    viewer shows other colors without it. EXIF, XMP, comments, texts, thumbnails, further pictures of an MPO
    and whatever follows the picture's end go. A file without any of these comes back as it is.

    Raises:
        ImageError: refused by its header, or the result does not decode to the same pixels.
    """
    with open_image(data, name) as image:
        kind = file_format(image)
        try:
            turn = exif_orientation(image)
        except ValueError:  # the picture is used as it is stored
            turn = 1
    try:
        cleaned = STRIPPERS[kind](data, turn)
    except (ValueError, struct.error, IndexError) as error:
        raise ImageError(name, "damaged", "its parts do not fit together", "save it again") from error
    if cleaned != data and not np.array_equal(_picture(cleaned, name).pixels, _picture(data, name).pixels):
        raise ImageError(name, "damaged", "its metadata cannot be taken out", "save it without metadata")
    return cleaned


def _read(path: Path | str, root: Path | None) -> bytes:
    try:
        return read_regular(Path(path), max_bytes=MAX_FILE_BYTES, root=root)
    except RefusedFileError as error:
        raise ImageError(path, error.rule, error.reason, error.advice) from error


def _picture(data: bytes, name: str) -> Picture:
    with open_image(data, name) as image:
        load(image, data, name)
        rgb, rules = upright_rgb(image, data, name)
        found = file_format(image)
    return Picture(np.array(rgb), tuple(rules), found, hashlib.sha256(data).hexdigest())


def _checked(pixels: NDArray[Any], dimensions: tuple[int, ...]) -> NDArray[Any]:
    if (
        pixels.dtype != np.uint8
        or pixels.ndim not in dimensions
        or (pixels.ndim == 3 and pixels.shape[2] != 3)
    ):
        raise TypeError(f"uint8 pixels of {dimensions} dimensions wanted, got {pixels.dtype} {pixels.shape}")
    return pixels


def _save(image: Image.Image, file_format: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
