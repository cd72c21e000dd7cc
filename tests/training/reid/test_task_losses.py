"""The weighted sum of a Re-ID training, term by term."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from reposer.losses.embedding import center_loss, triplet_loss
from reposer.models.embedding import ReidOutput
from reposer.structures import ReidBatch
from reposer.training.reid.config import ReidLossConfig
from reposer.training.reid.task import reid_loss


@pytest.fixture
def case() -> SimpleNamespace:
    torch.manual_seed(0)
    label = torch.tensor([0, 1, 2, 0, 0, 1, 1, 2])  # pairs i, i + 4: same, same, other, other
    batch = ReidBatch(
        image=torch.zeros(8, 3, 2, 2, dtype=torch.uint8),
        label=label,
        camid=torch.ones(8, dtype=torch.int64),
        weight=torch.ones(8),
        generated=torch.zeros(8, dtype=torch.bool),
        known=torch.ones(8, dtype=torch.bool),
    )
    output = ReidOutput(torch.randn(8, 5), torch.randn(8, 3), torch.randn(4, 2))
    return SimpleNamespace(output=output, batch=batch, centers=torch.randn(3, 5))


def test_the_total_is_the_weighted_sum_of_its_terms(case):
    weights = ReidLossConfig(
        identity=2.0, smoothing=0.1, triplet=0.7, margin=0.5, verification=3.0, center=0.01
    )
    total, parts = reid_loss(case.output, case.batch, weights, case.centers)
    label, ones = case.batch.label, case.batch.weight
    expected = {
        "reid/identity": F.cross_entropy(case.output.logits, label, label_smoothing=0.1),
        "reid/triplet": triplet_loss(case.output.pooled, label, ones, 0.5),
        "reid/verification": F.cross_entropy(case.output.pair_logits, torch.tensor([1, 1, 0, 0])),
        "reid/center": center_loss(case.output.pooled, label, ones, case.centers),
    }
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value)
    by_hand = sum(w * v for w, v in zip((2.0, 0.7, 3.0, 0.01), expected.values(), strict=True))
    torch.testing.assert_close(total, by_hand)
    torch.testing.assert_close(parts["reid/loss"], by_hand)
    right = (case.output.logits.argmax(1) == label).float().mean()
    assert parts["reid/accuracy"] == right


def test_siamese_2017_is_half_of_either_classification_and_the_verification(case):
    total, _ = reid_loss(case.output, case.batch, ReidLossConfig(identity=1.0, verification=1.0))
    (a, b), (k, j) = case.output.logits.chunk(2), case.batch.label.chunk(2)
    verification = F.cross_entropy(case.output.pair_logits, (k == j).long())
    torch.testing.assert_close(
        total, 0.5 * F.cross_entropy(a, k) + 0.5 * F.cross_entropy(b, j) + verification
    )


def test_a_term_of_weight_zero_is_neither_computed_nor_logged(case):
    broken = case.output._replace(pooled=torch.full((8, 5), torch.nan))
    total, parts = reid_loss(broken, case.batch, ReidLossConfig(identity=1.0), case.centers)
    assert torch.isfinite(total)
    assert set(parts) == {"reid/loss", "reid/identity", "reid/accuracy"}
