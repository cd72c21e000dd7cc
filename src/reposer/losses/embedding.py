"""Losses that teach an embedding who is who: classification, triplets, centers, verification of pairs.

The term that keeps a re-posed person the same is the generator's: ``identity`` in ``losses/image_gan.py``.

Each gives a scalar in float32. ``weight`` (B,) says how much an image counts; the loss is the mean over the
images divided by B, not by the sum of the weights, so that an image of weight 0 takes its share away.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def identity_loss(logits: Tensor, label: Tensor, weight: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of (B, K) logits with class indices ``label`` (B,).

    With ``smoothing`` e the target is (1 - e) for the own class and e / K for every class (Szegedy et al.
    2016), as in Bag of Tricks.
    """
    values = F.cross_entropy(logits.float(), label, reduction="none", label_smoothing=smoothing)
    return (values * weight).mean()


def uniform_loss(logits: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of (B, K) logits with 1 / K for every class: label smoothing for outliers, LSRO.

    Zheng et al. (ICCV 2017), eq. 5 with Z = 1: an image that belongs to nobody should look like nobody.
    """
    return -(F.log_softmax(logits.float(), 1).mean(1) * weight).mean()


def teacher_loss(logits: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the softmax of (B, K) logits from that of a ``teacher`` (B, K).

    Sum over classes of q (log q - log p), as DG-Net's primary loss (Zheng et al., CVPR 2019); 0 where both
    agree. The teacher gets no gradient.
    """
    log_q = F.log_softmax(teacher.detach().float(), 1)
    values = (log_q.exp() * (log_q - F.log_softmax(logits.float(), 1))).sum(1)
    return (values * weight).mean()


def triplet_loss(
    features: Tensor, label: Tensor, weight: Tensor, margin: float = 0.3, known: Tensor | None = None
) -> Tensor:
    """Batch-hard triplet loss on Euclidean distances (Hermans et al., arXiv 1703.07737).

    For each image: max(0, farthest image of its person - nearest image of another + margin); images that
    have no such pair in the batch count 0.

    Args:
        features: (B, D), not normalized, as in Bag of Tricks.
        label: (B,).
        weight: (B,) of the anchors.
        margin: in units of the features.
        known: (B,) bool, False for images that are no anchor, no positive and no negative; they count 0.
    """
    distance = pairwise_distance(features.float())
    same = label[:, None] == label[None, :]
    itself = torch.eye(len(label), dtype=torch.bool, device=label.device)
    stranger = ~same
    if known is not None:
        pair = known[:, None] & known[None, :]
        same, stranger = same & pair, stranger & pair
    farthest = distance.masked_fill(~same | itself, -torch.inf).amax(1)
    nearest = distance.masked_fill(~stranger, torch.inf).amin(1)
    complete = torch.isfinite(farthest) & torch.isfinite(nearest)
    # where() before the arithmetic: the gradient of inf - inf would be NaN
    gap = torch.where(complete, farthest, 0.0) - torch.where(complete, nearest, 0.0)
    return (F.relu(gap + margin) * complete * weight).mean()


def pairwise_distance(features: Tensor) -> Tensor:
    """(B, D) -> (B, B) Euclidean distances; the gradient at distance 0 is 0, not NaN."""
    squares = features.square().sum(1)
    squared = squares[:, None] + squares[None, :] - 2 * features @ features.T
    return squared.clamp(min=1e-12).sqrt()


def center_loss(features: Tensor, label: Tensor, weight: Tensor, centers: Tensor) -> Tensor:
    """Squared distance of each image to the center of its class (Wen et al., ECCV 2016).

    Without Wen's factor 1/2, as in Bag of Tricks' code.

    Args:
        features: (B, D), not normalized.
        label: (B,).
        weight: (B,).
        centers: (K, D); they do not learn by this gradient but by :func:`center_step`.
    """
    distance = (features.float() - centers[label]).square().sum(1)
    return (distance * weight).mean()


def center_step(features: Tensor, label: Tensor, weight: Tensor, centers: Tensor) -> Tensor:
    """(K, D) minus the gradient of :func:`center_loss` with respect to the centers.

    ``centers + rate * center_step(...)`` is the step of Bag of Tricks' second optimizer, SGD without momentum
    on the loss before it is weighted. Written out, centers need no state but themselves.
    """
    gap = 2 * weight[:, None] * (features.float() - centers[label]) / len(label)
    return torch.zeros_like(centers).index_add_(0, label, gap)


def verification_loss(logits: Tensor, same: Tensor, weight: Tensor) -> Tensor:
    """Two-way cross-entropy of (P, 2) logits; class 1 is "the same person", ``same`` (P,) bool."""
    values = F.cross_entropy(logits.float(), same.long(), reduction="none")
    return (values * weight).mean()
