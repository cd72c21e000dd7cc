"""Pad-crop, flip and erasing against a loop over pixels; draws that depend on seed, step and position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from reposer.data.transforms import ERASE_AREA, draw_transforms, transform

SIZE, CROP, PAD = (12, 8), (13, 9), 2


def _draws(batch=16, flip=0.5, erase=0.5, seed=0, step=0):
    return draw_transforms(batch, SIZE, CROP, PAD, flip, erase, seed, step)


def test_every_pixel_comes_from_where_it_should():
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (16, *SIZE, 3), dtype=np.uint8)
    draws = _draws()
    result = transform(torch.from_numpy(images).permute(0, 3, 1, 2), draws, CROP, PAD)
    assert result.dtype == torch.uint8
    assert result.is_contiguous(memory_format=torch.channels_last)
    color = np.array([124, 116, 104])
    for i in range(16):
        e_top, e_left, e_height, e_width = draws.erase[i]
        for y in range(CROP[0]):
            for x in range(CROP[1]):
                across = CROP[1] - 1 - x if draws.flip[i] else x
                row, column = draws.top[i] + y - PAD, draws.left[i] + across - PAD
                inside = 0 <= row < SIZE[0] and 0 <= column < SIZE[1]
                expected = images[i, row, column] if inside else np.zeros(3)
                if e_top <= y < e_top + e_height and e_left <= x < e_left + e_width:
                    expected = color
                assert result[i, :, y, x].tolist() == list(expected)


def test_nothing_drawn_changes_nothing():
    images = torch.randint(0, 256, (3, 3, *SIZE), dtype=torch.uint8)
    draws = draw_transforms(3, SIZE, SIZE, 0, 0.0, 0.0, seed=1, step=1)
    assert torch.equal(transform(images, draws, SIZE, 0), images)


def test_draws_cover_their_ranges():
    draws = _draws(4000)
    assert set(draws.top.tolist()) == set(range(4))  # 12 + 2 * 2 - 13 = 3
    assert set(draws.left.tolist()) == set(range(4))
    assert draws.flip.mean() == pytest.approx(0.5, abs=0.03)
    erased = draws.erase[draws.erase[:, 2] > 0]
    assert len(erased) / 4000 == pytest.approx(0.5, abs=0.03)
    top, left, height, width = erased.T
    assert (top + height <= CROP[0]).all()
    assert (left + width <= CROP[1]).all()
    share = height * width / (CROP[0] * CROP[1])
    assert share.max() < ERASE_AREA[1] + 0.05  # rounding to whole pixels
    assert share.mean() == pytest.approx(np.mean(ERASE_AREA), abs=0.05)


def test_a_part_of_a_batch_is_what_the_whole_has_there():
    images = torch.randint(0, 256, (16, 3, *SIZE), dtype=torch.uint8)
    draws, places = _draws(), np.array([3, 9, 4])
    part = transform(images[places], draws[places], CROP, PAD)
    assert torch.equal(part, transform(images, draws, CROP, PAD)[places])


def test_draws_are_a_function_of_seed_and_step():
    first = _draws(seed=1, step=5)
    assert np.array_equal(first.erase, _draws(seed=1, step=5).erase)
    assert not np.array_equal(first.top, _draws(seed=1, step=6).top)
    assert not np.array_equal(first.top, _draws(seed=2, step=5).top)


def test_a_crop_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        draw_transforms(2, SIZE, (17, 8), 2, 0, 0, 0, 0)


def test_the_original_stays_as_it_is():
    images = torch.randint(0, 256, (4, 3, *SIZE), dtype=torch.uint8)
    before = images.clone()
    draws = _draws(4, erase=1.0)
    transform(images, replace(draws, top=draws.top * 0, left=draws.left * 0), SIZE, 0)
    assert torch.equal(images, before)
