"""KID and Inception Score against literal loops, torchmetrics and torch-fidelity; and their edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from reposer.errors import UserError
from reposer.metrics import set_scores

pytestmark = [
    pytest.mark.filterwarnings("ignore:Metric .* will save all extracted features:UserWarning"),
    pytest.mark.filterwarnings("ignore:std.*degrees of freedom:UserWarning"),
]
D = 6


def _rows(seed, count, shift=0.0, dimension=D):
    return np.random.default_rng(seed).normal(size=(count, dimension)) + shift


def _literal_kid(x, y):
    """Unbiased MMD, pair by pair."""

    def kernel(a, b):
        return (sum(float(u) * float(v) for u, v in zip(a, b, strict=True)) / D + 1) ** 3

    n, m = len(x), len(y)
    xx = [kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j]
    yy = [kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j]
    xy = [kernel(a, b) for a in x for b in y]
    return math.fsum(xx) / len(xx) + math.fsum(yy) / len(yy) - 2 * math.fsum(xy) / len(xy)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (9, 14), (30, 7)])
def test_kid_equals_the_loop_over_pairs(first, second):
    x, y = _rows(0, first), _rows(1, second, 0.4)
    assert set_scores.kernel_distance(x, y) == pytest.approx(_literal_kid(x, y), rel=1e-9)


def test_kid_is_what_torchmetrics_and_torch_fidelity_estimate(monkeypatch):
    """One subset of everything is this number; their mean over random subsets scatters around it."""
    x, y = _rows(2, 60), _rows(3, 60, 0.5)
    value = set_scores.kernel_distance(x, y)
    tensors = [torch.from_numpy(rows) for rows in (x, y)]
    key = "kernel_inception_distance_mean"
    whole = kid_features_to_metric(*tensors, kid_subsets=1, kid_subset_size=60, verbose=False)
    assert value == pytest.approx(whole[key], rel=1e-9)
    many = kid_features_to_metric(*tensors, kid_subsets=2000, kid_subset_size=20, verbose=False)
    assert value == pytest.approx(many[key], rel=0.05)

    class Rows(torch.nn.Module):
        num_features = D

        def forward(self, images):
            return images.double()

    metric = KernelInceptionDistance(feature=Rows(), subsets=1, subset_size=60).set_dtype(torch.float64)
    metric.update(tensors[1], real=True)
    metric.update(tensors[0], real=False)
    assert value == pytest.approx(float(metric.compute()[0]), rel=1e-6)


def test_kid_in_blocks_and_in_any_order_is_the_same(monkeypatch):
    x, y = _rows(4, 50), _rows(5, 40, 0.2)
    whole = set_scores.kernel_distance(x, y)
    monkeypatch.setattr(set_scores, "_BLOCK", 90)
    assert set_scores.kernel_distance(x[::-1], np.roll(y, 7, axis=0)) == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("people", [None, 5])
def test_kid_error_leaves_out_one_cluster_at_a_time(people):
    x, y = _rows(6, 14), _rows(7, 11, 0.3)
    pids = np.arange(14) % people if people else np.arange(14)
    values = [_literal_kid(x[pids != pid], y) for pid in np.unique(pids)]
    count = len(values)
    expected = math.sqrt((count - 1) / count * sum((v - sum(values) / count) ** 2 for v in values))
    error = set_scores.kernel_distance_error(x, y, pids if people else None)
    assert error == pytest.approx(expected, rel=1e-9)
    assert set_scores.kernel_distance_error(x, y, np.zeros(14, int)) is None


def _literal_score(logits, parts):
    """exp of the mean Kullback-Leibler divergence, image by image and class by class."""
    scores = []
    for part in sorted(set(parts.tolist())):
        rows = []
        for row in logits[parts == part].tolist():
            top = max(row)
            total = math.fsum(math.exp(v - top) for v in row)
            rows.append([math.exp(v - top) / total for v in row])
        mean = [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]
        divergences = [math.fsum(p * math.log(p / q) for p, q in zip(row, mean, strict=True)) for row in rows]
        scores.append(math.exp(math.fsum(divergences) / len(rows)))
    return scores


def test_inception_score_equals_the_loop_and_torch_fidelity():
    logits = _rows(8, 47, dimension=9) * 2
    parts = np.arange(10).repeat(np.diff(np.arange(11) * 47 // 10))
    scores = set_scores.inception_score(logits, parts)
    np.testing.assert_allclose(scores, _literal_score(logits, parts), rtol=1e-9)
    fidelity = isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=False)
    assert scores.mean() == pytest.approx(fidelity["inception_score_mean"], rel=1e-9)
    assert scores.std() == pytest.approx(fidelity["inception_score_std"], rel=1e-9)


def test_inception_score_of_one_part_equals_torchmetrics():
    logits = _rows(9, 30, dimension=8)

    class Logits(torch.nn.Module):
        def forward(self, images):
            return images.double()

    metric = InceptionScore(feature=Logits(), splits=1).set_dtype(torch.float64)
    metric.update(torch.from_numpy(logits))
    (score,) = set_scores.inception_score(logits, np.zeros(30, int))
    assert score == pytest.approx(float(metric.compute()[0]), rel=1e-6)


@pytest.mark.parametrize("people", [None, 7])
def test_inception_score_error_leaves_out_one_cluster_at_a_time(people):
    logits, parts = _rows(10, 40, dimension=5), np.arange(40) % 10
    pids = np.arange(40) // 6 if people else np.arange(40)
    values = [np.mean(_literal_score(logits[pids != p], parts[pids != p])) for p in np.unique(pids)]
    expected = math.sqrt((len(values) - 1) * np.var(values))
    error = set_scores.inception_score_error(logits, parts, pids if people else None)
    assert error == pytest.approx(expected, rel=1e-6)


def test_parts_depend_on_the_pictures_alone():
    images = torch.randint(0, 256, (43, 3, 4, 2), dtype=torch.uint8)
    parts = set_scores.parts_of(set_scores.pixel_hashes(images))
    assert sorted(np.bincount(parts)) == [4] * 7 + [5] * 3
    order = torch.randperm(43)
    shuffled = [h for i in order.split(9) for h in set_scores.pixel_hashes(images[i])]
    np.testing.assert_array_equal(set_scores.parts_of(shuffled), parts[order.numpy()])


def test_collapsed_sets_have_plain_values():
    same = np.repeat(_rows(11, 1) * 5, 30, axis=0)
    parts = np.arange(30) % 10
    assert (set_scores.inception_score(same, parts) == 1).all()
    assert (set_scores.inception_score(np.zeros((30, 4)), parts) == 1).all()
    assert set_scores.kernel_distance(same, same) == pytest.approx(0, abs=1e-6)
    sure = np.eye(5).repeat(6, axis=0) * 2000  # probabilities that underflow to 0
    assert set_scores.inception_score(sure, np.zeros(30, int))[0] == pytest.approx(5, rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_or_too_few_is_refused(bad):
    rows = _rows(12, 8)
    rows[5, 1] = bad
    for call in (
        lambda: set_scores.kernel_distance(rows, _rows(13, 4)),
        lambda: set_scores.kernel_distance(_rows(13, 4), rows),
        lambda: set_scores.inception_score(rows, np.zeros(8, int)),
    ):
        with pytest.raises(UserError, match="features of image 5 are not finite"):
            call()
    with pytest.raises(UserError, match="at least 2 images"):
        set_scores.kernel_distance(_rows(14, 1), _rows(15, 9))
