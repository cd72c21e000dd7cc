"""Losses of parser and predictor: cross-entropy for every pixel, Dice for every label, the person mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reposer.structures import MISSING_LABEL


def parsing_loss(
    scores: Tensor, labels: Tensor, cross_entropy: float, dice: float, smoothing: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of both, and its parts; 0 for a batch without a labeled pixel.

    Args:
        scores: (B, L, H, W) before softmax.
        labels: (B, H, W) uint8; MISSING_LABEL counts nowhere.
        cross_entropy: weight of the mean cross-entropy over labeled pixels.
        dice: weight of 1 - Dice (see :func:`dice_loss`).
        smoothing: of it.
    """
    known = labels != MISSING_LABEL
    targets = torch.where(known, labels, 0).long()
    logarithms = scores.float().log_softmax(1)
    of_truth = logarithms.gather(1, targets[:, None])[:, 0]
    entropy = -(of_truth * known).sum() / known.sum().clamp(min=1)
    overlap = dice_loss(logarithms.exp(), targets, known, smoothing)
    total = cross_entropy * entropy + dice * overlap
    return total, {"parsing/cross_entropy": entropy.detach(), "parsing/dice": overlap.detach()}


def dice_loss(probabilities: Tensor, labels: Tensor, known: Tensor, smoothing: float = 0.0) -> Tensor:
    """1 - mean Dice over the labels that occur in the batch (Milletari et al. 2016, first powers); 0 if none.

    Small labels count as much as large ones, which cross-entropy alone lets go.

    Args:
        probabilities: (B, L, H, W).
        labels: (B, H, W) int64.
        known: (B, H, W) bool, pixels that count.
        smoothing: pixels added above and below the line: a label of one pixel weighs less.
    """
    classes = probabilities.shape[1]
    weight = known.float()
    of_truth = probabilities.gather(1, labels[:, None])[:, 0] * weight
    both = probabilities.new_zeros(classes).index_add(0, labels.flatten(), of_truth.flatten())
    true = probabilities.new_zeros(classes).index_add(0, labels.flatten(), weight.flatten())
    predicted = (probabilities * weight[:, None]).sum((0, 2, 3))
    scores = (2 * both + smoothing) / (predicted + true + smoothing).clamp(min=1e-6)
    present = (true > 0).float()
    return (present * (1 - scores)).sum() / present.sum().clamp(min=1)


def person_loss(scores: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of (B, H, W) scores before sigmoid with the person mask (B, H, W) bool."""
    return F.binary_cross_entropy_with_logits(scores.float(), mask.float())
