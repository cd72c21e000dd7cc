"""KISSME and XQDA against enumerated pairs, algebra, planted subspaces, and data too poor to learn from."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.linalg import inv
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from reposer.errors import UserError
from reposer.reid.metric_learners import (
    KISSME,
    XQDA,
    _random_negatives,
    principal_components,
    sample_views,
    solve_published,
    view_covariances,
)
from reposer.reid.quadratic import PairStatistics, condition_number, pair_statistics, spectrum_above


def _people(seed, count=240, size=12, people=30, cameras=4, signal=6, noise=0.6):
    """Identities differ in the first ``signal`` dimensions, everything else is noise."""
    rng = np.random.default_rng(seed)
    centers = np.zeros((people + 1, size))
    centers[:, :signal] = rng.normal(size=(people + 1, signal))
    pids = rng.integers(1, people + 1, count)
    return centers[pids] + noise * rng.normal(size=(count, size)), pids, rng.integers(1, cameras, count)


def _enumerate(x, pids, camids, cross_camera=True):
    sums, counts = [np.zeros((x.shape[1],) * 2) for _ in range(2)], [0, 0]
    for i, j in combinations(range(len(x)), 2):
        if cross_camera and camids[i] == camids[j]:
            continue
        kind = int(pids[i] != pids[j])
        sums[kind] += np.outer(x[i] - x[j], x[i] - x[j])
        counts[kind] += 1
    return sums[0] / counts[0], sums[1] / counts[1], counts


@pytest.mark.parametrize("cross_camera", [True, False])
def test_pair_statistics_equal_enumerated_pairs(cross_camera):
    x, pids, camids = _people(0)
    x -= x.mean(axis=0)
    similar, dissimilar, counts = _enumerate(x, pids, camids, cross_camera)
    ours = pair_statistics(x, pids, camids, cross_camera=cross_camera)
    assert [ours.similar_pairs, ours.dissimilar_pairs] == counts
    np.testing.assert_allclose(ours.similar, similar, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ours.dissimilar, dissimilar, rtol=1e-12, atol=1e-12)


def test_view_covariances_equal_enumerated_pairs():
    x, pids, _ = _people(1, count=90, people=8)
    g, p, g_pids, p_pids = x[:40], x[40:], pids[:40], pids[40:]
    sums, counts = [np.zeros((12, 12)) for _ in range(2)], [0, 0]
    for i in range(40):
        for j in range(50):
            kind = int(g_pids[i] != p_pids[j])
            sums[kind] += np.outer(g[i] - p[j], g[i] - p[j])
            counts[kind] += 1
    similar, dissimilar, pairs = view_covariances(g, g_pids, p, p_pids)
    assert list(pairs) == counts
    np.testing.assert_allclose(similar, sums[0] / counts[0], atol=1e-12)
    np.testing.assert_allclose(dissimilar, sums[1] / counts[1], atol=1e-12)


def test_sampled_views_pair_one_person_across_cameras():
    _, pids, camids = _people(2)
    first, second = sample_views(pids, camids, np.random.default_rng(0))
    assert (pids[first] == pids[second]).all()
    assert (camids[first] != camids[second]).all()
    assert len(np.unique(np.concatenate([first, second]))) == 2 * len(first)
    again = sample_views(pids, camids, np.random.default_rng(0))
    np.testing.assert_array_equal(first, again[0])


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_xqda_solves_its_eigenproblem_and_its_closed_form_is_the_published_one(ridge):
    x, pids, camids = _people(3)
    metric = XQDA(ridge).fit(x, pids, camids)
    similar, dissimilar, _ = _enumerate(x, pids, camids)
    similar = similar + ridge * np.trace(similar) / 12 * np.eye(12)
    v, w = metric.components_, metric.eigenvalues_
    np.testing.assert_allclose(v.T @ similar @ v, np.eye(len(w)), atol=1e-9)
    np.testing.assert_allclose(v.T @ dissimilar @ v, np.diag(w), atol=1e-9)
    assert (w > 1).all()
    published = inv(v.T @ similar @ v) - inv(v.T @ dissimilar @ v)
    np.testing.assert_allclose(np.diag(metric.weights_), published, atol=1e-9)


@pytest.mark.parametrize(
    "metric", [XQDA(), KISSME(), KISSME(5), XQDA(reference=True), KISSME(5, reference=True)]
)
def test_distance_is_the_quadratic_form(metric):
    x, pids, camids = _people(4)
    metric = clone(metric).fit(x, pids, camids)
    q, g = x[:7], x[7:30]
    form = metric.components_ @ np.diag(metric.weights_) @ metric.components_.T
    difference = q[:, None] - g[None]
    exact = np.einsum("qgd,de,qge->qg", difference, form, difference)
    np.testing.assert_allclose(metric.distance(q, g), exact, atol=1e-5 * np.abs(exact).max())
    if (metric.weights_ >= 0).all():
        z_q, z_g = metric.transform(q).astype(np.float64), metric.transform(g).astype(np.float64)
        squared = ((z_q[:, None] - z_g[None]) ** 2).sum(axis=2)
        np.testing.assert_allclose(squared, exact, atol=1e-5 * np.abs(exact).max())


def test_kissme_without_pca_and_ridge_ignores_affine_maps():
    x, pids, camids = _people(5)
    a = np.random.default_rng(0).normal(size=(12, 12)) + 3 * np.eye(12)
    plain = KISSME(None, 0.0).fit(x, pids, camids)
    mapped = KISSME(None, 0.0).fit(x @ a + 7, pids, camids)
    expected = plain.distance(x[:20], x[20:60])
    np.testing.assert_allclose(
        mapped.distance(x[:20] @ a + 7, x[20:60] @ a + 7), expected, rtol=1e-4, atol=1e-4
    )


def test_kissme_is_the_difference_of_inverses_where_that_is_positive():
    """With every direction separating persons, dropping w <= 1 drops nothing: M = inv(S) - inv(T)."""
    x, pids, camids = _people(6, signal=12, noise=0.3)
    metric = KISSME(None, 0.0).fit(x, pids, camids)
    similar, dissimilar, _ = _enumerate(x, pids, camids)
    assert len(metric.weights_) == 12
    ours = metric.components_ @ np.diag(metric.weights_) @ metric.components_.T
    np.testing.assert_allclose(ours, inv(similar) - inv(dissimilar), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("metric", [XQDA(), KISSME(6), KISSME()])
def test_scale_rotation_and_shift_change_nothing(metric):
    x, pids, camids = _people(7)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    plain = clone(metric).fit(x, pids, camids)
    moved = clone(metric).fit(40 * x @ rotation - 3, pids, camids)
    assert len(moved.weights_) == len(plain.weights_)
    a, b = (
        plain.distance(x[:20], x[20:60]),
        moved.distance(40 * x[:20] @ rotation - 3, 40 * x[20:60] @ rotation - 3),
    )
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_more_features_than_images_is_the_same_metric_as_in_full():
    """200 features of 90 images: solved in their span, compared with the full generalized problem."""
    x, pids, camids = _people(8, count=90, size=200, people=10)
    metric = XQDA().fit(x, pids, camids)
    similar, dissimilar, _ = _enumerate(x, pids, camids)
    similar = similar + 0.1 * np.trace(similar) / 200 * np.eye(200)
    v, w = metric.components_, metric.eigenvalues_
    np.testing.assert_allclose(dissimilar @ v, similar @ v * w, atol=1e-8)
    assert len(w) == (np.linalg.eigvals(np.linalg.solve(similar, dissimilar)).real > 1).sum()


@pytest.mark.parametrize("size", [12, 200])
def test_kissme_without_pca_and_xqda_are_one_metric(size):
    """Also with more features than images, where both are solved in the span of the images."""
    x, pids, camids = _people(20, count=90, size=size, people=10)
    kissme, xqda = KISSME(None).fit(x, pids, camids), XQDA().fit(x, pids, camids)
    assert kissme.ridge_ == xqda.ridge_
    assert kissme.n_components_ == min(size, 90)
    np.testing.assert_array_equal(kissme.distance(x[:9], x[9:30]), xqda.distance(x[:9], x[9:30]))


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("least", [-1e9, 0.0, 0.7, 1e9])
def test_the_upper_end_of_a_spectrum_equals_numpys(size, least):
    matrix = np.random.default_rng(21).normal(size=(size, size))
    matrix = matrix + matrix.T
    every, _ = np.linalg.eigh(matrix)
    values, vectors = spectrum_above(np.asfortranarray(np.tril(matrix)), least)
    np.testing.assert_allclose(values, every[every > least][::-1], atol=1e-12)
    assert vectors.shape == (size, len(values))
    np.testing.assert_allclose(matrix @ vectors, vectors * values, atol=1e-12)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(len(values)), atol=1e-12)


@pytest.mark.parametrize("learner", [XQDA(), KISSME(40)])
def test_planted_subspace_is_found(learner):
    """VIPeR-like: 316 people, one image in each of two cameras, 5 of 60 dimensions tell who it is."""
    rng = np.random.default_rng(9)
    planted = np.linalg.qr(rng.normal(size=(60, 60)))[0][:, :5]
    spread = np.linspace(1, 5, 60)  # loud nuisance that Euclid follows

    def views(people):
        who = rng.normal(size=(people, 5)) @ planted.T
        nuisance = [rng.normal(size=(people, 60)) * spread for _ in range(2)]
        return [6 * who + n - n @ planted @ planted.T + 0.3 * rng.normal(size=n.shape) for n in nuisance]

    a, b = views(316)
    pids = np.tile(np.arange(1, 317), 2)
    camids = np.repeat([1, 2], 316)
    metric = clone(learner).fit(np.concatenate([a, b]), pids, camids)
    strongest = np.linalg.qr(metric.components_[:, np.argsort(-metric.weights_)[:5]])[0]
    cosines = np.linalg.svd(planted.T @ strongest, compute_uv=False)
    probe, gallery = views(100)

    def rank1(distance):
        return (np.argmin(distance, axis=1) == np.arange(100)).mean()

    assert rank1(metric.distance(probe, gallery)) > 0.9
    euclid = ((probe[:, None] - gallery[None]) ** 2).sum(axis=2)
    assert rank1(euclid) < 0.6
    if isinstance(learner, XQDA):  # KISSME's principal components may cut the subspace
        assert cosines.min() > 0.9


def test_reference_procedures_depend_on_the_seed_only():
    x, pids, camids = _people(10)
    for learner in (XQDA(reference=True, seed=1), KISSME(6, reference=True, seed=1)):
        first, again = clone(learner).fit(x, pids, camids), clone(learner).fit(x, pids, camids)
        np.testing.assert_array_equal(first.components_, again.components_)
        other = clone(learner).set_params(seed=2).fit(x, pids, camids)
        assert not np.array_equal(other.weights_, first.weights_)


def test_reference_xqda_is_the_published_svd():
    x, pids, camids = _people(11)
    metric = XQDA(reference=True, seed=3).fit(x, pids, camids)
    first, second = sample_views(pids, camids, np.random.default_rng(3))
    similar, dissimilar, _ = view_covariances(x[first], pids[first], x[second], pids[second])
    similar = similar + 0.001 * np.eye(12)
    u, s, _ = np.linalg.svd(np.linalg.inv(similar) @ dissimilar)
    u = u[:, s > 1]
    published = u @ (inv(u.T @ similar @ u) - inv(u.T @ dissimilar @ u)) @ u.T
    ours = metric.components_ @ np.diag(metric.weights_) @ metric.components_.T
    np.testing.assert_allclose(ours, published, atol=1e-8)


def test_reference_kissme_samples_every_tenth_pair_and_clips_as_the_toolbox():
    """Koestinger's code: where inv(S) - inv(T) is not positive, eigenvalues <= 1e-10 become 1e-6."""
    x, pids, camids = _people(22, count=400, signal=3, noise=1.0)
    metric = KISSME(None, reference=True, seed=4).fit(x, pids, camids)
    _, _, (positives, negatives) = _enumerate(x, pids, camids)
    assert metric.similar_pairs_ == metric.dissimilar_pairs_ == -(-positives // 10) < negatives
    v, w = metric.components_, metric.weights_
    np.testing.assert_allclose(v.T @ v, np.eye(12), atol=1e-10)
    assert (w == 1e-6).sum() > 0  # nine dimensions tell nothing
    assert ((w == 1e-6) | (w > 1e-10)).all()
    assert metric.ridge_ == 0


def test_reference_kissme_takes_all_pairs_where_a_tenth_spans_too_little():
    """Two cameras and an image in each, as VIPeR: a tenth of 40 pairs spans no 12 components."""
    rng = np.random.default_rng(31)
    pids, camids = np.repeat(np.arange(1, 41), 2), np.tile([1, 2], 40)
    x = rng.normal(size=(41, 12))[pids] + 0.5 * rng.normal(size=(80, 12))
    metric = KISSME(None, reference=True, seed=4).fit(x, pids, camids)
    assert metric.similar_pairs_ == metric.dissimilar_pairs_ == 40
    v, w = metric.components_, metric.weights_
    a, b = x[::2] - x[1::2], np.zeros((12, 12))
    sampled = _random_negatives(pids, camids, 40, np.random.default_rng(4))
    for i, j in sampled:
        assert pids[i] != pids[j]
        assert camids[i] != camids[j]
        b += np.outer(x[i] - x[j], x[i] - x[j]) / 40
    values, vectors = np.linalg.eigh(inv(a.T @ a / 40) - inv(b))
    if values.min() <= 0:
        values = np.where(values <= 1e-10, 1e-6, values)
    np.testing.assert_allclose(v @ np.diag(w) @ v.T, vectors @ np.diag(values) @ vectors.T, atol=1e-8)
    tenth = KISSME(4, reference=True, seed=4).fit(x, pids, camids)  # 40 pairs are ten times four components
    assert tenth.similar_pairs_ == 4


def test_reference_kissme_is_a_sample_of_the_exact_metric():
    x, pids, camids = _people(23, count=900, signal=12, noise=0.5)
    learners = KISSME(None, reference=True, seed=4), KISSME(None, 0.0)
    fitted = [learner.fit(x, pids, camids) for learner in learners]
    sample, exact = (m.components_ @ np.diag(m.weights_) @ m.components_.T for m in fitted)
    assert 0 < np.linalg.norm(sample - exact) < 0.15 * np.linalg.norm(exact)


@pytest.mark.parametrize("positive", [True, False])
def test_the_published_step_to_a_positive_form_by_hand(positive):
    """S and T diagonal: inv(S) - inv(T) is, too."""
    similar, dissimilar = np.diag([1.0, 0.5, 0.25]), np.diag([4.0, 2.0, 0.5 if positive else 0.2])
    solution = solve_published(PairStatistics(similar, dissimilar, 7, 9), 0.0)
    form = solution.directions @ np.diag(solution.weights) @ solution.directions.T
    np.testing.assert_allclose(form, np.diag([0.75, 1.5, 2.0 if positive else 1e-6]), atol=1e-12)
    assert solution.pairs == (7, 9)


def test_scikit_learn_conventions():
    metric = KISSME(64, ridge=0.2, seed=5)
    assert metric.get_params() == {
        "n_components": 64,
        "ridge": 0.2,
        "cross_camera": True,
        "reference": False,
        "seed": 5,
    }
    x, pids, camids = _people(12)
    before = x.copy()
    assert metric.fit(x, pids, camids) is metric
    np.testing.assert_array_equal(x, before)
    assert not hasattr(clone(metric), "components_")
    with pytest.raises(NotFittedError):
        XQDA().transform(x)
    with pytest.raises(UserError, match="features of 5 numbers for a metric learned on 12"):
        metric.transform(x[:, :5])


def test_junk_and_distractors_teach_nothing():
    x, pids, camids = _people(13)
    extra = np.random.default_rng(0).normal(size=(40, 12)) * 9
    labels = np.repeat([-1, 0], 20)
    plain = XQDA().fit(x, pids, camids)
    more = XQDA().fit(np.concatenate([x, extra]), np.append(pids, labels), np.append(camids, labels + 5))
    np.testing.assert_array_equal(plain.components_, more.components_)


def test_condition_number_of_known_matrices():
    assert condition_number(np.diag([1.0, 10.0, 1000.0])) == pytest.approx(1000)
    assert condition_number(np.diag([1.0, 0.0])) == float("inf")
    hilbert = 1 / (1 + np.add.outer(np.arange(6.0), np.arange(6.0)))
    assert condition_number(hilbert) == pytest.approx(np.linalg.cond(hilbert, 1), rel=0.5)


def test_principal_components_equal_a_plain_svd_also_when_wide():
    x = np.random.default_rng(14).normal(size=(30, 50)) * np.linspace(0.2, 3, 50)
    for rows in (x, x.T[:, :20]):
        rows = rows - rows.mean(axis=0)
        ours = principal_components(rows, 4)
        plain = np.linalg.svd(rows, full_matrices=False)[2][:4].T
        np.testing.assert_allclose(np.abs((ours * plain).sum(axis=0)), 1, atol=1e-9)
    assert principal_components(np.outer(np.arange(-2.0, 3), np.ones(7)), 5).shape == (7, 1)


POOR = {
    "two pairs of 64 features": lambda x, p, c: (x[:4], [1, 1, 2, 2], [1, 2, 1, 2]),
    "as many images as features": lambda x, p, c: (x[:64], p[:64], c[:64]),
    "ten times as many": lambda x, p, c: (x, p, c),
    "constant columns": lambda x, p, c: (np.where(np.arange(64) < 40, 3.0, x), p, c),
    "repeated rows": lambda x, p, c: (
        np.repeat(x[:100], 3, axis=0),
        np.repeat(p[:100], 3),
        np.tile([1, 2, 3], 100),
    ),
    "one copied column": lambda x, p, c: (np.concatenate([x[:, :1]] * 2 + [x[:, 1:63]], axis=1), p, c),
}


@pytest.mark.parametrize("name", POOR)
@pytest.mark.parametrize("learner", [XQDA(), KISSME(), KISSME(None)])
def test_poor_data_give_finite_positive_metrics(name, learner):
    """Plain KISSME on such data has condition numbers of 1e18 and entries of 1e16."""
    x, pids, camids = _people(15, count=640, size=64, people=40, signal=20)
    metric = clone(learner).fit(*map(np.asarray, POOR[name](x, pids, camids)))
    form = metric.components_ @ np.diag(metric.weights_) @ metric.components_.T
    assert np.isfinite(form).all()
    assert np.abs(form).max() < 1e6
    assert np.linalg.eigvalsh(form).min() > -1e-9 * np.abs(form).max()
    assert np.isfinite(metric.condition_number_)
    assert metric.condition_number_before_ >= metric.condition_number_ > 1
    assert metric.ridge_ > 0


@pytest.mark.parametrize("people", [2, 3, 5, 8, 16, 32, 64, 160])  # a pair each: from 2 to 10 times 16
@pytest.mark.parametrize("learner", [XQDA(), KISSME(), KISSME(None)])
def test_any_number_of_pairs_gives_a_finite_positive_metric(people, learner):
    rng = np.random.default_rng(people)
    pids = np.repeat(np.arange(1, people + 1), 2)
    x = rng.normal(size=(people + 1, 16))[pids] + 0.1 * rng.normal(size=(2 * people, 16))
    metric = clone(learner).fit(x, pids, np.tile([1, 2], people))
    form = metric.components_ @ np.diag(metric.weights_) @ metric.components_.T
    assert np.isfinite(form).all()
    assert 0 < np.abs(form).max() < 1e6
    assert np.linalg.eigvalsh(form).min() > -1e-9 * np.abs(form).max()
    assert np.isfinite(metric.condition_number_)


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("learner", [XQDA, KISSME])
def test_labels_without_pairs_are_named(learner, reference):
    x, pids, camids = _people(16)
    metric = learner(reference=reference)
    with pytest.raises(UserError, match="two cameras"):
        metric.fit(x, pids, np.ones_like(camids))
    with pytest.raises(UserError, match=r"one person only|of two persons|two people"):
        metric.fit(x, np.ones_like(pids), camids)
    with pytest.raises(UserError, match="only junk"):
        metric.fit(x, np.zeros_like(pids), camids)
    with pytest.raises(UserError, match="row 3 holds NaN"):
        metric.fit(np.where(np.arange(240)[:, None] == 3, np.nan, x), pids, camids)
    with pytest.raises(UserError, match="239 pids"):
        metric.fit(x, pids[1:], camids)


def test_one_camera_can_be_learned_from_when_asked():
    x, pids, _ = _people(17)
    metric = XQDA(cross_camera=False).fit(x, pids, np.ones_like(pids))
    assert metric.similar_pairs_ == sum(int(n * (n - 1) // 2) for n in np.bincount(pids))


def test_singular_without_ridge_is_an_error():
    x, pids, camids = _people(18, count=8, size=12, people=3)
    with pytest.raises(UserError, match="ridge above 0"):
        KISSME(None, 0.0).fit(x, pids, camids)
    with pytest.raises(UserError, match="do not span"):
        KISSME(None, reference=True).fit(x, pids, camids)


def test_labels_that_the_features_do_not_follow_are_an_error():
    """Images of one person farther apart than images of two: no direction is worth keeping."""
    x = np.array([[1.0], [-1.0], [0.9], [-0.9]])
    with pytest.raises(UserError, match="no direction"):
        XQDA().fit(x, np.array([1, 1, 2, 2]), np.array([1, 2, 1, 2]))


def test_equal_features_are_an_error():
    with pytest.raises(UserError, match="all training features are equal"):
        KISSME().fit(np.ones((6, 4)), np.array([1, 1, 2, 2, 3, 3]), np.tile([1, 2], 3))
