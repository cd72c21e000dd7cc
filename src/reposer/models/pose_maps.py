"""Pose maps, made on the batch's device from keypoints (never stored on disk): Gaussians, discs, limbs.

PATN and its descendants store exp(-d^2 / 2 sigma^2) with sigma = 6 pixels at full size, a missing joint as an
all-zero channel. PATN's DeepFashion script writes them as uint8, which leaves one lit pixel per joint; these
are true Gaussians.

A Gaussian is the outer product of one along y and one along x. :class:`PoseMaps` keeps the two factors, and
:func:`convolve` applies a k x k convolution to them as two matrix products, k times less work than on the
planes: with 18 joints at full resolution these are the largest convolutions of a small generator or critic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.structures import LIMBS, PairBatch


@dataclass(frozen=True, slots=True)
class PoseMaps:
    """(B, J, H, W) maps as their factors: map[b, j, y, x] = along_y[b, j, y] * along_x[b, j, x]."""

    along_y: Tensor  # (B, J, H) float32 in [0, 1], zeros for a missing joint
    along_x: Tensor  # (B, J, W)

    def dense(self) -> Tensor:
        """(B, J, H, W) the maps themselves."""
        return self.along_y[..., :, None] * self.along_x[..., None, :]

    def lit(self) -> Tensor:
        """(B, J) bool, whether any pixel of the map is above 0."""
        return self.along_y.amax(2) * self.along_x.amax(2) > 0

    def padded(self, multiple: int) -> PoseMaps:
        """The maps of ``layers.pad_to_multiple``: the border repeated on both sides."""
        rows, columns = -self.along_y.shape[2] % multiple, -self.along_x.shape[2] % multiple
        if not (rows or columns):
            return self
        y = F.pad(self.along_y, (rows // 2, rows - rows // 2), mode="replicate")
        return PoseMaps(y, F.pad(self.along_x, (columns // 2, columns - columns // 2), mode="replicate"))


class PoseConv2d(nn.Conv2d):
    """A convolution that takes :class:`PoseMaps`: (B, J, H, W) as factors -> (B, out, H', W')."""

    def forward(self, maps: PoseMaps) -> Tensor:  # type: ignore[override]
        out = convolve(maps, self.weight, self.stride[0], int(self.padding[0]), self.padding_mode)
        return out if self.bias is None else out + self.bias[:, None, None]


def pose_maps(keypoints: Tensor, height: int, width: int, sigma: float = 6.0) -> PoseMaps:
    """(B, J, 2) x, y in pixels, NaN missing -> the maps of (H, W) pixels; a missing joint gives zeros."""
    keypoints = keypoints.to(torch.float32)
    x = torch.arange(width, device=keypoints.device, dtype=torch.float32)
    y = torch.arange(height, device=keypoints.device, dtype=torch.float32)
    scale = -0.5 / sigma**2
    along_x = torch.exp(scale * (x - keypoints[..., 0:1]).square())  # (B, J, W)
    along_y = torch.exp(scale * (y - keypoints[..., 1:2]).square())  # (B, J, H)
    present = ~keypoints.isnan().any(-1, keepdim=True)  # (B, J, 1)
    return PoseMaps(torch.where(present, along_y, 0.0), torch.where(present, along_x, 0.0))


def gaussian_maps(keypoints: Tensor, height: int, width: int, sigma: float = 6.0) -> Tensor:
    """(B, J, 2) x, y in pixels, NaN missing -> (B, J, H, W) float32 in [0, 1]; a missing joint gives zeros.

    The Gaussian is separable: two short exponentials per joint and one outer product instead of H * W
    exponentials.
    """
    return pose_maps(keypoints, height, width, sigma).dense()


def both_poses(batch: PairBatch, sigma: float) -> tuple[Tensor, Tensor]:
    """Maps of the source's and of the target's joints, each (B, J, H, W) at the size of the source image."""
    height, width = batch.source_image.shape[-2:]
    keypoints = (batch.source_keypoints, batch.target_keypoints)
    source, target = (gaussian_maps(points, height, width, sigma) for points in keypoints)
    return source, target


def convolve(
    maps: PoseMaps, weight: Tensor, stride: int = 1, padding: int = 0, padding_mode: str = "zeros"
) -> Tensor:
    """``F.conv2d`` of the dense maps, to float tolerance; gradients reach the weight only.

    sum_{j, v, u} Y[j, y + v] X[j, x + u] w[o, j, v, u]: first over u, joint by joint, then over j and v.

    Args:
        maps: of J joints.
        weight: (O, J, k, k).
        stride, padding, padding_mode: as of ``nn.Conv2d``; padding_mode is zeros or reflect.

    Returns:
        (B, O, H', W'), channels last in memory.
    """
    joints, kernel = weight.shape[1], weight.shape[2]
    rows = _windows(maps.along_y, kernel, stride, padding, padding_mode)  # (B, J, H', k)
    columns = _windows(maps.along_x, kernel, stride, padding, padding_mode)  # (B, J, W', k)
    batch, _, width, _ = columns.shape
    taps = weight.permute(1, 3, 2, 0).reshape(joints, kernel, -1)  # (J, k, k O)
    mixed = columns.transpose(0, 1).reshape(joints, -1, kernel) @ taps  # (J, B W', k O)
    mixed = mixed.view(joints, batch, width, kernel, -1).permute(1, 0, 3, 2, 4)  # (B, J, k, W', O)
    lines = rows.transpose(1, 2).flatten(2)  # (B, H', J k)
    out = lines @ mixed.reshape(batch, joints * kernel, -1)  # (B, H', W' O)
    return out.view(batch, out.shape[1], width, -1).permute(0, 3, 1, 2)


def _windows(along: Tensor, kernel: int, stride: int, padding: int, mode: str) -> Tensor:
    """(B, J, N) -> (B, J, N', kernel), what each place of the result sees."""
    padded = F.pad(along, (padding, padding), mode="constant" if mode == "zeros" else mode)
    return padded.unfold(2, kernel, stride)


# ---- Discs and limbs; where a network works at a size of its own, pictures and keypoints brought to it.


def disc_maps(
    keypoints: Tensor, height: int, width: int, radius: float = 4.0, truncate: bool = False
) -> Tensor:
    """(B, J, 2) x, y in pixels, NaN missing -> (B, J, H, W) float32, 1 within the radius and 0 elsewhere.

    A missing joint gives zeros. With ``truncate`` joints move to whole pixels first, as in PG2.
    """
    points = keypoints.to(torch.float32)
    points = points.trunc() if truncate else points
    x = torch.arange(width, device=points.device, dtype=torch.float32) - points[..., 0:1]  # (B, J, W)
    y = torch.arange(height, device=points.device, dtype=torch.float32) - points[..., 1:2]
    return (y.square()[..., :, None] + x.square()[..., None, :] <= radius**2).float()


def segment_distance(
    start: Tensor, end: Tensor, height: int, width: int, steps: Tensor | None = None
) -> Tensor:
    """Squared distance of each pixel to each segment, or to equally spaced points on it.

    Args:
        start, end: (B, N, 2) x, y in pixels; NaN gives NaN.
        height, width: of the picture.
        steps: (B, N) how many equal steps lead from start to end; None: all points of the segment count.

    Returns:
        (B, N, H, W) float32.
    """
    x = torch.arange(width, device=start.device, dtype=torch.float32)
    y = torch.arange(height, device=start.device, dtype=torch.float32)
    x, y = (x - start[..., 0:1])[..., None, :], (y - start[..., 1:2])[..., :, None]  # from the start
    dx, dy = (end - start)[..., None, None, :].unbind(-1)  # (B, N, 1, 1)
    along = ((x * dx + y * dy) / (dx.square() + dy.square()).clamp_min(1e-6)).clamp(0, 1)
    if steps is not None:
        along = (along * steps[..., None, None]).round() / steps[..., None, None]
    return (x - along * dx).square() + (y - along * dy).square()


def limb_mask(keypoints: Tensor, height: int, width: int, radius: float = 4.0) -> Tensor:
    """The pose mask of PG2 and DPIG: (B, J, 2) x, y in pixels -> (B, 1, H, W) float32, 1 near a limb.

    Discs of the radius at both ends of each limb that has both, and at int(length / radius) - 1 equal steps
    between; then dilated and eroded by 5x5. Nobody's mask is empty.
    """
    joints = keypoints.to(torch.float32).trunc()
    mask = torch.zeros(len(joints), 1, height, width, device=joints.device)
    for first, second in LIMBS:  # one by one, which needs little memory
        start, end = joints[:, first : first + 1], joints[:, second : second + 1]
        steps = ((end - start).norm(dim=-1) / radius).trunc().clamp_min(1)
        near = segment_distance(start, end, height, width, steps) <= radius**2
        mask = torch.where(near, 1.0, mask)
    grown = F.max_pool2d(mask, 5, stride=1, padding=2)
    return -F.max_pool2d(-grown, 5, stride=1, padding=2)


def moved(keypoints: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """(B, J, 2) x, y in pixels of a picture of ``old`` (H, W) -> in pixels of the same at ``new`` (H, W)."""
    keypoints = keypoints.to(torch.float32)
    if old == new:
        return keypoints
    scale = keypoints.new_tensor([new[1] / old[1], new[0] / old[0]])
    return (keypoints + 0.5) * scale - 0.5
