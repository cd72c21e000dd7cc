"""Pose maps: one Gaussian per joint, made on the batch's device from key-points (never stored on disk).

PATN and its descendants store exp(-d^2 / 2 sigma^2) with sigma = 6 pixels at full size, a missing joint as an
all-zero channel. PATN's DeepFashion script writes them as uint8, which leaves one lit pixel per joint; these
are true Gaussians.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gaussian_maps(keypoints: Tensor, height: int, width: int, sigma: float = 6.0) -> Tensor:
    """(B, J, 2) x, y in pixels, NaN missing -> (B, J, H, W) float32 in [0, 1]; a missing joint gives zeros.

    The Gaussian is separable: two short exponentials per joint and one outer product instead of H * W
    exponentials.
    """
    keypoints = keypoints.to(torch.float32)
    x = torch.arange(width, device=keypoints.device, dtype=torch.float32)
    y = torch.arange(height, device=keypoints.device, dtype=torch.float32)
    scale = -0.5 / sigma**2
    along_x = torch.exp(scale * (x - keypoints[..., 0:1]).square())  # (B, J, W)
    along_y = torch.exp(scale * (y - keypoints[..., 1:2]).square())  # (B, J, H)
    present = ~keypoints.isnan().any(-1, keepdim=True)  # (B, J, 1)
    along_x = torch.where(present, along_x, 0.0)
    along_y = torch.where(present, along_y, 0.0)
    return along_y[..., :, None] * along_x[..., None, :]
