"""Losses for generated images against hand calculations, SciPy and loops."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import rel_entr

from reposer.losses.embedding import identity_loss, teacher_loss, triplet_loss, uniform_loss


def test_uniform_labels_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0], [1.0, 1.0, 1.0]])
    log_p = torch.log_softmax(logits, 1)[0].tolist()
    by_hand = (0.5 * -sum(log_p) / 3 + 1.0 * math.log(3)) / 2
    assert uniform_loss(logits, torch.tensor([0.5, 1.0])).item() == pytest.approx(by_hand)
    fully_smoothed = identity_loss(logits, torch.tensor([0, 2]), torch.ones(2), 1.0)
    torch.testing.assert_close(uniform_loss(logits, torch.ones(2)), fully_smoothed)


def test_a_teacher_is_followed_by_relative_entropy():
    torch.manual_seed(0)
    logits, teacher, weight = torch.randn(5, 7), 3 * torch.randn(5, 7), torch.rand(5)
    q, p = (torch.softmax(values.double(), 1).numpy() for values in (teacher, logits))
    expected = (rel_entr(q, p).sum(1) * weight.double().numpy()).mean()
    assert teacher_loss(logits, teacher, weight).item() == pytest.approx(expected, rel=1e-5)
    assert teacher_loss(logits, logits + 4, weight).item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_gets_no_gradient():
    logits, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    teacher_loss(logits, teacher, torch.ones(2)).backward()
    assert teacher.grad is None
    assert logits.grad.abs().sum() > 0


def test_unknown_images_are_no_anchors_positives_or_negatives():
    torch.manual_seed(1)
    features, labels = torch.randn(12, 4), torch.arange(12) // 3
    known = torch.tensor([True, True, False] * 4)
    known[9:] = False  # nobody of the last person is known
    some = triplet_loss(features[known], labels[known], torch.ones(6), 0.5)
    assert triplet_loss(features, labels, torch.ones(12), 0.5, known).item() == pytest.approx(
        some.item() * 6 / 12
    )
    assert triplet_loss(features, labels, torch.ones(12), 0.5, torch.zeros(12, dtype=torch.bool)) == 0
    everybody = torch.ones(12, dtype=torch.bool)
    with_mask = triplet_loss(features, labels, torch.ones(12), 0.5, everybody)
    assert torch.equal(with_mask, triplet_loss(features, labels, torch.ones(12), 0.5))
