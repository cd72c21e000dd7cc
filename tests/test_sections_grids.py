"""The picture grid: every picture stands where its row and column say, pixel for pixel."""

import numpy as np
import pytest

from reposer.sections import GAP, TITLE_HEIGHT, draw_grid


def _picture(value: int) -> np.ndarray:
    return np.full((6, 4, 3), value, np.uint8)


def test_pictures_stand_in_their_cells_enlarged_without_blur():
    rows = [[_picture(10), _picture(20)], [_picture(30), _picture(40)]]
    grid = draw_grid(rows, ["a", "b"], scale=3)
    for r, c, value in [(0, 0, 10), (0, 1, 20), (1, 0, 30), (1, 1, 40)]:
        top = TITLE_HEIGHT + GAP + r * (18 + GAP)
        left = GAP + c * (12 + GAP)
        assert (grid[top : top + 18, left : left + 12] == value).all()


def test_groups_fill_column_after_column():
    rows = [[_picture(v)] for v in (10, 20, 30)]
    grid = draw_grid(rows, groups=2)
    assert grid[GAP, GAP, 0] == 10
    assert grid[GAP + 6 + GAP, GAP, 0] == 20
    assert 30 in grid[GAP, 4 + 2 * GAP :, 0]


@pytest.mark.parametrize("rows", [[], [[]], [[_picture(1), np.zeros((3, 3, 3), np.uint8)]]])
def test_nothing_to_draw_and_mixed_sizes_are_refused(rows):
    with pytest.raises(ValueError, match="grid"):
        draw_grid(rows)
