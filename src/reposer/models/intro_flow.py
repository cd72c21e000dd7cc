"""Intro-Flow with key-point flow (not SMPL): feature maps and pixels of the source follow a flow of poses.

Li, Huang, Loy: "Dense Intrinsic Appearance Flow for Human Pose Transfer", CVPR 2019: a flow net F tells from
two poses where each pixel of the target comes from and whether it shows in the source; a U-Net G of two
encoders warps its maps of the source by it; a third net weighs the warped source against G's picture.
Stages: ``flow``, ``features``, ``features_gan`` (the same nets, the discriminator plays), ``blend``. Widths
and order are those of the authors' public code, whose F learns from a fitted body model that no data set has
for everybody. Ours differs:

* F learns from the flow of the part warps (:func:`reposer.models.part_warps.keypoint_flow`), and the groups
  of texture transport stand for the body model's parts; so the name, in every table;
* each encoder has batch norms of its own behind the shared convolutions that halve: 1,088 parameters more at
  128x64, 1,600 at 256x256. The authors share their statistics, which is why their networks are not used in
  eval mode; here pictures do not depend on their batch;
* one discriminator plays on through all stages; sizes that do not divide are padded inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.layers import check_choice, crop_to, init_weights, pad_to_multiple
from reposer.models.part_warps import BACKGROUND, VISIBLE, KeypointFlow, keypoint_flow
from reposer.models.pose_maps import disc_maps
from reposer.models.texture_places import Bodies
from reposer.structures import NUM_JOINTS, PairBatch

DEVIATIONS = (
    "Intro-Flow with key-point flow (not SMPL), after Li et al., CVPR 2019, built anew. It differs from the"
    " authors' code: the flow net learns from affine maps of body parts by keypoints, not from a fitted body"
    " model; the encoders have batch norms of their own, so that a picture does not depend on its batch; one"
    " Adam and one discriminator serve all stages; the discriminator sees poses as Gaussians; weights are"
    " averaged."
)
_UNIT = 20.0  # pixels of a flow of 1 in the flow net
_FIRST = 0.32  # weight of the finest flow's error; half as much at each coarser one
_SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "deepfashion": {"levels": 7, "warped": 5, "flow_levels": 5, "radius": 8.0},
    "small": {"width": 16, "widest": 64, "flow_width": 8},
}


def intro_flow_size(name: str) -> dict[str, Any]:
    """Arguments of ``IntroFlow`` for a named size: "paper" (128x64), "deepfashion" (256x256), "small" (CPUs).

    Raises:
        UserError: no such size.
    """
    check_choice("size", name, _SIZES)
    return dict(_SIZES[name])


class LookedAt(NamedTuple):
    """The terms that the flow net learns by; none while it stands still."""

    terms: dict[str, Tensor]


class IntroFlow(nn.Module):
    """Source image and two poses -> the image; parsing maps and masks are read while the flow net learns."""

    needs = ("source_image", "source_keypoints", "target_keypoints")
    about = DEVIATIONS
    stages = {  # noqa: RUF012  a table, never changed
        "flow": ("flow_net",),
        "features": ("feature_net",),
        "features_gan": ("feature_net",),
        "blend": ("blend_net",),
    }
    extra_terms = dict.fromkeys(("flow_error", "visibility", "flow_in_parts"), "flows")
    stage_terms = dict.fromkeys(extra_terms, "flow")  # the only stage that has them

    def __init__(
        self,
        width: int = 32,  # channels at full size; level l has l + 1 times as many
        widest: int = 128,  # at most
        levels: int = 5,  # halvings of feature and blend net
        warped: int = 4,  # finest levels whose maps of the source are warped
        flow_width: int = 32,  # channels of the flow net at full size
        flow_levels: int = 4,  # its halvings below 1/2
        radius: float = 4.0,  # pixels, of the discs of a pose
        flows: bool = True,  # whether terms may look at the flow
    ) -> None:
        super().__init__()
        if not 1 <= levels <= 8 or not 1 <= flow_levels <= 7 or not 0 <= warped <= levels:
            raise UserError(
                f"levels={levels}, flow_levels={flow_levels}, warped={warped}: impossible together",
                "levels are 1 to 8, flow_levels 1 to 7, and warped at most levels",
            )
        if min(width, widest, flow_width) < 1:
            raise UserError(
                f"width={width}, widest={widest}, flow_width={flow_width}: impossible", "give 1 or more"
            )
        self.stage, self.radius = "", radius
        self.total_stride = 2 ** max(levels, flow_levels + 1)
        widths = [min(width * (level + 1), widest) for level in range(levels + 1)]
        self.flow_net = FlowNet(flow_width, flow_levels)
        self.feature_net = FeatureNet(widths, warped)
        self.blend_net = BlendNet(widths)
        self.apply(init_weights)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, batch: PairBatch, parts: bool = False) -> Any:
        """The generated images (B, 3, H, W) in [-1, 1]; with ``parts`` also :class:`LookedAt`. Any size."""
        height, width = batch.source_image.shape[-2:]
        source_pose, target_pose = (
            pad_to_multiple(disc_maps(points, height, width, self.radius), self.total_stride)
            for points in (batch.source_keypoints, batch.target_keypoints)
        )
        source = pad_to_multiple(to_float(batch.source_image), self.total_stride)
        flows, logits = self.flow_net(torch.cat([source_pose, target_pose], dim=1))
        visibility = logits.argmax(1, keepdim=True)
        person = visibility != BACKGROUND
        flow = _UNIT * _doubled(flows[0]) * person
        moved = torch.where(person, warp(source, flow), -1.0)
        image = moved if self.stage == "flow" else self.feature_net(target_pose, source, flow, visibility)
        if self.stage in ("", "blend"):
            known = torch.cat([image, moved, visibility.float(), flow], dim=1)
            image = torch.lerp(image, moved, self.blend_net(known))
        image = crop_to(image, height, width)
        if not parts:
            return image
        learning = self.stage in ("", "flow")
        return image, LookedAt(self._flow_terms(batch, flows, logits) if learning else {})

    def _flow_terms(self, batch: PairBatch, flows: Sequence[Tensor], logits: Tensor) -> dict[str, Tensor]:
        height, width = batch.source_image.shape[-2:]
        wanted = keypoint_flow(batch)
        both = pad_to_multiple(
            torch.cat([wanted.flow, wanted.visibility[:, None].float()], 1), self.total_stride
        )
        target, person = both[:, :2] / _UNIT, (both[:, 2:] < BACKGROUND).float()
        errors = []
        for level, flow in enumerate(flows, start=1):
            there = F.max_pool2d(person, 2**level)
            distance = _length(flow - F.avg_pool2d(target, 2**level)) * there
            errors.append(_FIRST / 2 ** (level - 1) * distance.sum() / there.sum().clamp_min(1))
        full = crop_to(_doubled(flows[0]), height, width)
        return {
            "flow_error": torch.stack(errors).sum(),
            "visibility": F.cross_entropy(crop_to(logits, height, width), wanted.visibility),
            "flow_in_parts": flow_in_parts(full, wanted, batch),
        }


def flow_in_parts(flow: Tensor, wanted: KeypointFlow, batch: PairBatch) -> Tensor:
    """Mean distance of flow (B, 2, H, W) and wanted one, both of the flow net's unit, over some pixels.

    Those that are visible, and that the flow takes to another group of labels than their own; 0 for none.
    """
    source, target = (
        Bodies.of(parsing, mask, points).group
        for parsing, mask, points in (
            (batch.source_parsing, batch.source_mask, batch.source_keypoints),
            (batch.target_parsing, batch.target_mask, batch.target_keypoints),
        )
    )
    found = warp(source[:, None].float(), _UNIT * flow.detach(), "nearest")[:, 0]
    wrong = ((found != target) & (wanted.visibility == VISIBLE))[:, None].float()
    return (_length(flow - wanted.flow / _UNIT) * wrong).sum() / wrong.sum().clamp_min(1)


def warp(maps: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Maps (B, C, h, w) where a flow (B, 2, h, w) in pixels leads; 0 outside; float32."""
    height, width = maps.shape[2:]
    with torch.autocast(maps.device.type, enabled=False):
        x = torch.arange(width, device=maps.device) + flow[:, 0].float()
        y = torch.arange(height, device=maps.device)[:, None] + flow[:, 1].float()
        size = torch.tensor([max(width - 1, 1), max(height - 1, 1)], device=maps.device)
        grid = torch.stack([x, y], -1) * (2 / size) - 1
        return F.grid_sample(maps.float(), grid, mode, "zeros", align_corners=True)


