"""The parser's losses against torch's cross-entropy and a loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reposer.losses.segmentation import dice_loss, parsing_loss


def _batch():
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 6, 4, generator=rng, requires_grad=True)
    labels = torch.randint(0, 4, (2, 6, 4), generator=rng).to(torch.uint8)  # label 4 never occurs
    labels[0, :2] = 255
    return scores, labels


def test_both_parts_by_hand():
    scores, labels = _batch()
    total, parts = parsing_loss(scores, labels, 2.0, 3.0)
    entropy = F.cross_entropy(scores, labels.long(), ignore_index=255)
    probabilities, dice = scores.softmax(1), []
    for label in range(4):
        both = size = 0.0
        for b in range(2):
            for y in range(6):
                for x in range(4):
                    if labels[b, y, x] != 255:
                        p = float(probabilities[b, label, y, x])
                        true = float(labels[b, y, x] == label)
                        both, size = both + p * true, size + p + true
        dice.append(1 - 2 * both / size)
    assert float(parts["parsing/cross_entropy"]) == pytest.approx(float(entropy), rel=1e-5)
    assert float(parts["parsing/dice"]) == pytest.approx(sum(dice) / 4, rel=1e-5)
    assert float(total) == pytest.approx(2 * float(entropy) + 3 * sum(dice) / 4, rel=1e-5)
    total.backward()
    assert scores.grad[0, :, :2].abs().max() == 0  # pixels without a label teach nothing
    assert scores.grad[0, :, 2:].abs().min() > 0


def test_a_batch_without_labels_is_zero():
    scores, labels = _batch()
    total, _ = parsing_loss(scores, torch.full_like(labels, 255), 1.0, 1.0)
    assert float(total) == 0
    total.backward()
    assert torch.isfinite(scores.grad).all()


def test_a_perfect_map_has_no_dice_loss():
    labels = torch.tensor([[[0, 1], [2, 2]]])
    probabilities = F.one_hot(labels, 3).permute(0, 3, 1, 2).float()
    assert float(dice_loss(probabilities, labels, labels >= 0)) == pytest.approx(0)
