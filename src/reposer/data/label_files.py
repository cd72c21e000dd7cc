"""Label and mask files: one-channel images and NumPy arrays, read as indices and never as colors.

A palette PNG read as RGB, or by OpenCV, turns labels into colors without a word; RGB is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reposer.data.records import AnnotationError
from reposer.images import MAX_FILE_BYTES, ImageError, binary, decode_indices
from reposer.storage.bounded import read_npy
from reposer.storage.paths import read_regular

SOFT_HALF = 128  # a soft mask's 0 to 255 stands for 0 to 1
# Endings of the files that annotate an image, after its stem; those that are no map are named when refused
_ENDS = (".png", ".npy", ".bmp")
_OTHERS = (".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".mat")
_MARKS = {"mask": ("_mask", "_seg"), "parsing": ("_parsing", "_label", "_labels", "_seg")}


@dataclass(frozen=True, slots=True)
class MapRules:
    """What the maps and masks of a data set mean, as far as their files cannot say it."""

    labels: str = "lip20"  # of parsing maps, see parsing.known_labels
    soft_masks: bool = False  # masks of more than two values are cut at half instead of refused
    inverted_masks: bool = False  # 0 is the person

    def mask(self, path: Path, size: tuple[int, int], root: Path | None = None) -> NDArray[np.bool_]:
        """:func:`read_mask` by these rules."""
        return read_mask(path, size, root, soft=self.soft_masks, inverted=self.inverted_masks)


PLAIN = MapRules()


def map_names(kind: str, stem: str) -> list[str]:
    """Names that the map or mask of an image may have, likely ones first; letter case of the end is ignored.

    Args:
        kind: "parsing" or "mask".
        stem: the image's name without its suffix.
    """
    marked = [stem + mark for mark in _MARKS[kind]]
    return [base + end for ends in (_ENDS, _OTHERS) for base in (stem, *marked) for end in ends]


def read_labels(path: str | Path, root: Path | None = None, *, exact: bool = False) -> NDArray[np.uint8]:
    """(H, W) uint8 values of a palette, gray or 1-bit image, or of an integer ``.npy``.

    Args:
        root: where given, a link that leads outside it is refused.
        exact: JPEG is refused.

    Raises:
        RefusedFileError: missing, unreadable, too large, damaged, not one channel; its ``rule`` says which.
        AnnotationError: an array that is not one number of 0 to 255 per pixel.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        return _read_array(path, root)
    try:
        return decode_indices(path, root, exact=exact)
    except ImageError as error:
        if error.rule != "format":
            raise
        raise ImageError(path, error.rule, error.reason, "save it as a gray PNG or as NPY") from error


def read_mask(
    path: str | Path,
    size: tuple[int, int] | None = None,
    root: Path | None = None,
    *,
    soft: bool = False,
    inverted: bool = False,
) -> NDArray[np.bool_]:
    """(H, W) bool, True on the person; the file holds 0 and one other value.

    Args:
        size: (H, W) that the mask must have; None accepts any.
        root: where given, a link that leads outside it is refused.
        soft: a mask of more than two values is no fault but a soft one (0 to 255) and is cut at its half: 128
            and above is the person.
        inverted: 0 (of a soft mask, below 128) is the person.

    Raises:
        RefusedFileError: as ``read_labels``, or more than two values.
        AnnotationError: as ``read_labels``, or another size.
    """
    path = Path(path)
    if soft:
        values = read_labels(path, root)
        two = bool(((values == 0) | (values == values.max())).all())
        mask = values > 0 if two else values >= SOFT_HALF
    else:
        mask = binary(path, read_labels(path, root))
    if size is not None:
        check_size(path, mask.shape, size)
    return np.asarray(~mask if inverted else mask)


def check_size(path: str | Path, shape: tuple[int, ...], size: tuple[int, int]) -> None:
    """Refuse a map whose (H, W) is not its image's.

    Raises:
        AnnotationError: naming both sizes.
    """
    if shape != tuple(size):
        message = f"is {shape[1]}x{shape[0]} (width x height), its image is {size[1]}x{size[0]}"
        raise AnnotationError(path, "size", message, "make it from this image")


def _read_array(path: Path, root: Path | None) -> NDArray[np.uint8]:
    data = read_regular(path, max_bytes=MAX_FILE_BYTES, root=root)
    if data.startswith(b"PK"):
        raise AnnotationError(path, "file", "is an archive of arrays", "store one array, (H, W)")
    try:
        array = read_npy(path, data)
    except Exception as error:  # whatever NumPy raises on hostile bytes
        message = f"is no readable NumPy array ({error})"
        raise AnnotationError(path, "file", message, "make the file again") from error
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biu":
        message = f"is {array.dtype} {array.shape}"
        raise AnnotationError(path, "array", message, "store one integer label per pixel, (H, W)")
    if int(array.min()) < 0 or int(array.max()) > 255:
        raise AnnotationError(path, "label", f"{array.min()} to {array.max()} found", "labels are 0 to 255")
    return array.astype(np.uint8)
