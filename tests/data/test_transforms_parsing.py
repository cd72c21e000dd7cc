"""Agreement of maps, and images transformed together with their maps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from reposer.data.transforms import ParsingDraws, draw_parsing_transforms, transform_parsing
from reposer.metrics.similarity import label_confusion, label_iou, mean_iou


def test_iou_is_sklearns():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, (3, 8, 8)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, 7, truth.shape)).astype(
        np.uint8
    )
    truth[0, 0] = 255
    known = truth != 255
    confusion = label_confusion(truth, predicted)
    expected = confusion_matrix(truth[known], predicted[known], labels=range(20))
    assert np.array_equal(confusion, expected)
    assert np.array_equal(
        confusion, sum(label_confusion(t, p) for t, p in zip(truth, predicted, strict=True))
    )
    theirs = jaccard_score(truth[known], predicted[known], labels=range(5), average=None)
    assert np.allclose(label_iou(confusion)[:5], theirs)
    assert np.isnan(label_iou(confusion)[5:]).all()  # predicted, but never true: no IoU, yet a cost to others
    assert mean_iou(confusion) == pytest.approx(theirs.mean())
    assert np.isnan(mean_iou(np.zeros((20, 20), np.int64)))
    with pytest.raises(ValueError, match="shapes"):
        label_confusion(truth, predicted[:2])


def _still(count, **changes):
    values = {"zoom": np.ones(count), "shift": np.zeros((count, 2)), "flip": np.zeros(count, bool)}
    values |= {"brightness": np.ones(count), "contrast": np.ones(count)}
    return ParsingDraws(**{**values, **changes})


def _pictures():
    rng = np.random.default_rng(1)
    images = torch.from_numpy(rng.integers(0, 256, (2, 3, 16, 8)).astype(np.uint8))
    maps = torch.from_numpy(rng.integers(0, 20, (2, 16, 8)).astype(np.uint8))
    maps[0, 0, 0] = 255
    return images, maps


def test_nothing_drawn_changes_nothing():
    images, maps = _pictures()
    same, labels = transform_parsing(images, maps, _still(2))
    assert torch.equal(same, images)
    assert torch.equal(labels, maps)


def test_a_mirrored_map_swaps_sides():
    images, maps = _pictures()
    mirrored, labels = transform_parsing(images, maps, _still(2, flip=np.array([True, False])))
    assert torch.equal(mirrored[0], images[0].flip(-1))
    assert torch.equal(mirrored[1], images[1])
    swap = {14: 15, 15: 14, 16: 17, 17: 16, 18: 19, 19: 18}
    expected = [[swap.get(v, v) for v in row] for row in maps[0].flip(-1).tolist()]
    assert labels[0].tolist() == expected
    assert torch.equal(labels[1], maps[1])


def test_image_and_map_move_alike():
    images, maps = torch.zeros(1, 3, 32, 16, dtype=torch.uint8), torch.zeros(1, 32, 16, dtype=torch.uint8)
    images[0, :, 8:20, 4:10], maps[0, 8:20, 4:10] = 200, 5
    draws = _still(1, zoom=np.array([1.3]), shift=np.array([[0.05, -0.04]]))
    moved, labels = transform_parsing(images, maps, draws)
    inside = moved[0, 0] > 100
    assert (inside != (labels[0] == 5)).sum() <= 0.1 * inside.sum()  # borders
    assert inside.sum() == pytest.approx(12 * 6 * 1.3**2, rel=0.15)
    small, outside = transform_parsing(images, maps, _still(1, zoom=np.array([0.5])))
    assert (outside[0, :6] == 255).all()
    assert (small[0, :, :6] == 0).all()


def test_light():
    images, maps = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8), torch.zeros(2, 4, 4, dtype=torch.uint8)
    images[:, :, 0] = 140  # mean 110
    light = _still(2, brightness=np.array([1.2, 1.0]), contrast=np.array([1.0, 0.5]))
    lit, _ = transform_parsing(images, maps, light)
    assert lit[0, 0, :2, 0].tolist() == [168, 120]
    assert lit[1, 0, :2, 0].tolist() == [125, 105]


def test_draws_depend_on_step_and_stay_in_range():
    a, again, other = (draw_parsing_transforms(64, 0.2, 0.1, 0.5, 0.3, 7, step) for step in (3, 3, 4))
    assert np.array_equal(a.zoom, again.zoom)
    assert not np.array_equal(a.zoom, other.zoom)
    assert np.array_equal(a[16:32].flip, a.flip[16:32])
    assert 1 / 1.2 <= a.zoom.min() < 0.95 < 1.05 < a.zoom.max() <= 1.2
    assert np.abs(a.shift).max() <= 0.1
    assert 0.25 < a.flip.mean() < 0.75
    assert min(a.brightness.min(), a.contrast.min()) >= 0.7
