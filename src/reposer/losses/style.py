"""Losses on the feature maps of a perceptual network: content, style (Gram matrices), contextual.

Maps are (B, C, h, w); every loss is a scalar, computed in float32, with the gradient in its first argument.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from reposer.losses.perceptual import layer_differences

MAX_SIDE = 64  # the contextual loss compares at most 64 x 64 places


def content_loss(maps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of the maps, mean over the layers (CASD)."""
    return torch.stack(layer_differences(maps, wanted, "l1")).mean()


def style_loss(maps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean absolute difference of the Gram matrices, mean over the layers (Gatys et al., CVPR 2016)."""
    pairs = zip(maps, wanted, strict=True)
    return torch.stack([F.l1_loss(gram_matrix(a), gram_matrix(b)) for a, b in pairs]).mean()


def gram_matrix(maps: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, C) float32: F F^T / (C h w) with F of shape (C, h w)."""
    with torch.autocast(maps.device.type, enabled=False):
        flat = maps.float().flatten(2)
        return flat @ flat.transpose(1, 2) / (flat.shape[1] * flat.shape[2])


def contextual_loss(maps: Sequence[Tensor], wanted: Sequence[Tensor], bandwidth: float = 0.1) -> Tensor:
    """Every wanted feature shall have a generated one like it, wherever; mean over the layers and the batch.

    Mechrez et al., ECCV 2018: features centered by the wanted ones' mean and made length 1; d = 1 - cosine;
    d' = d / (min over the wanted + 1e-5); w = exp((1 - d') / bandwidth); CX = w / (its sum over the wanted);
    -log of the mean over the wanted of the largest CX over the generated. Maps above 64 x 64 are pooled.
    """
    terms = [_contextual(a.float(), b.float(), bandwidth) for a, b in zip(maps, wanted, strict=True)]
    return torch.stack(terms).mean()


def _contextual(maps: Tensor, wanted: Tensor, bandwidth: float) -> Tensor:
    size = (min(maps.shape[2], MAX_SIDE), min(maps.shape[3], MAX_SIDE))
    if size != tuple(maps.shape[2:]):
        maps, wanted = F.adaptive_avg_pool2d(maps, size), F.adaptive_avg_pool2d(wanted, size)
    with torch.autocast(maps.device.type, enabled=False):
        center = wanted.mean((2, 3), keepdim=True)
        x, y = (F.normalize((m - center).flatten(2), dim=1) for m in (maps, wanted))  # (B, C, N)
        distance = (1 - x.transpose(1, 2) @ y).clamp_min(0)  # (B, N generated, N wanted)
        relative = distance / (distance.amin(2, keepdim=True) + 1e-5)
        similarity = torch.softmax((1 - relative) / bandwidth, 2)
        return -similarity.amax(1).mean(1).clamp_min(1e-12).log().mean()
