"""How good predicted maps of a target are: mask IoU, and whether the garments are the source's.

A garment counts as worn where it has at least VISIBLE of the person's pixels, in the source and in the
prediction alike: a few stray pixels are neither a garment nor the loss of one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reposer.structures import MISSING_LABEL, NUM_LABELS

# Of LIP-20: hat, glove, sunglasses, upper-clothes, dress, coat, socks, pants, jumpsuits, scarf, skirt.
GARMENTS = (1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
VISIBLE = 0.01  # of the person's pixels


def mask_iou(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N,) pixels of both masks (N, H, W) over pixels of either; NaN where both are empty."""
    both = (predicted & truth).sum((1, 2))
    either = (predicted | truth).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def garments_kept(predicted: NDArray[np.uint8], source: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N,) share of the source's garments that the prediction has too; NaN for a source without one.

    Args:
        predicted, source: LIP-20 maps (N, H, W).
    """
    had, has = worn(source), worn(predicted)
    return np.where(had.any(1), (had & has).sum(1) / np.maximum(had.sum(1), 1), np.nan)


def garments_added(predicted: NDArray[np.uint8], source: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N,) share of the prediction's garments that the source does not have; 0 for one without garments."""
    had, has = worn(source), worn(predicted)
    return np.asarray((has & ~had).sum(1) / np.maximum(has.sum(1), 1), np.float64)


def worn(maps: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N, G) whether each of GARMENTS is worn, of LIP-20 maps (N, H, W)."""
    areas = np.stack([(maps == label).sum((1, 2)) for label in range(NUM_LABELS)], 1)
    person = np.maximum(((maps != 0) & (maps != MISSING_LABEL)).sum((1, 2)), 1)
    return np.asarray(areas[:, GARMENTS] >= np.maximum(VISIBLE * person, 1)[:, None])
