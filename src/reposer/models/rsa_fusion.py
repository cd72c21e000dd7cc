"""Regional pose-guided semantic fusion: module 1 of RSA-GAN (reconstruction from the abstract).

Region by region (models.rsa_fusion) the source's keypoint maps and the parsing labels of that region are
encoded by convolutions of their own, and a gate decides place by place which of the two to believe: labels
that do not fit the joints of their region are turned down there and nowhere else. Liu, Weng, Zhu, CAAI Trans.
Intell. Technol. 2023, doi 10.1049/cit2.12255, say what it is for; its form is ours
(docs/explanation/rsa-gan.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.models.layers import ConvNormAct, Padding, ResidualBlock, check_choice, make_norm
from reposer.models.pose_maps import PoseMaps, convolve
from reposer.structures import NUM_JOINTS, NUM_LABELS

# ---- Regions of the body: which joints, limbs and parsing labels belong to each, as matrices and soft maps.
#
# A garment label belongs to several regions on purpose (sleeves, trouser legs): whoever uses a region has to
# find the part of the garment that lies there. Limbs are pairs of OpenPose-18 joints, labels are LIP-20's
# (or those of the eight merged ones); left and right are the person's own.


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


FUSIONS = ("gate", "film", "concat")


class RegionConv(nn.Conv2d):
    """The first convolution of every region, stride 2, of the planes that belong to it; in groups.

    Its R K input planes, of which most are zero, are never made: subclasses see the K planes that there are.
    """

    own: Tensor  # (R c, K, 1, 1) float, buffer: whether an output's region has that plane

    def __init__(self, members: Tensor, channels: int, padding: Padding) -> None:
        regions, planes = members.shape
        super().__init__(
            *(regions * planes, regions * channels, 3, 2, 1),
            groups=regions,
            bias=False,
            padding_mode=padding,
        )
        own = members.float().repeat_interleave(channels, 0)[:, :, None, None]
        self.register_buffer("own", own, persistent=False)


class JointConv(RegionConv):
    """:class:`RegionConv` of keypoint maps: PoseMaps of (B, 18, H, W) -> (B, R c, H/2, W/2)."""

    def forward(self, maps: PoseMaps) -> Tensor:  # type: ignore[override]
        return convolve(maps, self.weight * self.own, 2, 1, self.padding_mode)


class LabelConv(RegionConv):
    """:class:`RegionConv` of labels, each weighted by its region's prior.

    What it sees are the P pairs (region, label) that exist, 36 of 120 planes for six regions of LIP-20, and
    one dense convolution of them: libraries are several times slower at groups.
    """

    pick: Tensor  # (L, P) float, buffers: the label of each pair
    spread: Tensor  # (R, P), its region

    def __init__(self, regions: Sequence[Members], members: Tensor, channels: int, padding: Padding) -> None:
        super().__init__(members, channels, padding)
        pairs = [(r, label) for r, region in enumerate(regions) for label in region.labels]
        pick = torch.tensor([[float(i == label) for _, label in pairs] for i in range(members.shape[1])])
        spread = torch.tensor([[float(i == r) for r, _ in pairs] for i in range(len(regions))])
        self.register_buffer("pick", pick, persistent=False)
        self.register_buffer("spread", spread, persistent=False)

    def planes(self, parsing: Tensor, prior: Tensor) -> Tensor:
        """(B, L, H, W) one-hot and (B, R, H, W) -> (B, P, H, W), label times prior; channels last."""
        labels, priors = (x.permute(0, 2, 3, 1) for x in (parsing, prior))
        return ((labels @ self.pick) * (priors @ self.spread)).permute(0, 3, 1, 2)

    def forward(self, planes: Tensor) -> Tensor:
        own = self.spread.repeat_interleave(self.out_channels // self.groups, 0)  # (R c, P)
        weight = (self.weight.permute(2, 3, 0, 1) @ self.pick * own).permute(2, 3, 0, 1)  # (R c, P, 3, 3)
        if self.padding_mode == "reflect":
            return F.conv2d(F.pad(planes, (1, 1, 1, 1), mode="reflect"), weight, stride=2)
        return F.conv2d(planes, weight, stride=2, padding=1)


class RegionEncoder(nn.Sequential):
    """What ``first`` takes -> (B, R c, h, w): stride-2 convolutions in which no region sees another."""

    def __init__(self, first: RegionConv, halvings: int, norm: str, slope: float, padding: Padding) -> None:
        width, regions = first.out_channels, first.groups
        steps: list[nn.Module] = []
        for step in range(halvings):
            layer: nn.Module = first
            if step:
                layer = nn.Conv2d(width, width, 3, 2, 1, groups=regions, bias=False, padding_mode=padding)
            steps += [layer, make_norm(norm, width), nn.LeakyReLU(slope, inplace=True)]
        super().__init__(*steps)


class RegionalFusion(nn.Module):
    """Keypoint maps and parsing of the source -> semantics of the source that both agree on."""

    joints: Tensor  # (R, 18) bool, buffers
    members: Tensor  # (R, L) bool

    def __init__(
        self,
        channels: int = 256,  # C of the result
        region_channels: int = 48,  # c of each region
        halvings: int = 2,
        partition: str = "six",  # six | merged_sides | labels
        labels: str = "lip20",  # lip20 | merged8
        fusion: str = "gate",  # gate g s + (1 - g) p | film s (1 + a) + b | concat: a 1x1 convolution of both
        norm: str = "instance",
        lrelu_slope: float = 0.2,
        padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        check_choice("fusion", fusion, FUSIONS)
        parts = regions_of(partition, labels)
        joints, members = membership(partition, labels)
        self.register_buffer("joints", joints, persistent=False)
        self.register_buffer("members", members, persistent=False)
        self.regions, self.region_channels, self.fusion = len(joints), region_channels, fusion
        self.limbs = tuple(region.limbs for region in parts)  # for limb_prior
        layer = (norm, lrelu_slope, padding)
        self.encode_pose = RegionEncoder(JointConv(joints, region_channels, padding), halvings, *layer)
        self.encode_labels = RegionEncoder(
            LabelConv(parts, members, region_channels, padding), halvings, *layer
        )
        # pose of a region without joints
        self.unseen = nn.Parameter(torch.zeros(self.regions, region_channels))
        outputs = region_channels * (2 if fusion == "film" else 1)
        self.mix = nn.Conv2d(
            2 * region_channels * self.regions, outputs * self.regions, 1, groups=self.regions
        )
        self.join = nn.Sequential(
            ConvNormAct(region_channels * self.regions, channels, 1, 1, norm, lrelu_slope, padding),
            ResidualBlock(channels, 0.0, norm, lrelu_slope, padding),
        )

    def forward(self, pose: PoseMaps, parsing: Tensor, prior: Tensor) -> Tensor:
        """The fused semantics.

        Args:
            pose: of (B, 18, H, W), keypoint maps of the source, all zero for a missing joint.
            parsing: (B, L, H, W) one-hot label map of the source.
            prior: (B, R, H, W) in [0, 1], how near a pixel is to the region's limbs; or 1.

        Returns:
            (B, C, h, w).
        """
        fused = self.regional(pose, parsing, prior)
        semantics: Tensor = self.join(fused.flatten(1, 2))
        return semantics

    def regional(self, pose: PoseMaps, parsing: Tensor, prior: Tensor) -> Tensor:
        """(B, R, c, h, w) the regions before they are joined; arguments as of ``forward``."""
        first = self.encode_labels[0]
        assert isinstance(first, LabelConv)
        p = self._split(self.encode_pose(pose))
        s = self._split(self.encode_labels(first.planes(parsing, prior)))
        seen = (pose.lit().unsqueeze(1) & self.joints).any(2)[:, :, None, None, None]  # (B, R, 1, 1, 1)
        p = torch.where(seen, p, self.unseen[:, :, None, None].to(p.dtype))
        mixed = self._split(self.mix(torch.cat((p, s), 2).flatten(1, 2)))
        if self.fusion == "gate":
            gate = mixed.sigmoid()
            return gate * s + (1 - gate) * p
        if self.fusion == "film":
            scale, shift = mixed.chunk(2, 2)
            return s * (1 + scale) + shift
        return F.leaky_relu(mixed, 0.2)

    def _split(self, maps: Tensor) -> Tensor:
        """(B, R c, h, w) -> (B, R, c, h, w)."""
        return maps.reshape(len(maps), self.regions, -1, *maps.shape[2:])
