"""How well two parsing maps agree: the confusion of their labels, and intersection over union."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reposer.structures import MISSING_LABEL, NUM_LABELS


def label_confusion(
    truth: NDArray[np.uint8], predicted: NDArray[np.uint8], labels: int = NUM_LABELS
) -> NDArray[np.int64]:
    """(L, L) pixels by (true label, predicted label) over maps of one shape; MISSING_LABEL counts nowhere.

    Confusions of parts add up to that of the whole.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"maps of shapes {truth.shape} and {predicted.shape}")
    known = (truth != MISSING_LABEL) & (predicted != MISSING_LABEL)
    index = truth[known].astype(np.int64) * labels + predicted[known]
    return np.bincount(index, minlength=labels * labels).reshape(labels, labels)


def label_iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """(L,) pixels of both over pixels of either, for each label; NaN for a label that the truth lacks."""
    both = np.diag(confusion).astype(np.float64)
    true = confusion.sum(1)
    either = true + confusion.sum(0) - both
    return np.where(true > 0, both / np.maximum(either, 1), np.nan)


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean of :func:`label_iou` over the labels that the truth has; NaN where it has none."""
    values = label_iou(confusion)
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
