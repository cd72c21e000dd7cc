"""Regions of the body: which joints, limbs and parsing labels belong to each, as matrices and soft maps.

A garment label belongs to several regions on purpose (sleeves, trouser legs): whoever uses a region has to
find the part of the garment that lies there. Limbs are pairs of OpenPose-18 joints, labels are LIP-20's
(or those of the eight merged ones); left and right are the person's own.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reposer.models.layers import check_choice
from reposer.structures import NUM_JOINTS, NUM_LABELS


class Region(NamedTuple):
    """Members of a region, by index."""

    joints: tuple[int, ...]
    labels: tuple[int, ...]  # of LIP-20
    merged: tuple[int, ...]  # of the eight merged labels


REGIONS: dict[str, Region] = {
    "head": Region((0, 1, 14, 15, 16, 17), (1, 2, 4, 11, 13), (2, 4)),
    "torso": Region((1, 2, 5, 8, 11), (5, 6, 7, 10, 11), (5,)),
    "right_arm": Region((2, 3, 4), (3, 5, 6, 7, 10, 15), (3, 5, 6)),
    "left_arm": Region((5, 6, 7), (3, 5, 6, 7, 10, 14), (3, 5, 6)),
    "right_leg": Region((8, 9, 10), (6, 8, 9, 10, 12, 17, 19), (1, 5, 7)),
    "left_leg": Region((11, 12, 13), (6, 8, 9, 10, 12, 16, 18), (1, 5, 7)),
}
PARTITIONS = ("six", "merged_sides", "labels")
LABEL_COUNTS = {"lip20": NUM_LABELS, "merged8": 8}
# LIP-20 -> background, lower clothes, hair, gloves, face, upper clothes, arms, legs and shoes (ADGAN, CASD)
MERGE_TABLE = (0, 2, 2, 3, 4, 5, 5, 5, 7, 1, 5, 5, 1, 4, 6, 6, 7, 7, 7, 7)

LIMBS = (
    *((1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)


def membership(partition: str = "six", labels: str = "lip20") -> tuple[Tensor, Tensor]:
    """Joints and labels of each region.

    Args:
        partition: "six"; "merged_sides": head, torso, arms, legs; "labels": a region for each label, with the
            joints of all regions that the label belongs to.
        labels: "lip20" or "merged8".

    Returns:
        a (R, 18) and b (R, L), bool.

    Raises:
        UserError: neither of the names.
    """
    check_choice("partition", partition, PARTITIONS)
    check_choice("labels", labels, LABEL_COUNTS)
    joints = torch.zeros(len(REGIONS), NUM_JOINTS, dtype=torch.bool)
    members = torch.zeros(len(REGIONS), LABEL_COUNTS[labels], dtype=torch.bool)
    for row, region in enumerate(REGIONS.values()):
        joints[row, list(region.joints)] = True
        members[row, list(region.labels if labels == "lip20" else region.merged)] = True
    if partition == "merged_sides":
        sides = ((0,), (1,), (2, 3), (4, 5))
        joints = torch.stack([joints[list(rows)].any(0) for rows in sides])
        members = torch.stack([members[list(rows)].any(0) for rows in sides])
    elif partition == "labels":
        joints = (members.T.float() @ joints.float()) > 0
        members = torch.eye(len(joints), dtype=torch.bool)
    return joints, members


def limb_prior(keypoints: Tensor, joints: Tensor, height: int, width: int, sigma: float = 0.05) -> Tensor:
    """How near each pixel is to the limbs of each region: exp(-d^2 / 2 s^2), s = ``sigma`` x height.

    d is the distance to the nearest limb of which both joints are visible and belong to the region, or to a
    visible joint of it. A region without a visible joint has no prior: 1 everywhere.

    Args:
        keypoints: (B, 18, 2) x, y in pixels, NaN missing.
        joints: (R, 18) bool, from ``membership``.

    Returns:
        (B, R, H, W) float32 in [0, 1].
    """
    device = keypoints.device
    pairs = torch.tensor(
        [*LIMBS, *((j, j) for j in range(NUM_JOINTS))], device=device
    )  # a joint is a short limb
    ends = keypoints.float()[:, pairs]  # (B, S, 2, 2)
    seen = ~ends.isnan().any(-1).any(-1)  # (B, S)
    start, stop = ends.nan_to_num(0.0).unbind(2)  # (B, S, 2)
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    grid = torch.stack((x, y), -1).view(1, 1, -1, 2)  # (1, 1, HW, 2)
    along = (stop - start).unsqueeze(2)  # (B, S, 1, 2)
    offset = grid - start.unsqueeze(2)
    share = (offset * along).sum(-1) / along.square().sum(-1).clamp_min(1e-6)
    distance = (offset - share.clamp(0, 1).unsqueeze(-1) * along).square().sum(-1)  # (B, S, HW), squared
    inside = joints.to(device)[:, pairs].all(-1)  # (R, S)
    usable = seen.unsqueeze(1) & inside  # (B, R, S)
    masked = torch.where(usable.unsqueeze(-1), distance.unsqueeze(1), torch.inf)
    prior = torch.exp(-0.5 * masked.amin(2) / (sigma * height) ** 2)  # (B, R, HW)
    prior = torch.where(usable.any(2).unsqueeze(-1), prior, 1.0)
    return prior.view(len(keypoints), len(joints), height, width)
