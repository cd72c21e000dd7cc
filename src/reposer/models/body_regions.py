"""Regions of the body: which joints, limbs and parsing labels belong to each, as matrices and soft maps.

A garment label belongs to several regions on purpose (sleeves, trouser legs): whoever uses a region has to
find the part of the garment that lies there. Limbs are pairs of OpenPose-18 joints, labels are LIP-20's
(or those of the eight merged ones); left and right are the person's own.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class Members(NamedTuple):
    """Of one region, in a partition and a set of labels; by index, ascending."""

    joints: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def limbs(self) -> tuple[tuple[int, int], ...]:
        """Limbs with both ends in the region; a joint that is on none of them is a limb of no length."""
        limbs = [(a, b) for a, b in LIMBS if a in self.joints and b in self.joints]
        ends = {end for limb in limbs for end in limb}
        return (*limbs, *((j, j) for j in self.joints if j not in ends))


def regions_of(partition: str = "six", labels: str = "lip20") -> tuple[Members, ...]:
    """The regions of a partition.

    Args:
        partition: "six"; "merged_sides": head, torso, arms, legs; "labels": a region for each label, with the
            joints of all regions that the label belongs to.
        labels: "lip20" or "merged8".

    Raises:
        UserError: neither of the names.
    """
    check_choice("partition", partition, PARTITIONS)
    check_choice("labels", labels, LABEL_COUNTS)
    six = [(set(r.joints), set(r.labels if labels == "lip20" else r.merged)) for r in REGIONS.values()]
    if partition == "merged_sides":
        six = [six[0], six[1], *(({*a, *c}, {*b, *d}) for (a, b), (c, d) in (six[2:4], six[4:6]))]
    elif partition == "labels":
        everywhere = range(LABEL_COUNTS[labels])
        six = [({j for joints, own in six if label in own for j in joints}, {label}) for label in everywhere]
    return tuple(Members(tuple(sorted(joints)), tuple(sorted(own))) for joints, own in six)


def membership(partition: str = "six", labels: str = "lip20") -> tuple[Tensor, Tensor]:
    """Joints and labels of each region: a (R, 18) and b (R, L), bool; arguments as of ``regions_of``."""
    regions = regions_of(partition, labels)
    joints = [[j in region.joints for j in range(NUM_JOINTS)] for region in regions]
    members = [[label in region.labels for label in range(LABEL_COUNTS[labels])] for region in regions]
    return torch.tensor(joints), torch.tensor(members)


def limb_prior(
    keypoints: Tensor,
    limbs: Sequence[Sequence[tuple[int, int]]],
    height: int,
    width: int,
    sigma: float = 0.05,
) -> Tensor:
    """How near each pixel is to the limbs of each region: exp(-d^2 / 2 s^2), s = ``sigma`` x height.

    d is the distance to the nearest limb of which both joints are visible, or to a visible joint: a limb with
    one visible end is that point. A region without a visible joint has no prior: 1 everywhere.

    Args:
        keypoints: (B, 18, 2) x, y in pixels, NaN missing.
        limbs: of each region (:attr:`Members.limbs`).

    Returns:
        (B, R, H, W) float32 in [0, 1].
    """
    keypoints = keypoints.detach().float()
    x = torch.arange(width, device=keypoints.device, dtype=torch.float32)
    y = torch.arange(height, device=keypoints.device, dtype=torch.float32)[:, None]
    squared = torch.stack([_squared_distance(keypoints, region, y, x) for region in limbs], 1)  # (B, R, H, W)
    prior = torch.exp(squared * (-0.5 / (sigma * height) ** 2))
    return torch.where(squared.isinf(), 1.0, prior)


def _squared_distance(keypoints: Tensor, limbs: Sequence[tuple[int, int]], y: Tensor, x: Tensor) -> Tensor:
    """(B, H, W) squared distance to the nearest of the limbs, infinite where none is visible."""
    if not limbs:  # of the background, where every label is a region
        return torch.full((len(keypoints), len(y), len(x)), torch.inf, device=keypoints.device)
    ends = keypoints[:, torch.tensor(limbs, device=keypoints.device).T]  # (B, 2, S, 2)
    seen = ~ends.isnan().any(-1, keepdim=True)  # (B, 2, S, 1)
    ends = torch.where(seen, ends, ends.flip(1))
    start, stop = ends.nan_to_num(0.0)[..., None, None].unbind(1)  # (B, S, 2, 1, 1)
    along_x, along_y = (stop - start).unbind(2)  # (B, S, 1, 1)
    dx, dy = x - start[:, :, 0], y - start[:, :, 1]  # (B, S, 1, W), (B, S, H, 1)
    length = (along_x.square() + along_y.square()).clamp_min(1e-6)
    share = (dx * (along_x / length) + dy * (along_y / length)).clamp_(0, 1)  # (B, S, H, W)
    away_x, away_y = torch.addcmul(dx, share, along_x, value=-1), torch.addcmul(dy, share, along_y, value=-1)
    distance = away_x.square_().add_(away_y.square_())
    return distance.masked_fill_(~seen.any(1)[..., None], torch.inf).amin(1)
