"""Identity losses against loops, hand calculations and pytorch-metric-learning."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from reposer.losses.embedding import (
    center_loss,
    center_step,
    identity_loss,
    pairwise_distance,
    triplet_loss,
    verification_loss,
)


def _slow_triplet(features, labels, weights, margin):
    total = 0.0
    for i in range(len(labels)):
        same = [j for j in range(len(labels)) if labels[j] == labels[i] and j != i]
        other = [j for j in range(len(labels)) if labels[j] != labels[i]]
        if same and other:
            far = max(math.dist(features[i], features[j]) for j in same)
            near = min(math.dist(features[i], features[j]) for j in other)
            total += max(0.0, far - near + margin) * weights[i]
    return total / len(labels)


@pytest.mark.parametrize("margin", [0.1, 1.0, 5.0])
def test_triplets_equal_the_loop(margin):
    torch.manual_seed(0)
    features, labels = torch.randn(13, 4), torch.randint(0, 5, (13,))
    labels[0] = 9  # alone: no positive
    weights = torch.rand(13)
    slow = _slow_triplet(features.tolist(), labels.tolist(), weights.tolist(), margin)
    assert triplet_loss(features, labels, weights, margin).item() == pytest.approx(slow, rel=1e-5)


def test_triplets_equal_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.miners import BatchHardMiner
    from pytorch_metric_learning.reducers import MeanReducer

    torch.manual_seed(1)
    features, labels = torch.randn(16, 8), torch.arange(4).repeat_interleave(4)
    distance = LpDistance(normalize_embeddings=False)
    theirs = losses.TripletMarginLoss(1.5, distance=distance, reducer=MeanReducer())
    expected = theirs(features, labels, BatchHardMiner(distance=distance)(features, labels))
    torch.testing.assert_close(triplet_loss(features, labels, torch.ones(16), 1.5), expected)


def test_the_gradient_is_finite_where_images_coincide_or_have_no_partner():
    features = torch.zeros(5, 3, requires_grad=True)
    triplet_loss(features, torch.tensor([0, 0, 1, 1, 2]), torch.ones(5)).backward()
    assert torch.isfinite(features.grad).all()
    one_person = torch.randn(3, 3, requires_grad=True)
    loss = triplet_loss(one_person, torch.zeros(3, dtype=torch.long), torch.ones(3))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(one_person.grad, torch.zeros(3, 3))


def test_distances_are_euclidean():
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(
        pairwise_distance(features), torch.tensor([[0.0, 5.0], [5.0, 0.0]]), atol=1e-5, rtol=0
    )


def test_smoothed_classification_by_hand():
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    log_p = torch.log_softmax(logits, 1)[0].tolist()
    by_hand = -(0.9 * log_p[0] + 0.1 * sum(log_p) / 3)
    assert identity_loss(logits, torch.tensor([0]), torch.ones(1), 0.1).item() == pytest.approx(by_hand)


def test_a_weight_of_zero_takes_the_images_share_away():
    logits, labels = torch.randn(2, 3), torch.tensor([0, 1])
    both = identity_loss(logits, labels, torch.tensor([1.0, 0.0]))
    assert both.item() == pytest.approx(identity_loss(logits[:1], labels[:1], torch.ones(1)).item() / 2)


def test_centers_pull_and_move_as_two_optimizers_would():
    """Bag of Tricks: SGD 0.5 on the centers, their gradient divided by the weight of the loss."""
    torch.manual_seed(2)
    features, labels = torch.randn(9, 4, requires_grad=True), torch.tensor([0, 2, 2, 0, 3, 2, 0, 0, 3])
    centers, image_weights, weight = nn.Parameter(torch.randn(5, 4)), torch.rand(9), 5e-4
    slow = sum(
        w * math.dist(f, centers[k].tolist()) ** 2
        for f, k, w in zip(features.tolist(), labels.tolist(), image_weights.tolist(), strict=True)
    )
    loss = center_loss(features, labels, image_weights, centers)
    assert loss.item() == pytest.approx(slow / 9, rel=1e-5)
    moved = centers.detach() + 0.5 * center_step(features.detach(), labels, image_weights, centers.detach())
    (weight * loss).backward()
    centers.grad /= weight
    torch.optim.SGD([centers], lr=0.5).step()
    torch.testing.assert_close(moved, centers.detach())
    towards = centers.detach()[labels] - features.detach()
    assert features.grad is not None
    assert ((features.grad * towards).sum(1) < 0).all()  # the gradient points away from the center


def test_verification_by_hand():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]])  # P(same) = 3 / 4
    loss = verification_loss(logits, torch.tensor([True, False]), torch.ones(2))
    assert loss.item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
