"""A parser without training: each pixel of the mask goes to the nearest bone, and skin tells what is bare.

It knows no garments but a top and trousers. Meant for where no trained parser is at hand: coarse groups
(hair, face, upper, lower, arms, legs, shoes) are what it can tell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reposer.annotation.interfaces import AnnotatorInfo
from reposer.data.parsing import LIP_LABELS
from reposer.structures import NUM_JOINTS

# Bones of parts: labels covered and bare, joints from and to, how far beyond the second it goes (in its own
# length), its radius (in torso lengths), and the share of skin from which the part counts as bare.


@dataclass(frozen=True)
class _Bone:
    covered: str
    bare: str
    start: int
    end: int
    beyond: float
    radius: float
    share: float


_HAIR, _FACE = LIP_LABELS.index("hair"), LIP_LABELS.index("face")
_FACE_JOINTS = [0, 14, 15, 16, 17]
_HEAD_RADIUS, _FOOT_RADIUS, _FOOT_BELOW = 0.25, 0.16, 0.10  # torso lengths
_NEVER = 1.1
_SIDES = (("right", (2, 3, 4, 8, 9, 10)), ("left", (5, 6, 7, 11, 12, 13)))
_BONES = tuple(
    bone
    for side, (shoulder, elbow, wrist, hip, knee, ankle) in _SIDES
    for bone in (
        _Bone("upper-clothes", "upper-clothes", shoulder, hip, 0.0, 0.30, _NEVER),
        _Bone("upper-clothes", f"{side}-arm", shoulder, elbow, 0.0, 0.12, 0.5),
        _Bone("upper-clothes", f"{side}-arm", elbow, wrist, 0.4, 0.11, 0.5),
        _Bone("pants", f"{side}-leg", hip, knee, 0.0, 0.18, 0.6),
        _Bone("pants", f"{side}-leg", knee, ankle, 0.0, 0.14, 0.5),
    )
)
_ANKLES = (("right-shoe", 10), ("left-shoe", 13))
# Heights of the joints in the box of a standing person's mask, from its top.
_TOP_DOWN = (0.09, 0.18, 0.20, 0.33, 0.44, 0.20, 0.33, 0.44, 0.50, 0.71, 0.91, 0.50, 0.71, 0.91)
_HEIGHTS = torch.tensor([*_TOP_DOWN, 0.075, 0.075, 0.085, 0.085])
_OPPOSITE = torch.tensor([0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16])
_MOST_PIXELS = 65_536  # worked on at once


class RuleParser:
    """Joints, mask and skin to LIP-20: hair, face, upper-clothes, pants, arms, legs, shoes."""

    info = AnnotatorInfo("rule")
    needs_keypoints = True
    needs_masks = True

    def __call__(
        self, images: Tensor, keypoints: Tensor | None = None, masks: Tensor | None = None
    ) -> Tensor:
        """(B, 3, H, W) uint8, (B, 18, 2) pixels with NaN, (B, H, W) bool -> (B, H, W) uint8."""
        count, _, height, width = images.shape
        if masks is None:
            raise ValueError("the rule makes maps from masks")
        if keypoints is None:
            keypoints = torch.full((count, NUM_JOINTS, 2), torch.nan)
        step = max(1, _MOST_PIXELS // (height * width))
        pieces = (torch.split(values, step) for values in (images.cpu(), keypoints, masks))
        return torch.cat([_parse(*piece) for piece in zip(*pieces, strict=True)])


def skin(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 RGB -> (B, H, W) bool by color difference (Chai and Ngan, IEEE TCSVT 1999)."""
    red, green, blue = images.float().unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    cb, cr = (blue - luma) * 0.564 + 128, (red - luma) * 0.713 + 128
    return (cb >= 77) & (cb <= 127) & (cr >= 133) & (cr <= 173)


