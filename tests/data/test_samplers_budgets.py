"""Data budgets: nested, every person kept, two cameras where there are two."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from reposer.data.samplers import budget_rows
from reposer.errors import UserError

SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.fixture
def people() -> SimpleNamespace:
    """Forty people of 1 to 40 images, the odd ones seen by one camera only; junk, distractors, a query."""
    rng = np.random.default_rng(0)
    pids = rng.permutation(np.concatenate([np.repeat(p, p) for p in range(1, 41)] + [[-1, -1, 0, 7]]))
    splits = np.array(["train"] * len(pids))
    splits[np.flatnonzero(pids == 7)[:1]] = "query"
    camids = np.where(pids % 2, 1, rng.integers(1, 7, len(pids)))
    return SimpleNamespace(pids=pids, splits=splits, camids=camids, folder="packed")


def test_a_larger_budget_holds_a_smaller_one(people):
    chosen = [set(budget_rows(people, share, seed=3).tolist()) for share in SHARES]
    for small, large in pairwise(chosen):
        assert small < large
    assert chosen[-1] == set(np.flatnonzero((people.splits == "train") & (people.pids > 0)).tolist())


@pytest.mark.parametrize("share", SHARES)
def test_every_person_keeps_the_share_but_two_images(people, share):
    rows = budget_rows(people, share)
    assert rows.tolist() == sorted(set(rows.tolist()))
    had = Counter(people.pids[(people.splits == "train") & (people.pids > 0)].tolist())
    left = Counter(people.pids[rows].tolist())
    for pid, count in had.items():
        assert left[pid] == min(count, max(2, int(np.floor(share * count + 0.5)))), pid
        if len(set(people.camids[(people.pids == pid) & (people.splits == "train")])) > 1:
            assert len(set(people.camids[rows[people.pids[rows] == pid]])) > 1, pid


def test_the_seed_decides_and_other_people_do_not(people):
    first = budget_rows(people, 0.4, seed=1)
    assert not np.array_equal(first, budget_rows(people, 0.4, seed=2))
    fewer = SimpleNamespace(**vars(people))
    fewer.splits = np.where(people.pids == 40, "val", people.splits)
    assert np.array_equal(budget_rows(fewer, 0.4, seed=1), first[people.pids[first] != 40])


@pytest.mark.parametrize(("share", "splits"), [(0.0, ("train",)), (1.1, ("train",)), (0.5, ("gallery",))])
def test_what_cannot_be_is_refused(people, share, splits):
    with pytest.raises(UserError, match=r"budget|nobody in gallery"):
        budget_rows(people, share, splits=splits)
