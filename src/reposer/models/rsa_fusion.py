"""Regional pose-guided semantic fusion: module 1 of RSA-GAN (reconstruction from the abstract).

Region by region (models.body_regions) the source's key-point maps and the parsing labels of that region are
encoded by convolutions of their own, and a gate decides place by place which of the two to believe: labels
that do not fit the joints of their region are turned down there and nowhere else. Liu, Weng, Zhu, CAAI Trans.
Intell. Technol. 2023, doi 10.1049/cit2.12255, say what it is for; its form is ours (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.models.body_regions import Members, membership, regions_of
from reposer.models.layers import ConvNormAct, Padding, ResidualBlock, check_choice, make_norm
from reposer.models.pose_maps import PoseMaps, convolve

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
    """:class:`RegionConv` of key-point maps: PoseMaps of (B, 18, H, W) -> (B, R c, H/2, W/2)."""

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
    """Key-point maps and parsing of the source -> semantics of the source that both agree on."""

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
        self.unseen = nn.Parameter(
            torch.zeros(self.regions, region_channels)
        )  # pose of a region without joints
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
            pose: of (B, 18, H, W), key-point maps of the source, all zero for a missing joint.
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
