"""The only file that decodes, encodes and converts images; three named ranges, one place where they change.

* uint8: RGB in [0, 255], as stored;
* model float: float32 in [-1, 1], what generators and discriminators see;
* ImageNet-normalized: what torchvision's classification networks see.

Decoding is strict: a file is refused, or accepted by listed rules (docs/data.md). Pillow opens four formats
and nothing else (no Ghostscript, no exotic parser); bytes and pixels are counted before a pixel is decoded.
Decoding is no integrity check (61 % of single-bit flips in a JPEG decode without a word): keep the sha256.
Label maps and masks are read as indices, not as colors, by reposer.data.label_files.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from reposer.paths import RefusedFileError, read_regular

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
MAX_FILE_BYTES = 50_000_000
MAX_PIXELS = 25_000_000
MIN_SIDE = 4  # pixels; nothing smaller shows a person

_ORIENTATION_TAG = 0x0112
_TURN = Image.Transpose
_TURNS = {
    **{2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE},
    **{6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90},
}
_WARNINGS = threading.Lock()  # the warning filters belong to the whole process


class ImageError(RefusedFileError):
    """An image file that is refused; ``rule`` is one of the ids in the table of docs/data.md."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image and how it was read."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB, upright
    rules: tuple[str, ...]  # the rules that had to be applied, empty for a plain RGB image
    format: str  # one of FORMATS
    sha256: str  # of the file's bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of an image file say."""

    format: str  # one of FORMATS
    mode: str  # Pillow's name of the pixel type
    width: int  # pixels, as stored (before any EXIF rotation)
    height: int


# ---- ranges


def to_float(image: Tensor) -> Tensor:
    """uint8 [0, 255] -> model float [-1, 1]; a floating-point image is one already and passes unchanged."""
    if image.dtype == torch.uint8:
        return image.to(torch.float32).div_(127.5).sub_(1.0)
    return image


def to_uint8(image: Tensor) -> Tensor:
    """Model float [-1, 1] -> uint8 [0, 255], rounded to nearest and clipped."""
    return image.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def imagenet_normalize(image: Tensor) -> Tensor:
    """Model float [-1, 1] (..., 3, H, W) -> ImageNet-normalized."""
    mean = image.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = image.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return (image * 0.5 + 0.5 - mean) / std


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


def probe(path: Path | str, root: Path | None = None) -> Header:
    """Format, mode and size from the header; no pixel is decoded.

    Raises:
        ImageError: refused by its kind, size, format or header.
    """
    with _open(_read(path, root), str(path)) as image:
        return Header(_format(image), image.mode, image.width, image.height)


# ---- encoding: pixels only, nothing of the source file's metadata


def encode_jpeg(pixels: NDArray[np.uint8], quality: int = 95) -> bytes:
    """(H, W, 3) uint8 RGB -> JPEG bytes, no chroma subsampling."""
    return _save(Image.fromarray(_checked(pixels, (3,))), "JPEG", quality=quality, subsampling=0)


def encode_png(pixels: NDArray[Any], palette: NDArray[np.uint8] | None = None) -> bytes:
    """PNG bytes of (H, W, 3) uint8 RGB, (H, W) uint8 gray or bool, or uint8 indices of a (K, 3) palette."""
    if pixels.dtype == np.bool_:
        return _save(Image.fromarray(pixels), "PNG")
    image = Image.fromarray(_checked(pixels, (2, 3) if palette is None else (2,)))
    if palette is not None:
        image.putpalette(np.ascontiguousarray(palette, dtype=np.uint8).tobytes())
    return _save(image, "PNG")


def _checked(pixels: NDArray[Any], dimensions: tuple[int, ...]) -> NDArray[np.uint8]:
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


# ---- the rules


def _read(path: Path | str, root: Path | None) -> bytes:
    try:
        return read_regular(Path(path), max_bytes=MAX_FILE_BYTES, root=root)
    except RefusedFileError as error:
        raise ImageError(path, error.rule, error.reason, error.advice) from error


def _picture(data: bytes, name: str) -> Picture:
    with _open(data, name) as image:
        found = _format(image)
        rules = [] if SUFFIXES.get(Path(name).suffix.lower()) == found else ["wrong-extension"]
        if image.format == "MPO":
            rules.append("first-picture")
        if found == "PNG" and data[24] == 16:  # IHDR's bit depth; Pillow itself keeps the high byte of RGB
            rules.append("16-bit")
        _load(image, name)
        rgb = _to_rgb(image, name, rules)
        pixels = np.array(_upright(image, rgb, name, rules))
    return Picture(pixels, tuple(rules), found, hashlib.sha256(data).hexdigest())


def _open(data: bytes, name: str) -> Image.Image:
    """The image with its header read and checked, no pixel decoded."""
    if not data:
        raise ImageError(name, "empty", "an empty file", "get the file again")
    try:
        with _strict_warnings():
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        advice = "convert it to JPEG, PNG, WebP or BMP, or get it again"
        raise ImageError(name, "format", "no readable JPEG, PNG, WebP or BMP", advice) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(name) from error
    except Exception as error:  # whatever Pillow's parsers raise on hostile bytes
        raise _damaged(name, error) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_many_pixels(name)
    if min(image.size) < MIN_SIDE:
        problem = f"{image.width}x{image.height} pixels, each side must have at least {MIN_SIDE}"
        raise ImageError(name, "too-small", problem, "remove it")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(name, "animated", "holds several frames", "store the wanted frame as one image")
    return image


def _load(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except Exception as error:  # whatever Pillow's decoders raise on hostile bytes
        raise _damaged(name, error) from error


def _to_rgb(image: Image.Image, name: str, rules: list[str]) -> Image.Image:
    """RGB by the rule for each mode; ``rules`` gets the ids of those applied."""
    mode = image.mode
    if mode.startswith("I;16"):
        gray = np.asarray(image).astype(np.uint32)
        rules.append("gray")
        return Image.fromarray(((gray + 128) // 257).astype(np.uint8)).convert("RGB")
    if mode == "CMYK":
        if "adobe" not in image.info:  # Pillow takes every CMYK JPEG for Adobe's inverted kind
            advice = "convert it to RGB in the program that made it"
            raise ImageError(
                name, "cmyk-unmarked", "CMYK without Adobe's marker: its inks may be inverted", advice
            )
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


def _upright(image: Image.Image, rgb: Image.Image, name: str, rules: list[str]) -> Image.Image:
    try:
        with _strict_warnings():
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception as error:  # whatever Pillow's EXIF parser raises on hostile bytes
        raise ImageError(name, "exif-damaged", "damaged EXIF data", "save it without metadata") from error
    if orientation in _TURNS:
        rules.append("exif-rotated")
        return rgb.transpose(_TURNS[orientation])
    if orientation != 1:
        rules.append("exif-unknown")
    return rgb


def _format(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else str(image.format)  # MPO: several JPEGs in one file


@contextmanager
def _strict_warnings() -> Iterator[None]:
    """Pillow's warnings (bomb, malformed MPO or APNG, corrupt EXIF) as errors."""
    with _WARNINGS, warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _too_many_pixels(name: str) -> ImageError:
    return ImageError(name, "too-many-pixels", f"more than {MAX_PIXELS:,} pixels", "make it smaller")


def _damaged(name: str, error: Exception) -> ImageError:
    rule = "truncated" if "truncated" in str(error).lower() else "damaged"
    return ImageError(name, rule, f"{rule} image data", "get the file again")