def _length(flow: Tensor) -> Tensor:
    """(B, 2, h, w) -> (B, 1, h, w), with a slope at 0."""
    return (flow.square().sum(1, keepdim=True) + 1e-12).sqrt()


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


# ---- The flow net.


class FlowNet(nn.Module):
    """Both poses -> flows at 1/2, 1/4, ... and what shows at full size: 7x3 ... and a U-Net of 4x4."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_norm(2 * NUM_JOINTS, width, 7),
            nn.LeakyReLU(0.1, inplace=True),
            *_conv_norm(width, 2 * width, 3, 2),
            nn.LeakyReLU(0.1, inplace=True),
        )
        widths = [min(2 * width * 2**level, 512) for level in range(levels + 1)]
        self.downs, self.ups, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, (channels, after) in enumerate(pairwise(widths), start=1):
            down = nn.Conv2d(channels, after, 4, stride=2, padding=1, bias=False)
            norm = nn.BatchNorm2d(after) if level < levels else nn.Identity()
            self.downs.append(nn.Sequential(nn.LeakyReLU(0.2), down, norm))
        for level, after in reversed(list(enumerate(widths[:-1]))):
            channels = widths[level + 1] * (1 if level == levels - 1 else 2)
            up = nn.ConvTranspose2d(channels, after, 4, stride=2, padding=1, bias=level == 0)
            self.ups.append(nn.Sequential(nn.ReLU(), up, nn.BatchNorm2d(after)))
            self.heads.append(nn.Sequential(nn.LeakyReLU(0.1), nn.Conv2d(after, 2, 3, padding=1)))
        self.shown = nn.Sequential(nn.LeakyReLU(0.1), nn.Conv2d(widths[0], 3, 3, padding=1))

    def forward(self, poses: Tensor) -> tuple[list[Tensor], Tensor]:
        """(B, 36, H, W) -> flows (B, 2, h, w) in units of 20 pixels, finest first; logits (B, 3, H, W)."""
        x = self.stem(poses)
        skips: list[Tensor] = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        flows: list[Tensor] = []
        for level, (up, head) in enumerate(zip(self.ups, self.heads, strict=True)):
            x = up(x if level == 0 else torch.cat([x, skips.pop()], dim=1))
            flows.insert(0, head(x).float())
        return flows, _doubled(self.shown(x).float())


# ---- The U-Nets of residual blocks.


class FeatureNet(nn.Module):
    """Target pose, and the source warped level by level -> the picture."""

    def __init__(self, widths: Sequence[int], warped: int) -> None:
        super().__init__()
        self.pose_in, self.source_in = _conv_norm(NUM_JOINTS, widths[0], 1), _conv_norm(3, widths[0], 1)
        self.pose_blocks, self.source_blocks = (
            nn.ModuleList(nn.ModuleList((_Residual(c), _Residual(c))) for c in widths[:-1]) for _ in range(2)
        )
        self.downs = nn.ModuleList(
            nn.Conv2d(channels, after, 3, 2, 1, bias=False) for channels, after in pairwise(widths)
        )
        self.pose_norms, self.source_norms = (
            nn.ModuleList(nn.BatchNorm2d(after) for after in widths[1:]) for _ in range(2)
        )
        self.warps = nn.ModuleList(
            nn.ModuleList((_Residual(c, 2 * c), _Residual(c, 2 * c))) for c in widths[:warped]
        )
        self.join = _conv_norm(2 * widths[-1], widths[-1], 1)
        self.decoder = _Decoder(widths, 2)
        self.to_image = nn.Conv2d(widths[0], 3, 7, padding=3, padding_mode="reflect")

    def forward(self, pose: Tensor, source: Tensor, flow: Tensor, visibility: Tensor) -> Tensor:
        """(B, 18, H, W), (B, 3, H, W), flow (B, 2, H, W) in pixels, visibility (B, 1, H, W) -> the image."""
        x, y = self.pose_in(pose), self.source_in(source)
        skips: list[list[Tensor]] = []
        for level, down in enumerate(self.downs):
            x, of_pose = _both(self.pose_blocks[level], x)
            y, of_source = _both(self.source_blocks[level], y)
            if level < len(self.warps):
                of_source = self._warped(level, of_source, flow, visibility)
            skips.append([torch.cat(maps, dim=1) for maps in zip(of_pose, of_source, strict=True)])
            x = self.pose_norms[level](down(x.relu()))
            y = self.source_norms[level](down(y.relu()))
        x = self.decoder(self.join(torch.cat([x, y], dim=1)), skips)
        image: Tensor = self.to_image(x)
        return image.float().tanh()

    def _warped(self, level: int, maps: list[Tensor], flow: Tensor, visibility: Tensor) -> list[Tensor]:
        step = 2**level
        flow = F.avg_pool2d(flow, step) / step
        seen = -F.max_pool2d(-visibility.float(), step)  # what shows in the source goes before what does not
        out = []
        blocks = self.warps[level]
        assert isinstance(blocks, nn.ModuleList)
        for block, one in zip(blocks, maps, strict=True):
            moved = warp(one, flow)
            out.append(block(moved, torch.cat([moved * (seen == kind) for kind in (0, 1)], dim=1)))
        return out


class BlendNet(nn.Module):
    """G's picture, the warped source, what shows and the flow -> share of the warped source."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.planes_in = _conv_norm(9, widths[0], 1)
        self.blocks = nn.ModuleList(nn.ModuleList((_Residual(c), _Residual(c))) for c in widths[:-1])
        self.downs = nn.ModuleList(_conv_norm(channels, after, 3, 2) for channels, after in pairwise(widths))
        self.decoder = _Decoder(widths, 1)
        self.out = _conv_norm(widths[0], widths[0], 1)
        self.to_share = nn.Conv2d(widths[0], 1, 7, padding=3, padding_mode="reflect")

    def forward(self, planes: Tensor) -> Tensor:
        """(B, 9, H, W) -> (B, 1, H, W) in [0, 1]."""
        x = self.planes_in(planes)
        skips: list[list[Tensor]] = []
        for blocks, down in zip(self.blocks, self.downs, strict=True):
            x, kept = _both(blocks, x)
            skips.append(kept)
            x = down(x.relu())
        x = self.out(self.decoder(x, skips))
        share: Tensor = self.to_share(x.relu())
        return share.float().sigmoid()


