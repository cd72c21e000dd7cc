"""Flags on annotations that deserve a look; nothing is left out because of one.

Thresholds are wide: on 2,000 of Market-1501's training crops masks cover 18 to 96 % of the image, 99 of 100
cover 25 to 87 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reposer.annotation.annotators import Annotation
from reposer.data.keypoints import has_torso

SMALL_MASK, LARGE_MASK = 0.10, 0.90  # share of the image
MIN_AGREEMENT = 0.60  # intersection over union of mask and map
EMPTY_PARSING = 0.01  # share of the image
MIN_JOINTS = 6  # fewer say nothing about a pose (keypoints.MIN_COMMON_JOINTS)

# What each flag says; the page and docs/annotate.md print it.
FLAGS: dict[str, str] = {
    "empty-parsing": f"the map calls less than {EMPTY_PARSING:.0%} of the image a person",
    "small-mask": f"the mask covers less than {SMALL_MASK:.0%} of the image",
    "large-mask": f"the mask covers more than {LARGE_MASK:.0%} of the image",
    "nobody-found": "no detector found a person and the map is empty: the mask is the whole image",
    "mask-disagrees": f"mask and map overlap by less than {MIN_AGREEMENT:.0%} (intersection over union)",
    "missing-torso": "a shoulder or a hip is missing: the image takes part in no pair of the official rule",
    "few-joints": f"fewer than {MIN_JOINTS} joints",
    "several-people": "a detector saw more than one person",
    "at-border": "the person's box ends at the photo's border",
    "overlapped": "more than half of the person's box lies in another's",
}


@dataclass(frozen=True, slots=True)
class Quality:
    """Numbers and flags of one annotation; None where the annotation is not there."""

    mask_area: float | None  # share of the image
    agreement: float | None  # intersection over union of mask and map; None for a mask made from the map
    joints: int | None  # that are there
    flags: tuple[str, ...]


def measure(annotation: Annotation) -> Quality:
    """The numbers of an annotation, and the flags that follow from them."""
    mask, parsing, pose = annotation.mask, annotation.parsing, annotation.keypoints
    flags = []
    if parsing is not None and float((parsing != 0).mean()) < EMPTY_PARSING:
        flags.append("empty-parsing")
    area = None if mask is None else float(mask.mean())
    if annotation.mask_source == "everything":
        flags.append("nobody-found")
    elif area is not None:
        flags += ["small-mask"] * (area < SMALL_MASK) + ["large-mask"] * (area > LARGE_MASK)
    agreement = None
    if mask is not None and parsing is not None and annotation.mask_source in ("detector", "folder"):
        agreement = intersection_over_union(mask, parsing != 0)
        flags += ["mask-disagrees"] * (agreement < MIN_AGREEMENT)
    joints = None
    if pose is not None:
        joints = int((~np.isnan(pose[:, 0])).sum())
        flags += ["missing-torso"] * (not has_torso(pose)) + ["few-joints"] * (joints < MIN_JOINTS)
    flags += ["several-people"] * (annotation.people > 1)
    return Quality(area, agreement, joints, tuple(flags))


def intersection_over_union(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Of two masks of one shape; 1 when both are empty."""
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0
