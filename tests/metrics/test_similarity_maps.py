"""Mask IoU and garments on maps that can be counted by eye."""

from __future__ import annotations

import numpy as np
import pytest

from reposer.metrics.similarity import (
    garments_added,
    garments_kept,
    label_confusion,
    mask_iou,
    merged_confusion,
    worn,
)


def maps(*rows: dict[int, int]) -> np.ndarray:
    """(N, 20, 20) maps with so many pixels of each label, the rest background."""
    built = np.zeros((len(rows), 400), np.uint8)
    for line, counts in zip(built, rows, strict=True):
        start = 0
        for label, count in counts.items():
            line[start : start + count] = label
            start += count
    return built.reshape(-1, 20, 20)


def test_mask_iou_by_hand():
    truth = np.zeros((3, 2, 2), bool)
    truth[0, 0] = truth[1] = True
    predicted = np.zeros((3, 2, 2), bool)
    predicted[0, :, 0] = True
    np.testing.assert_allclose(mask_iou(predicted, truth), [1 / 3, 0, np.nan])


def test_a_garment_counts_from_one_percent_of_the_person():
    seen = worn(maps({13: 195, 5: 2, 9: 1, 1: 2}))  # a person of 200 pixels: 2 are a percent
    assert np.flatnonzero(seen[0]).tolist() == [0, 3]  # hat, upper-clothes; the face is no garment
    assert not worn(maps({}, {255: 300})).any()


def test_kept_and_added_by_hand():
    source = maps({5: 100, 9: 100}, {5: 100, 12: 50}, {13: 50}, {5: 10})
    predicted = maps({5: 80, 9: 90}, {5: 100, 9: 50, 7: 50}, {5: 10}, {})
    assert garments_kept(predicted, source) == pytest.approx([1, 1 / 2, np.nan, 0], nan_ok=True)
    assert garments_added(predicted, source) == pytest.approx([0, 2 / 3, 1, 0])


def test_the_confusion_of_joined_labels_is_that_of_joined_maps():
    rng = np.random.default_rng(0)
    groups = np.array([0, 1, 1, 2, 0])
    truth, predicted = rng.integers(0, 5, (2, 3, 8, 8), dtype=np.uint8)
    joined = (groups[maps].astype(np.uint8) for maps in (truth, predicted))
    found = merged_confusion(label_confusion(truth, predicted, 5), groups)
    assert np.array_equal(found, label_confusion(*joined, 3))