class _Decoder(nn.Module):
    """From the bottom up: double, then two residual blocks beside what was kept, the later first."""

    def __init__(self, widths: Sequence[int], beside: int) -> None:
        super().__init__()
        self.ups, self.joins = nn.ModuleList(), nn.ModuleList()
        for after, channels in reversed(list(pairwise(widths))):
            self.ups.append(_conv_norm(channels, 4 * after, 3, norm=after))
            self.joins.append(nn.ModuleList(_Residual(after, beside * after) for _ in range(2)))

    def forward(self, x: Tensor, skips: list[list[Tensor]]) -> Tensor:
        for up, joins in zip(self.ups, self.joins, strict=True):
            x = up(x.relu())
            kept = skips.pop()
            assert isinstance(joins, nn.ModuleList)
            for merge in joins:
                x = merge(x, kept.pop())
        return x


class _Residual(nn.Module):
    """x + BN(3x3(relu x)); with ``beside`` channels: x + BN(3x3(relu [x ; BN(1x1(relu of those))]))."""

    def __init__(self, channels: int, beside: int = 0) -> None:
        super().__init__()
        self.narrow = _conv_norm(beside, channels, 1) if beside else None
        self.branch = _conv_norm(2 * channels if beside else channels, channels, 3)

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        joined = x
        if self.narrow is not None and beside is not None:
            joined = torch.cat([x, self.narrow(beside.relu())], dim=1)
        branch: Tensor = self.branch(joined.relu())
        return x + branch


def _both(blocks: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What the last of the blocks gives, and what each gives."""
    assert isinstance(blocks, nn.ModuleList)
    kept = []
    for block in blocks:
        x = block(x)
        kept.append(x)
    return x, kept


def _conv_norm(channels: int, width: int, kernel: int, stride: int = 1, norm: int = 0) -> nn.Sequential:
    """Convolution, batch norm; with ``norm`` its output has so many channels, and four times the pixels."""
    layers: list[nn.Module] = [nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)]
    if norm:
        layers.append(nn.PixelShuffle(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(norm or width))
