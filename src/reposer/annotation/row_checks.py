"""Does a row of the manifest agree with itself, its image's name and the settings of its job?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from reposer.annotation.quality import FLAGS
from reposer.data.layouts.folder_scan import without_suffix
from reposer.structures import NUM_JOINTS, NUM_LABELS


def row_faults(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a row, each beginning with the field; its files are not looked at."""
    if row["left_out"]:
        full = [field for field in ("parsing", "mask", "keypoints") if row[field] is not None]
        yield from (f"{field}: the image was left out, and yet has it" for field in full)
        return
    stem = without_suffix(row["file"])
    for field, maker in (("parsing", "parser"), ("mask", "mask")):
        wanted, there = settings.get(maker, {}).get("name") != "none", row[field] is not None
        if there and not wanted:
            yield f"{field}: this job makes none"
        elif there and row[field] != f"{field}/{stem}.png":
            yield f"{field}: {row[field]} is not the place of this image's"
        elif wanted and not there and not (field == "mask" and _lacks(row, "mask")):
            yield f"{field}: is empty"
    yield from _number_faults(row)
    unknown = [flag for flag in row["flags"] if flag not in FLAGS]
    yield from (f"flags: {flag!r} is none" for flag in unknown)


def _number_faults(row: Mapping[str, Any]) -> Iterator[str]:
    """Counts that must add up."""
    pixels, points, scores = row["label_pixels"], row["keypoints"], row["joint_scores"]
    if row["parsing"] is not None:
        area = row["width"] * row["height"]
        if pixels is None or len(pixels) != NUM_LABELS or sum(pixels) != area:
            yield f"label_pixels: are not {area:,} pixels of {NUM_LABELS} labels"
    if (row["mask"] is None) != (row["mask_area"] is None):
        yield "mask_area: mask and area are not both there"
    elif row["mask_area"] is not None and not 0 <= row["mask_area"] <= 1:
        yield f"mask_area: {row['mask_area']} is no share"
    if points is None:
        return
    if len(points) != 2 * NUM_JOINTS or scores is None or len(scores) != NUM_JOINTS:
        yield f"keypoints: are not {NUM_JOINTS} joints with a score each"
    elif row["joints"] != sum(not math.isnan(x) for x in points[::2]):
        yield f"joints: {row['joints']} is not the number of joints that are there"


def _lacks(row: Mapping[str, Any], field: str) -> bool:
    """Whether the row says that the user has no usable file for it."""
    return any(problem["field"] == field for problem in row["problems"])