def _parse(images: Tensor, keypoints: Tensor, masks: Tensor) -> Tensor:
    """One piece of a batch; where a mask is empty, so is the map."""
    top, height = _extent(masks)
    joints = _completed(keypoints.float(), masks, top, height)
    torso = (joints[:, 1] - (joints[:, 8] + joints[:, 11]) / 2).norm(dim=-1)
    torso = torso.clamp(min=0.22 * height, max=0.45 * height)
    head = keypoints[:, _FACE_JOINTS].float().nanmean(1)
    head = torch.where(head.isnan(), torch.stack([joints[:, 1, 0], top + 0.08 * height], -1), head)
    crown = torch.stack([head[:, 0], top + 0.06 * height], -1)
    below = torch.stack([torch.zeros_like(torso), _FOOT_BELOW * torso], -1)
    feet = [joints[:, ankle] + below for _, ankle in _ANKLES]
    starts = torch.stack([(joints[:, 1] + head) / 2, *(joints[:, one.start] for one in _BONES), *feet], 1)
    tips = [joints[:, b.end] + b.beyond * (joints[:, b.end] - joints[:, b.start]) for b in _BONES]
    ends = torch.stack([crown, *tips, *feet], 1)
    radii = torch.tensor([_HEAD_RADIUS, *(one.radius for one in _BONES), *[_FOOT_RADIUS] * 2])
    radii = radii * torso[:, None]
    nearest = _nearest(starts, ends, radii, masks.shape[1:])
    bare = skin(images)
    labels = _labels(nearest, masks, bare)
    chosen = labels.gather(1, nearest.flatten(1)).view_as(nearest)
    chosen = torch.where((nearest == 0) & bare, _FACE, chosen)
    return torch.where(masks, chosen, 0).to(torch.uint8)


def _extent(masks: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) the first row of each mask, and its rows from there to the last."""
    rows = masks.any(2)
    top = rows.float().argmax(1).float()
    bottom = rows.shape[1] - rows.flip(1).float().argmax(1).float()
    return top, (bottom - top).clamp_min(1)


def _completed(joints: Tensor, masks: Tensor, top: Tensor, height: Tensor) -> Tensor:
    """(B, 18, 2) with a missing joint where its opposite is, else where a standing person has it."""
    columns = torch.arange(masks.shape[2], dtype=torch.float32)
    middle = (masks.sum(1) * columns).sum(1) / masks.sum((1, 2)).clamp_min(1)
    standing = torch.stack(
        [middle[:, None].expand(-1, NUM_JOINTS), top[:, None] + height[:, None] * _HEIGHTS], -1
    )
    opposite = joints[:, _OPPOSITE]
    return torch.where(joints.isnan(), torch.where(opposite.isnan(), standing, opposite), joints)


def _nearest(starts: Tensor, ends: Tensor, radii: Tensor, size: torch.Size) -> Tensor:
    """(B, H, W) number of the bone (B, N, 2) that is nearest, in its own radii (B, N)."""
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in size), indexing="ij")
    best = torch.full((len(starts), *size), torch.inf)
    number = torch.zeros(best.shape, dtype=torch.int64)
    for i in range(starts.shape[1]):
        (ax, ay), (dx, dy) = starts[:, i].T[..., None, None], (ends - starts)[:, i].T[..., None, None]
        vx, vy = x - ax, y - ay
        along = ((vx * dx + vy * dy) / (dx * dx + dy * dy).clamp_min(1e-6)).clamp_(0, 1)
        away = torch.hypot(vx - along * dx, vy - along * dy) / radii[:, i, None, None]
        nearer = away < best
        number.masked_fill_(nearer, i)
        torch.minimum(best, away, out=best)
    return number


def _labels(nearest: Tensor, masks: Tensor, bare: Tensor) -> Tensor:
    """(B, 1 + bones + 2) the label of each part of each person: covered, or bare by its share of skin."""
    count = len(_BONES) + 1 + len(_ANKLES)
    index = nearest.flatten(1)
    pixels, skinny = (
        torch.zeros(len(index), count).scatter_add_(1, index, where.flatten(1).float())
        for where in (masks, masks & bare)
    )
    share = skinny / pixels.clamp_min(1)
    covered = [_HAIR, *(LIP_LABELS.index(bone.covered) for bone in _BONES)]
    naked = [_HAIR, *(LIP_LABELS.index(bone.bare) for bone in _BONES)]
    shoes = [LIP_LABELS.index(name) for name, _ in _ANKLES]
    least = torch.tensor([_NEVER, *(bone.share for bone in _BONES), _NEVER, _NEVER])
    return torch.where(share >= least, torch.tensor([*naked, *shoes]), torch.tensor([*covered, *shoes]))
