"""The Frechet distance against closed forms, scipy, torchmetrics and torch-fidelity; and its edges."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance

from reposer.errors import UserError
from reposer.metrics.set_scores import FeatureStatistics, bootstrap_error, frechet_distance, is_collapsed

D = 12


def _rows(seed, count, dimension=D, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dimension, dimension)) / np.sqrt(dimension)
    return rng.normal(size=(count, dimension)) @ mixing * scale + shift


def _statistics(rows):
    statistics = FeatureStatistics(rows.shape[1])
    statistics.update(rows)
    return statistics


def _distance(a, b):
    return frechet_distance(_statistics(a), _statistics(b))


def _by_square_root(a, b):
    """The textbook formula with scipy's matrix square root."""
    sa, sb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(sa @ sb)
    difference = a.mean(0) - b.mean(0)
    return float((difference @ difference + np.trace(sa) + np.trace(sb) - 2 * np.trace(root)).real)


def _gaussian_rows(mean, deviations):
    """2 D rows whose mean and (diagonal) covariance are exactly these."""
    dimension = len(mean)
    spread = np.diag(deviations) * np.sqrt((2 * dimension - 1) / 2)
    return np.concatenate([mean + spread, mean - spread])


def test_diagonal_gaussians_have_a_closed_form():
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, D)), rng.uniform(0.1, 3, (2, D))
    expected = ((means[0] - means[1]) ** 2).sum() + ((deviations[0] - deviations[1]) ** 2).sum()
    value = _distance(_gaussian_rows(means[0], deviations[0]), _gaussian_rows(means[1], deviations[1]))
    assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("first", "second"), [(200, 300), (13, 40), (200, 13)])
def test_equals_the_matrix_square_root(first, second):
    a, b = _rows(1, first), _rows(2, second, scale=2, shift=0.3)
    assert _distance(a, b) == pytest.approx(_by_square_root(a, b), rel=1e-6)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 500), (5, 9), (11, 12), (12, 13)])
def test_low_rank_equals_the_full_form(first, second):
    """Fewer rows than dimensions, against covariances with their zeros written out."""
    a, b = _rows(3, first), _rows(4, second, shift=0.5)

    def factor(rows):
        values, vectors = scipy.linalg.eigh(np.cov(rows, rowvar=False))
        return vectors * np.sqrt(np.clip(values, 0, None))

    overlap = scipy.linalg.svdvals(factor(a).T @ factor(b)).sum()
    trace = np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + trace - 2 * overlap
    assert _distance(a, b) == pytest.approx(expected, rel=1e-6)


def test_agrees_with_torchmetrics_and_torch_fidelity():
    class Tiny(torch.nn.Module):
        """Features of a picture: its pooled pixels."""

        num_features = 48

        def forward(self, images):
            return torch.nn.functional.adaptive_avg_pool2d(images.double() / 255, 4).flatten(1)

    generator = torch.Generator().manual_seed(0)
    sets = [
        torch.randint(0, top, (90, 3, 16, 16), dtype=torch.uint8, generator=generator) for top in (256, 200)
    ]
    metric = FrechetInceptionDistance(feature=Tiny(), antialias=False).set_dtype(torch.float64)
    metric.update(sets[0], real=True)
    metric.update(sets[1], real=False)
    a, b = (Tiny()(images).numpy() for images in sets)
    value = _distance(a, b)
    assert value == pytest.approx(metric.compute().item(), rel=1e-6)
    moments = [{"mu": x.mean(0), "sigma": np.cov(x, rowvar=False)} for x in (a, b)]
    fidelity = fid_statistics_to_metric(*moments, verbose=False)["frechet_inception_distance"]
    assert value == pytest.approx(fidelity, rel=1e-5)


@pytest.mark.parametrize("count", [2, 7, 12, 13, 100])
def test_a_set_against_itself_is_zero_and_order_is_free(count):
    rows = _rows(5, count, shift=10.0)
    other = _rows(6, 50, shift=9.0)
    assert 0 <= _distance(rows, rows) <= 1e-9
    assert 0 <= _distance(rows, rows[::-1]) <= 1e-9
    assert _distance(rows, other) == pytest.approx(_distance(other, rows), rel=1e-9)


