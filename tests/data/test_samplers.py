"""Stateless draws: pure functions of seed and step, uniform, and the same for any number of processes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chisquare

from reposer.data.samplers import draw_flips, draw_itself, draw_pairs, rank_slice


def test_draws_are_pure_functions_of_seed_and_step() -> None:
    later = draw_pairs(1000, 64, seed=3, step=41)
    for step in (0, 7, 41, 2):
        draw_pairs(1000, 64, seed=3, step=step)
    np.testing.assert_array_equal(draw_pairs(1000, 64, seed=3, step=41), later)
    np.testing.assert_array_equal(draw_flips(64, 3, 41), draw_flips(64, 3, 41))
    assert (draw_pairs(1000, 64, seed=4, step=41) != later).any()
    assert (draw_pairs(1000, 64, seed=3, step=42) != later).any()
    assert (draw_pairs(1000, 64, seed=41, step=3) != later).any()
    assert later.dtype == np.int64


def test_the_first_draws_never_change_between_releases() -> None:
    # a resumed run must see the pairs that it would have seen
    assert draw_pairs(263_632, 4, seed=0, step=0).tolist() == [137657, 234563, 261772, 146879]
    assert draw_flips(8, seed=0, step=0).astype(int).tolist() == [0, 0, 1, 1, 1, 0, 1, 0]


def test_pairs_are_uniform_with_replacement() -> None:
    drawn = np.concatenate([draw_pairs(50, 32, 0, step) for step in range(1000)])
    assert (drawn.min(), drawn.max()) == (0, 49)
    assert chisquare(np.bincount(drawn)).pvalue > 1e-3
    assert any(len(set(draw_pairs(50, 32, 0, step).tolist())) < 32 for step in range(10))


def test_pairs_and_flips_of_a_step_are_independent() -> None:
    pairs = np.concatenate([draw_pairs(2, 32, 0, step) for step in range(300)])
    flips = np.concatenate([draw_flips(32, 0, step) for step in range(300)])
    assert abs(np.corrcoef(pairs, flips)[0, 1]) < 0.05
    assert abs(flips.mean() - 0.5) < 0.03
    assert abs(np.mean([draw_flips(32, 1, step, 0.1).mean() for step in range(300)]) - 0.1) < 0.02
    assert not draw_flips(1000, 0, 0, 0.0).any()
    assert draw_flips(1000, 0, 0, 1.0).all()


def test_a_share_of_the_pairs_is_of_an_image_and_itself() -> None:
    drawn = np.concatenate([draw_itself(32, 0, step, 0.25) for step in range(300)])
    assert abs(drawn.mean() - 0.25) < 0.02
    assert not draw_itself(1000, 0, 0, 0.0).any()
    assert draw_itself(1000, 0, 0, 1.0).all()
    flips = np.concatenate([draw_flips(32, 0, step) for step in range(300)])
    assert abs(np.corrcoef(drawn, flips)[0, 1]) < 0.05


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_the_parts_of_the_ranks_are_the_batch_in_order(world_size: int) -> None:
    batch = draw_pairs(1000, 12, 0, 9)
    parts = [batch[rank_slice(12, rank, world_size)] for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(parts), batch)
    assert len({len(part) for part in parts}) == 1


def test_unequal_parts_and_empty_lists_are_refused() -> None:
    with pytest.raises(ValueError, match="12 cannot be shared by 5"):
        rank_slice(12, 0, 5)
    with pytest.raises(ValueError, match="rank 2"):
        rank_slice(12, 2, 2)
    with pytest.raises(ValueError, match="no pairs"):
        draw_pairs(0, 4, 0, 0)
