"""Regional pose-guided semantic fusion: module 1 of RSA-GAN (reconstruction from the abstract).

Region by region (models.body_regions) the source's key-point maps and the parsing labels of that region are
encoded by convolutions of their own, and a gate decides place by place which of the two to believe: labels
that do not fit the joints of their region are turned down there and nowhere else. Liu, Weng, Zhu, CAAI Trans.
Intell. Technol. 2023, doi 10.1049/cit2.12255, say what it is for; its form is ours (docs/method.md).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.models.body_regions import membership
from reposer.models.layers import ConvNormAct, Padding, ResidualBlock, check_choice, make_norm
from reposer.structures import NUM_JOINTS

FUSIONS = ("gate", "film", "concat")


class RegionEncoder(nn.Sequential):
    """(B, R K, H, W) -> (B, R c, h, w): stride-2 convolutions in which no region sees another."""

    def __init__(
        self,
        regions: int,
        planes: int,
        channels: int,
        halvings: int,
        norm: str,
        slope: float,
        padding: Padding,
    ) -> None:
        steps: list[nn.Module] = []
        for step in range(halvings):
            width = regions * (channels if step else planes)
            steps += [
                nn.Conv2d(
                    *(width, regions * channels, 3, 2, 1),
                    groups=regions,
                    bias=False,
                    padding_mode=padding,
                ),
                make_norm(norm, regions * channels),
                nn.LeakyReLU(slope, inplace=True),
            ]
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
        joints, members = membership(partition, labels)
        self.register_buffer("joints", joints, persistent=False)
        self.register_buffer("members", members, persistent=False)
        self.regions, self.region_channels, self.fusion = len(joints), region_channels, fusion
        layer = (norm, lrelu_slope, padding)
        self.encode_pose = RegionEncoder(self.regions, NUM_JOINTS, region_channels, halvings, *layer)
        self.encode_labels = RegionEncoder(self.regions, members.shape[1], region_channels, halvings, *layer)
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

    def forward(self, pose: Tensor, parsing: Tensor, prior: Tensor) -> Tensor:
        """The fused semantics.

        Args:
            pose: (B, 18, H, W) key-point maps of the source, all zero for a missing joint.
            parsing: (B, L, H, W) one-hot label map of the source.
            prior: (B, R, H, W) in [0, 1], how near a pixel is to the region's limbs; or 1.

        Returns:
            (B, C, h, w).
        """
        fused = self.regional(pose, parsing, prior)
        semantics: Tensor = self.join(fused.flatten(1, 2))
        return semantics

    def regional(self, pose: Tensor, parsing: Tensor, prior: Tensor) -> Tensor:
        """(B, R, c, h, w) the regions before they are joined; arguments as of ``forward``."""
        joints, members = self.joints, self.members  # (R, 18), (R, L)
        p = self._split(self.encode_pose((pose.unsqueeze(1) * joints[:, :, None, None]).flatten(1, 2)))
        labeled = parsing.unsqueeze(1) * members[:, :, None, None] * prior.unsqueeze(2)
        s = self._split(self.encode_labels(labeled.flatten(1, 2)))
        visible = (pose.amax((2, 3)) > 0).unsqueeze(1) & joints  # (B, R, 18)
        seen = visible.any(2)[:, :, None, None, None]
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
