"""Content, style and contextual losses against literal loops."""

from __future__ import annotations

import math

import pytest
import torch

from reposer.losses.perceptual import content_loss, contextual_loss, gram_matrix, style_loss


def _maps(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def test_the_gram_matrix_is_the_sum_over_places():
    maps = _maps(0, 1, 3, 2, 2)
    gram = gram_matrix(maps)[0]
    for a in range(3):
        for b in range(3):
            products = [float(maps[0, a, y, x] * maps[0, b, y, x]) for y in range(2) for x in range(2)]
            assert gram[a, b].item() == pytest.approx(sum(products) / 12, rel=1e-5)


def test_style_forgets_places_and_content_does_not():
    maps = [_maps(0, 2, 4, 3, 3), _maps(1, 2, 5, 2, 2)]
    moved = [m.flip(3) for m in maps]
    assert style_loss(moved, maps).item() == pytest.approx(0, abs=1e-6)
    expected = sum((a - b).abs().mean().item() for a, b in zip(moved, maps, strict=True)) / 2
    assert content_loss(moved, maps).item() == pytest.approx(expected, rel=1e-5)
    other = [m + 1 for m in maps]
    expected = sum(
        (gram_matrix(a) - gram_matrix(b)).abs().mean().item() for a, b in zip(other, maps, strict=True)
    )
    assert style_loss(other, maps).item() == pytest.approx(expected / 2, rel=1e-5)


def test_the_contextual_loss_is_its_formula():
    x, y = _maps(0, 1, 3, 2, 2), _maps(1, 1, 3, 1, 4)
    a = (x - y.mean((2, 3), keepdim=True)).flatten(2)[0].T.tolist()
    b = (y - y.mean((2, 3), keepdim=True)).flatten(2)[0].T.tolist()

    def distance(p, q):
        return 1 - sum(i * j for i, j in zip(p, q, strict=True)) / (math.hypot(*p) * math.hypot(*q))

    similarity = []
    for p in a:
        row = [distance(p, q) for q in b]
        weights = [math.exp((1 - d / (min(row) + 1e-5)) / 0.5) for d in row]
        similarity.append([w / sum(weights) for w in weights])
    best = [max(similarity[i][j] for i in range(4)) for j in range(4)]
    assert contextual_loss([x], [y], bandwidth=0.5).item() == pytest.approx(
        -math.log(sum(best) / 4), rel=1e-4
    )


def test_the_contextual_loss_is_lowest_for_the_same_features_in_any_order():
    maps = _maps(0, 2, 16, 4, 4)
    assert contextual_loss([maps.flip(2)], [maps]).item() < 0.01
    assert contextual_loss([_maps(5, 2, 16, 4, 4)], [maps]).item() > 0.1


def test_large_maps_are_pooled():
    large = _maps(0, 1, 2, 128, 128)
    pooled = torch.nn.functional.avg_pool2d(large, 2)
    other = _maps(1, 1, 2, 128, 128)
    expected = contextual_loss([torch.nn.functional.avg_pool2d(other, 2)], [pooled])
    assert contextual_loss([other], [large]).item() == pytest.approx(expected.item(), rel=1e-4)
