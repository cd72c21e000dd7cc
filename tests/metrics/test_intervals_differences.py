"""The paired bootstrap against a literal loop, against scipy, and on planted data."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from reposer.errors import UserError
from reposer.metrics.intervals import holm, interval_of, paired_bootstrap, student, widening


def planted(rng, people=40, seeds=3, effect=0.0):
    """Scores of queries of different people: a person is hard or easy, and likes one side by chance."""
    queries = rng.integers(1, 6, people)
    pids = np.repeat(np.arange(1, people + 1), queries)
    taste = np.repeat(rng.normal(0, 0.1, people), queries)
    hardness = np.repeat(rng.normal(0.5, 0.2, people), queries)
    noise = lambda: rng.normal(0, 0.05, (seeds, len(pids)))  # noqa: E731
    return hardness + taste + effect + noise(), hardness + noise(), pids


def literal(scores, control, pids, draws, seed):
    """The definition, identity by identity, in Python."""
    rng = np.random.default_rng(seed)
    difference = scores.mean(0) - control.mean(0)
    people = sorted(set(pids.tolist()))
    by_person = {pid: [d for d, p in zip(difference, pids, strict=True) if p == pid] for pid in people}
    found = []
    for _ in range(draws):
        drawn = []
        for pid in rng.choice(people, len(people)):
            drawn += by_person[pid]
        found.append(sum(drawn) / len(drawn))
    observed = sum(difference) / len(difference)
    extreme = sum(abs(t - observed) >= abs(observed) for t in found)
    return observed, *np.quantile(found, [0.025, 0.975]), (1 + extreme) / (draws + 1)


@pytest.mark.parametrize("effect", [0.0, 0.02, -0.03])
def test_equals_the_literal_loop(effect):
    scores, control, pids = planted(np.random.default_rng(3), effect=effect)
    ours = paired_bootstrap(scores, control, pids, draws=20_000, seed=1)
    value, low, high, p = literal(scores, control, pids, 4_000, seed=2)
    assert ours.value == pytest.approx(value, abs=1e-12)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.003)
    assert ours.p == pytest.approx(p, abs=0.03)  # 4,000 draws: three standard errors are 0.024
    assert ours.identities == 40


def test_p_is_uniform_when_nothing_is_there():
    rng = np.random.default_rng(0)
    found = []
    for trial in range(300):
        scores, control, pids = planted(rng, people=60, seeds=1)
        found.append(paired_bootstrap(scores, control, pids, draws=400, seed=trial).p)
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert 0.02 < np.mean(np.array(found) < 0.05) < 0.09


def test_a_planted_effect_is_found_and_its_interval_covers_it():
    rng, covered, significant = np.random.default_rng(5), 0, 0
    for trial in range(100):
        scores, control, pids = planted(rng, people=60, effect=0.06)
        ours = paired_bootstrap(scores, control, pids, draws=400, seed=trial)
        covered += ours.low <= 0.06 <= ours.high
        significant += ours.p < 0.05
    assert covered >= 85
    assert significant >= 90


def test_whole_people_are_drawn_not_pictures():
    """Twenty copies of every picture are no new evidence."""
    scores, control, pids = planted(np.random.default_rng(7), effect=0.02)
    once = paired_bootstrap(scores, control, pids)
    often = paired_bootstrap(np.repeat(scores, 20, 1), np.repeat(control, 20, 1), np.repeat(pids, 20))
    assert often.p == pytest.approx(once.p)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_seeds_that_disagree_raise_p_seeds_only():
    rng = np.random.default_rng(9)
    _, control, pids = planted(rng)
    shift = np.array([[0.3], [0.0], [-0.24]])  # of each seed, 0.02 on average
    scores = control.mean(0) + shift + rng.normal(0, 0.01, (3, len(pids)))
    ours = paired_bootstrap(scores, control, pids)
    assert ours.p < 0.001
    assert ours.p_seeds > 0.5
    single = paired_bootstrap(scores[:1], control[:1], pids)
    assert single.p == single.p_seeds


def test_equal_sides_have_p_1_and_p_is_never_0():
    scores, _, pids = planted(np.random.default_rng(1))
    same = paired_bootstrap(scores, scores, pids, draws=100)
    assert (same.value, same.p, same.p_seeds) == (0.0, 1.0, 1.0)
    assert paired_bootstrap(scores + 9, scores, pids, draws=99).p == pytest.approx(0.01)


def test_holm_equals_a_hand_calculation():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("scores", "control", "pids", "words"),
    [
        (np.zeros((1, 3)), np.zeros((1, 2)), np.array([1, 2, 3]), "for 3 queries"),
        (np.zeros((0, 2)), np.zeros((1, 2)), np.array([1, 2]), "for 2 queries"),
        (np.array([[np.nan, 0]]), np.zeros((1, 2)), np.array([1, 2]), "NaN"),
        (np.zeros((1, 2)), np.zeros((1, 2)), np.array([1, 1]), "1 test people"),
    ],
)
def test_refuses_what_cannot_be_compared(scores, control, pids, words):
    with pytest.raises(UserError, match=words):
        paired_bootstrap(scores, control, pids)


@pytest.mark.parametrize(
    ("people", "covers"), [(2, 0.88), (3, 0.90), (5, 0.88), (8, 0.90), (15, 0.90), (16, 0.90), (30, 0.90)]
)
def test_few_people_are_no_proof(people, covers):
    """Where nothing is to be found, p below .05 stays the exception and the interval holds 0."""
    rng, found, inside = np.random.default_rng(people), [], 0
    for trial in range(200):
        scores, control, pids = planted(rng, people=people, seeds=1)
        ours = paired_bootstrap(scores, control, pids, draws=400, seed=trial)
        found.append(ours.p)
        inside += ours.low <= 0 <= ours.high
    assert np.mean(np.array(found) < 0.05) <= 0.1
    assert inside / 200 >= covers


def test_the_least_p_of_a_few_people_is_that_of_all_choices_of_signs():
    pids, better = np.array([1, 1, 2, 3, 3]), np.full((2, 5), 0.1)
    ours = paired_bootstrap(better, np.zeros((1, 5)), pids)
    assert (ours.p, ours.p_seeds) == (0.25, 0.25)  # 2 of 8: all up, all down
    sums = np.array([3.0, 1.0, -2.0, 0.5, 4.0])
    signs = itertools.product((1, -1), repeat=5)
    literal = np.mean([abs(np.dot(each, sums)) >= abs(sums.sum()) - 1e-9 for each in signs])
    assert paired_bootstrap(sums[None], np.zeros((1, 5)), np.arange(5)).p >= literal == 0.3125


def test_an_interval_of_a_few_people_is_students():
    """Three people: t with 2 degrees of freedom, 4.303 in the place of 1.960, and n - 1 in that of n."""
    rng = np.random.default_rng(3)
    drawn = rng.normal(0.4, 0.1, 200_000)
    low, high = interval_of(drawn, 0.4, 3)
    assert (high - low) / 2 == pytest.approx(0.1 * 4.302653 * np.sqrt(3 / 2), rel=0.02)
    assert widening(40) == widening(1_000) == 1 < widening(39) < 1.05
    assert interval_of(drawn, 0.4, 40) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


@pytest.mark.parametrize("people", [2, 3, 5, 12])
def test_an_interval_by_standard_errors_of_a_few_people_is_students(people):
    """Whoever has n - 1 in the standard error already, as the jackknife, gets the t distribution alone."""
    values = np.random.default_rng(people).normal(size=(4_000, people))
    error = values.std(1, ddof=1) / np.sqrt(people)
    covered = (np.abs(values.mean(1)) <= student(people) * error).mean()
    assert covered == pytest.approx(0.95, abs=0.015)
    assert student(40) == student(9_999) == pytest.approx(stats.norm.ppf(0.975))