@given(st.lists(st.integers(0, 100), max_size=6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_batches_and_merging_change_nothing(cuts, merged):
    rows, other = _rows(7, 100, shift=50.0), _statistics(_rows(8, 60, shift=49.0))
    streamed = FeatureStatistics(D)
    for part in np.split(rows, sorted(cuts)):
        if merged:
            streamed.merge(_statistics(part))
        else:
            streamed.update(part)
    assert streamed.count == 100
    assert frechet_distance(streamed, other) == pytest.approx(
        frechet_distance(_statistics(rows), other), rel=1e-9
    )


def test_a_large_mean_does_not_cancel_the_spread():
    rows = _rows(9, 400, scale=1e-3, shift=1e4)
    mean, factor = _statistics(rows).moments()
    np.testing.assert_allclose(mean, rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(factor.T @ factor, np.cov(rows, rowvar=False), rtol=1e-3, atol=1e-11)


@pytest.mark.parametrize("count", [2, 10, 100])
def test_collapsed_and_constant_sets_are_finite_and_named(count):
    one_picture = np.repeat(_rows(10, 1) * 1e3, count, axis=0)
    others = _rows(11, 80)
    for rows in (one_picture, np.zeros((count, D))):
        assert is_collapsed(_statistics(rows))
        expected = ((rows[0] - others.mean(0)) ** 2).sum() + np.trace(np.cov(others, rowvar=False))
        assert _distance(rows, others) == pytest.approx(expected, rel=1e-9)
        assert 0 <= _distance(rows, rows) <= 1e-9
    assert not is_collapsed(_statistics(others))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused(bad):
    statistics = _statistics(_rows(12, 5))
    rows = _rows(13, 4)
    rows[2, 3] = bad
    with pytest.raises(UserError, match="features of image 7 are not finite"):
        statistics.update(rows)
    assert statistics.count == 5


def test_one_image_is_too_few():
    with pytest.raises(UserError, match="at least 2 images"):
        _distance(_rows(14, 1), _rows(15, 9))


def test_state_travels_through_arrays():
    for count in (5, 40):
        statistics, other = _statistics(_rows(16, count)), _statistics(_rows(17, 30))
        again = FeatureStatistics.from_state(statistics.state())
        assert frechet_distance(again, other) == frechet_distance(statistics, other)
        again.update(_rows(18, 3))
        statistics.update(_rows(18, 3))
        assert frechet_distance(again, other) == frechet_distance(statistics, other)


@pytest.mark.parametrize(("count", "people"), [(8, None), (60, None), (60, 15)])
def test_bootstrap_error_equals_drawing_rows_literally(count, people):
    rows, reference = _rows(19, count), _statistics(_rows(20, 200, shift=1.0))
    pids = None if people is None else np.arange(count) % people
    from reposer.metrics.intervals import bootstrap_weights

    values = []
    for weights in bootstrap_weights(count, pids, 20, seed=3):
        values.append(frechet_distance(_statistics(np.repeat(rows, weights.astype(int), axis=0)), reference))
    error = bootstrap_error(rows, reference, pids, seed=3, repeats=20)
    assert error == pytest.approx(np.std(values, ddof=1), rel=1e-5)


def test_bootstrap_error_is_the_spread_over_new_samples():
    reference = _statistics(_rows(21, 2000))
    mixing = np.random.default_rng(22).normal(size=(D, D)) / 3
    rng = np.random.default_rng(23)
    samples = [rng.normal(size=(300, D)) @ mixing for _ in range(40)]
    spread = np.std([frechet_distance(_statistics(s), reference) for s in samples], ddof=1)
    errors = [bootstrap_error(s, reference, repeats=40, seed=i) for i, s in enumerate(samples[:10])]
    assert np.median(errors) == pytest.approx(spread, rel=0.35)


def test_one_person_has_no_bootstrap_error():
    reference = _statistics(_rows(24, 50))
    assert bootstrap_error(_rows(25, 20), reference, np.full(20, 4)) is None
