"""Parsing maps: label sets, conversion between them, left/right under a flip, palette PNG files.

A parsing map is (H, W) uint8, a label index per pixel; left and right are the person's. The project's own set
is LIP-20, in the order that the SAN paper prints. LIP and CIHP differ only at index 10, a silent trap; use
``convert``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reposer.data.label_files import check_size, read_labels
from reposer.data.records import AnnotationError
from reposer.errors import UserError, unknown
from reposer.images import encode_png, voc_palette
from reposer.storage.files import write_atomic
from reposer.structures import MISSING_LABEL

LIP_LABELS = (
    "background",
    "hat",
    "hair",
    "glove",
    "sunglasses",
    "upper-clothes",
    "dress",
    "coat",
    "socks",
    "pants",
    "jumpsuits",
    "scarf",
    "skirt",
    "face",
    "left-arm",
    "right-arm",
    "left-leg",
    "right-leg",
    "left-shoe",
    "right-shoe",
)
CIHP_LABELS = (*LIP_LABELS[:10], "torso-skin", *LIP_LABELS[11:])
ATR_LABELS = (
    "background",
    "hat",
    "hair",
    "sunglasses",
    "upper-clothes",
    "skirt",
    "pants",
    "dress",
    "belt",
    "left-shoe",
    "right-shoe",
    "face",
    "left-leg",
    "right-leg",
    "left-arm",
    "right-arm",
    "bag",
    "scarf",
)
PASCAL_LABELS = ("background", "head", "torso", "upper-arms", "lower-arms", "upper-legs", "lower-legs")
MERGED8_LABELS = ("background", "lower-clothes", "hair", "glove", "face", "upper-clothes", "arms", "legs")
# What coarse parsers and rules can tell apart: gloves count as arms, socks as legs, dresses as upper clothes.
PARTS8_LABELS = ("background", "hair", "face", "upper-clothes", "lower-clothes", "arms", "legs", "shoes")
LABEL_SETS: dict[str, tuple[str, ...]] = {
    "lip20": LIP_LABELS,
    "cihp20": CIHP_LABELS,
    "atr18": ATR_LABELS,
    "pascal7": PASCAL_LABELS,
    "merged8": MERGED8_LABELS,  # what ADGAN and CASD merge LIP into
    "parts8": PARTS8_LABELS,
}

CONVERTIBLE = ("lip20", "cihp20", "atr18")  # sets that LIP-20 can be made of; the others are coarser

_SIDE_DEPENDENT = 254  # LIP labels that become left or right in ATR, by the nearest limb
_TO_PASCAL = (0, 1, 1, 4, 1, 2, 2, 2, 6, 5, 2, 2, 5, 1, 4, 4, 6, 6, 6, 6)  # of LIP-20 and CIHP-20
# Target label of each source label, in the order of the source set. A pair that is not here goes through LIP.
_TABLES: dict[tuple[str, str], tuple[int, ...]] = {
    # belt (8) -> pants, bag (16) -> background; LIP's glove, coat, socks and jumpsuits never appear
    ("atr18", "lip20"): (0, 1, 2, 4, 5, 12, 9, 6, 9, 18, 19, 13, 16, 17, 14, 15, 0, 11),
    # coat -> upper-clothes, jumpsuits -> dress; glove and socks join the nearest arm and leg
    ("lip20", "atr18"): (
        *(0, 1, 2, _SIDE_DEPENDENT, 3, 4, 7, 4, _SIDE_DEPENDENT, 6),
        *(7, 17, 5, 11, 14, 15, 12, 13, 9, 10),
    ),
    ("cihp20", "lip20"): (*range(10), 0, *range(11, 20)),  # LIP calls bare torso skin background
    ("lip20", "cihp20"): (*range(10), 6, *range(11, 20)),  # jumpsuits -> dress
    ("lip20", "pascal7"): _TO_PASCAL,  # lossy: no upper arms
    ("cihp20", "pascal7"): _TO_PASCAL,  # torso skin is torso
    ("lip20", "merged8"): (0, 2, 2, 3, 4, 5, 5, 5, 7, 1, 5, 5, 1, 4, 6, 6, 7, 7, 7, 7),
    ("lip20", "parts8"): (0, 1, 1, 5, 2, 3, 3, 3, 6, 4, 3, 3, 4, 2, 5, 5, 6, 6, 7, 7),
}

_MIRRORED: dict[str, tuple[tuple[int, int], ...]] = {
    "lip20": ((14, 15), (16, 17), (18, 19)),
    "cihp20": ((14, 15), (16, 17), (18, 19)),
    "atr18": ((9, 10), (12, 13), (14, 15)),
    "pascal7": (),
    "merged8": (),
    "parts8": (),
}


def _flip_table(pairs: tuple[tuple[int, int], ...]) -> NDArray[np.uint8]:
    table = np.arange(256, dtype=np.uint8)
    for left, right in pairs:
        table[left], table[right] = right, left
    return table


# (256,) uint8 for each label set: the label of a pixel in a mirrored image; MISSING_LABEL stays
FLIP_LABELS: dict[str, NDArray[np.uint8]] = {name: _flip_table(pairs) for name, pairs in _MIRRORED.items()}


PALETTE = voc_palette(len(LIP_LABELS))  # (20, 3) uint8 RGB


def colorize(parsing: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(..., H, W) LIP-20 labels -> (..., H, W, 3) RGB; pixels without a label are white."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(PALETTE)] = PALETTE
    return table[parsing]


def convert(parsing: NDArray[np.uint8], source: str, target: str) -> NDArray[np.uint8]:
    """Map one (H, W) map between label sets; MISSING_LABEL stays. Tables and their losses are in this file.

    LIP's glove and socks become the arm and the leg of the nearer side (ties: left) when the target is ATR.

    Raises:
        ValueError: no conversion (a coarse set cannot be refined), or a label that ``source`` does not have.
    """
    unknown = unknown_labels(parsing, source)
    if unknown:
        raise ValueError(f"labels {unknown} are not in {source}")
    if source == target:
        return parsing.copy()
    table = _TABLES.get((source, target))
    if table is None:
        if "lip20" in (source, target) or (source, "lip20") not in _TABLES:
            raise ValueError(f"{source} cannot be converted to {target}")
        return convert(convert(parsing, source, "lip20"), "lip20", target)
    lookup = np.full(256, MISSING_LABEL, np.uint8)
    lookup[: len(table)] = table
    converted = lookup[parsing]
    if (source, target) == ("lip20", "atr18"):
        _resolve_sides(parsing, converted)
    return converted


def unknown_labels(parsing: NDArray[np.uint8], labels: str) -> list[int]:
    """Sorted values of a map that are neither a label of the set nor MISSING_LABEL."""
    counts = np.bincount(parsing.ravel(), minlength=256)
    known = len(LABEL_SETS[labels])
    return [int(label) for label in np.flatnonzero(counts[known:MISSING_LABEL]) + known]


def read_parsing(
    path: str | Path, size: tuple[int, int] | None = None, labels: str = "lip20", root: Path | None = None
) -> NDArray[np.uint8]:
    """Read a label map: 8-bit PNG (or BMP) with palette or gray values as indices, or a NumPy array.

    Args:
        size: (H, W) that the map must have; None accepts any.
        labels: label set whose indices are allowed.
        root: where given, a link that leads outside it is refused.

    Raises:
        RefusedFileError: unreadable, truncated, RGB (its rule says which).
        AnnotationError: an array of another kind, another size, or a label that the set does not have.
    """
    parsing = read_labels(path, root, exact=True)
    if size is not None:
        check_size(path, parsing.shape, size)
    _check_labels(path, parsing, 0, len(LABEL_SETS[labels]), labels)
    return parsing


def known_labels(labels: str) -> tuple[str, int]:
    """ "atr18" -> ("atr18", 0); "atr18+1" -> ("atr18", 1): the same, counted from 1.

    Raises:
        UserError: an unknown label set, or one that is coarser than LIP-20.
    """
    name, plus, first = labels.partition("+")
    if name in LABEL_SETS and name not in CONVERTIBLE:
        advice = f"use {', '.join(CONVERTIBLE)}"
        raise UserError(f"label set {labels}: coarser than LIP-20, which cannot be made of it", advice)
    if name not in CONVERTIBLE or (plus and first != "1"):
        raise unknown("label set", labels, [*CONVERTIBLE, *(f"{name}+1" for name in CONVERTIBLE)])
    return name, 1 if plus else 0


def read_as_lip(
    path: str | Path, size: tuple[int, int], labels: str = "lip20", root: Path | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(H, W) LIP-20 labels of a map in another set (``known_labels``), and the values that the file holds.

    Raises:
        RefusedFileError, AnnotationError: as :func:`read_parsing`.
        UserError: as :func:`known_labels`.
    """
    name, first = known_labels(labels)
    values = read_labels(path, root, exact=True)
    check_size(path, values.shape, size)
    _check_labels(path, values, first, first + len(LABEL_SETS[name]), labels)
    return convert((values - np.uint8(first)).astype(np.uint8), name, "lip20"), values


