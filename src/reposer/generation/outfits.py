"""What somebody wears, as far as a parsing map says it: classes of garments that donors can be matched by.

A generator dresses the source in the donor's label areas: where the donor's map has a skirt and the source
wears trousers, the picture shows a skirt under the label of somebody who wears none. Sleeves are left out on
purpose: the share of bare arm has no valley on Market-1501, so that any threshold would cut through noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reposer.data.parsing import LIP_LABELS
from reposer.structures import MISSING_LABEL

LOWER = ("not visible", "trousers", "shorts", "skirt", "dress", "jumpsuit")
UPPER = ("not visible", "top", "coat")

# Shares of the person's pixels. On Market-1501's 12,936 training images the largest lower garment has less
# than 5 % in 1 of 60 (cut off below the chest, or hidden by a bicycle).
VISIBLE = 0.05
HAT = 0.02
# Bare leg over bare leg and pants; pants are shorts above it: the valley between Market-1501's two humps.
BARE_LEGS = 0.15

_CHUNK = 2048  # maps counted at once


@dataclass(frozen=True, slots=True)
class Outfits:
    """Classes of N people."""

    lower: NDArray[np.int64]  # (N,) index into LOWER
    upper: NDArray[np.int64]  # (N,) index into UPPER; "top" too where a dress or jumpsuit covers the chest
    hat: NDArray[np.bool_]  # (N,)

    @property
    def classes(self) -> NDArray[np.int64]:
        """(N,) one number for each combination of the three."""
        return (self.lower * len(UPPER) + self.upper) * 2 + self.hat


def outfits(parsing: NDArray[np.uint8], rows: NDArray[np.int64]) -> Outfits:
    """Classes of the LIP-20 maps (all, H, W) at ``rows`` (N,); the maps may be a memory map."""
    areas = np.concatenate(
        [_areas(parsing[rows[i : i + _CHUNK]]) for i in range(0, len(rows), _CHUNK)] or [_areas(parsing[:0])]
    )
    area = dict(zip(LIP_LABELS, areas.T, strict=True))
    person = np.maximum(areas.sum(1) - area["background"], 1)
    legs = area["left-leg"] + area["right-leg"]
    garments = np.stack([area["pants"], area["skirt"], area["dress"], area["jumpsuits"]])
    bare = legs / np.maximum(legs + area["pants"], 1) > BARE_LEGS
    names = np.array([LOWER.index(name) for name in ("trousers", "skirt", "dress", "jumpsuit")])
    lower = names[garments.argmax(0)]
    lower = np.where((lower == LOWER.index("trousers")) & bare, LOWER.index("shorts"), lower)
    lower[garments.max(0) < VISIBLE * person] = LOWER.index("not visible")
    tops = area["upper-clothes"] + area["dress"] + area["jumpsuits"]
    upper = np.where(area["coat"] > tops, UPPER.index("coat"), UPPER.index("top"))
    upper[np.maximum(area["coat"], tops) < VISIBLE * person] = UPPER.index("not visible")
    return Outfits(lower.astype(np.int64), upper.astype(np.int64), area["hat"] > HAT * person)


def _areas(maps: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, H, W) -> (n, S) pixels of each label."""
    count = len(LIP_LABELS)
    pixels = maps.shape[1] * maps.shape[2]
    flat = np.where(maps == MISSING_LABEL, count, maps).reshape(len(maps), pixels).astype(np.int64)
    flat += (count + 1) * np.arange(len(maps))[:, None]
    counts = np.bincount(flat.ravel(), minlength=(count + 1) * len(maps))
    return counts.reshape(len(maps), count + 1)[:, :count].astype(np.float64)
