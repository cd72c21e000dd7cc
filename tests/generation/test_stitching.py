"""Stitching: which pixels come from where, and what fills the holes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter, uniform_filter

from reposer.errors import UserError
from reposer.generation.stitching import feathered, paint_out, stitch
from reposer.structures import PairBatch


def pair_batch(count=3, height=64, width=32, seed=0):
    rng = torch.Generator().manual_seed(seed)

    def image():
        return torch.randint(0, 256, (count, 3, height, width), generator=rng, dtype=torch.uint8)

    mask = torch.zeros(count, height, width, dtype=torch.bool)
    mask[:, 20:50, 10:20] = True
    other = torch.zeros_like(mask)
    other[:, 12:40, 14:26] = True
    labels = torch.zeros(count, height, width, dtype=torch.uint8)
    points = torch.full((count, 18, 2), float("nan"))
    return PairBatch(
        image(), image(), labels, labels, other, mask, points, points, torch.arange(count)
    ), image()


@pytest.mark.parametrize("background", ["donor", "source"])
def test_each_pixel_comes_from_where_it_should(background):
    batch, generated = pair_batch()
    result = stitch(generated, batch, background, feather=2)
    # 2 * 2 pixels each way
    near = torch.from_numpy(maximum_filter(batch.target_mask.numpy(), size=(1, 9, 9)))
    on = batch.target_mask[:, None].expand_as(result)
    far = ~near[:, None].expand_as(result)
    assert torch.equal(result[on], generated[on])
    if background == "donor":
        assert torch.equal(result[far], batch.target_image[far])
    else:
        far &= ~torch.from_numpy(maximum_filter(batch.source_mask.numpy(), size=(1, 5, 5)))[:, None]
        assert far.sum() > 1000
        assert torch.equal(result[far], batch.source_image[far])


def test_feather_equals_scipys_filters():
    mask = torch.from_numpy(np.random.default_rng(1).random((2, 40, 30)) > 0.97)
    solid = mask.numpy().astype(np.float64)
    sums, counts = (
        np.stack([uniform_filter(image, 5, mode="constant") for image in images])
        for images in (solid, np.ones_like(solid))
    )
    np.testing.assert_allclose(feathered(mask, 2)[:, 0].numpy(), np.maximum(solid, sums / counts), atol=1e-6)
    assert torch.equal(feathered(mask, 0)[:, 0], mask.float())


@pytest.mark.parametrize("size", [(128, 64), (37, 53), (256, 176)])
def test_a_constant_background_stays_constant(size):
    color = torch.tensor([13, 200, 77], dtype=torch.uint8)[None, :, None, None]
    image = color.expand(2, 3, *size).clone()
    hole = torch.zeros(2, *size, dtype=torch.bool)
    hole[0, 3:30, 5:40] = True
    hole[1] = True
    hole[1, -1, -1] = False  # one known pixel in the corner must do
    image = torch.where(hole[:, None], torch.full_like(image, 255), image)
    assert torch.equal(paint_out(image, hole), color.expand_as(image))


def test_a_painted_hole_shows_the_background_and_nothing_of_the_person():
    rows = torch.linspace(40, 160, 128).round()
    image = rows[None, None, :, None].expand(1, 3, 128, 64).to(torch.uint8).clone()
    truth = image.float()
    hole = torch.zeros(1, 128, 64, dtype=torch.bool)
    hole[:, 20:110, 20:44] = True
    image[:, 0][hole], image[:, 1][hole], image[:, 2][hole] = 255, 0, 255  # a magenta person
    painted = paint_out(image, hole).float()
    assert (painted - truth).abs().max() < 16  # a ramp from 40 to 160, known on both sides
    assert (painted[:, 0] - painted[:, 1]).abs().max() == 0, "gray in, gray out: no magenta left"
    outside = ~hole[:, None].expand_as(painted)
    assert torch.equal(painted[outside], truth[outside])


def test_source_background_has_no_trace_of_the_source_person():
    batch, generated = pair_batch(1)
    gray = torch.full_like(batch.source_image, 90)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)[None, :, None, None]
    batch = replace(batch, source_image=torch.where(batch.source_mask[:, None], red, gray))
    result = stitch(generated, batch, "source")
    elsewhere = feathered(batch.target_mask, 1) == 0
    assert torch.equal(result[elsewhere.expand_as(result)], gray[elsewhere.expand_as(result)])


def test_without_a_person_or_a_background_the_generated_picture_stays():
    batch, generated = pair_batch(2)
    empty = batch.target_mask.clone()
    empty[0] = False
    result = stitch(generated, replace(batch, target_mask=empty), "donor")
    assert torch.equal(result[0], generated[0])
    assert not torch.equal(result[1], generated[1])
    full = torch.ones_like(batch.source_mask)
    assert torch.equal(stitch(generated, replace(batch, source_mask=full), "source"), generated)


def test_generated_background_changes_nothing_and_an_unknown_one_is_named():
    batch, generated = pair_batch(1)
    assert stitch(generated, batch, "generated") is generated
    with pytest.raises(UserError, match="background doner: unknown"):
        stitch(generated, batch, "doner")