def _check_labels(path: str | Path, values: NDArray[np.uint8], low: int, high: int, labels: str) -> None:
    """Refuse values outside low to high - 1, and say what such a file usually is."""
    outside = (values < low) | (values >= high)
    if not outside.any():
        return
    found = np.unique(values)
    unknown = ", ".join(str(label) for label in np.unique(values[outside])[:5])
    advice = "name its label set (prepare: --label-set cihp20, atr18, or lip20+1 where labels begin with 1)"
    if set(found.tolist()) <= {0, 255}:
        advice = "0 and 255 alone are a mask, not a parsing map: give the folder as --mask"
    elif len(found) > 40 or (found >= 40).sum() > 8:
        advice = "these are gray values or colors, no labels: save the label of each pixel"
    raise AnnotationError(path, "label", f"{unknown} not in {labels} ({low} to {high - 1})", advice)


def write_parsing(
    path: str | Path, parsing: NDArray[np.uint8], sidecar: Mapping[str, str] | None = None
) -> None:
    """Write a LIP-20 map as an 8-bit palette PNG (indices kept, colors for the eye).

    Args:
        sidecar: what made the map, for example ``{"model": ..., "weights_sha256": ...}``; written beside it
            as ``<stem>.json`` with the name of the label set. None writes no sidecar.
    """
    path = Path(path)
    write_atomic(path, encode_png(np.ascontiguousarray(parsing, np.uint8), PALETTE))
    if sidecar is not None:
        record = {"schema": "lip20", **sidecar}
        write_atomic(path.with_suffix(".json"), f"{json.dumps(record, sort_keys=True)}\n".encode())


def _resolve_sides(lip: NDArray[np.uint8], atr: NDArray[np.uint8]) -> None:
    """Replace glove and socks pixels of a converted map, in place, by the arm or leg whose side is nearer."""
    for label, (left, right) in ((3, (14, 15)), (8, (12, 13))):
        pixels = lip == label
        if pixels.any():
            closer_right = _distance_to(lip, label, "right") < _distance_to(lip, label, "left")
            atr[pixels] = np.where(closer_right[pixels], right, left)


def _distance_to(lip: NDArray[np.uint8], label: int, side: str) -> NDArray[np.float64]:
    """(H, W) distance to a side's limb: arm for a glove, leg or shoe for socks; else any limb."""
    arm, leg, shoe = (LIP_LABELS.index(f"{side}-{part}") for part in ("arm", "leg", "shoe"))
    limb = np.isin(lip, [arm] if label == 3 else [leg, shoe])
    if not limb.any():
        limb = np.isin(lip, [arm, leg, shoe])
    if not limb.any():
        return np.full(lip.shape, np.inf)
    from scipy.ndimage import distance_transform_edt  # here: 15 MB that few need

    return np.asarray(distance_transform_edt(~limb), np.float64)
