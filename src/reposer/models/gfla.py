"""GFLA: a global flow brings features of the source to the target's pose, a local attention mends it.

Ren, Yu, Chen, Li, Li: "Deep Image Spatial Transformation for Person Image Generation", CVPR 2020 ("Deep Image
Spatial" in SAN's Table 1), with widths and order as in the authors' public code: 12,926,471 parameters at
128x64, 14,047,395 at 256x256. Two stages: ``flow`` trains the flow net alone, ``all`` everything. It differs
in these points:

* the third step of the source net, read by nothing at 128x64, is there but not computed;
* the authors' three CUDA extensions are plain tensor code here (block extractor, reshape of the attention,
  and the 4x4 Gaussian, which stands in :mod:`reposer.losses.perceptual`);
* in stage ``flow`` the image is the source resampled by the flow, which nothing but the eye looks at;
* sizes that do not divide are padded inside; training pairs are not turned and scaled.

Ours is the term ``part_flow``, of weight 0 unless a preset asks for it: how far the flow is from that of the
part warps, for budgets in which the correctness of features does not converge.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.layers import check_choice, crop_to, init_orthogonal, instance_norm, pad_to_multiple
from reposer.models.part_warps import keypoint_flow
from reposer.models.pose_maps import both_poses
from reposer.structures import NUM_JOINTS, PairBatch

DEVIATIONS = (
    "GFLA (Ren et al., CVPR 2020, Deep Image Spatial), built anew. It differs from the authors' code: pairs"
    " are not turned and scaled; the numbers of steps are ours; weights are averaged. The small preset trains"
    " its flow towards that of the part warps as well, and starts from larger weights with Adam's usual"
    " momentum."
)
_HEADS = 0.02  # gain at the start of what flows, masks and images come out of
_SLOPE = 0.1
_STRIDE = 32  # of the flow net
_SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "deepfashion": {"attention": (5, 3)},
    "small": {"ngf": 32, "flow_ngf": 16, "gain": 1.0},
}


def gfla_size(name: str) -> dict[str, Any]:
    """Arguments of ``GFLA`` for a named size: "paper" (128x64), "deepfashion" (256x256), "small" (CPUs).

    Raises:
        UserError: no such size.
    """
    check_choice("size", name, _SIZES)
    return dict(_SIZES[name])


class GFLA(nn.Module):
    """Source image and two poses -> the image; no parsing map, no mask (but for the term ``part_flow``)."""

    needs = ("source_image", "source_keypoints", "target_keypoints")
    about = DEVIATIONS
    stages = {  # noqa: RUF012  a table, never changed
        "flow": ("flow_net",),
        "all": ("flow_net", "source_net", "target_net"),
    }
    extra_terms = {  # noqa: RUF012
        "correctness": "flows",
        "flow_regularity": "flows",
        "part_flow": "part_flow",
    }

    def __init__(
        self,
        ngf: int = 64,  # channels of source and target net at 1/2; twice as many at 1/4, four times at 1/8
        flow_ngf: int = 32,  # channels of the flow net at 1/2; at most eight times as many
        attention: Sequence[int] = (3,),  # its kernels, at 1/4 and 1/8 the size, odd; DeepFashion (5, 3)
        hidden: int = 128,  # channels inside the attention
        sigma: float = 6.0,  # pixels, of the pose maps
        flows: bool = True,  # whether terms may look at the flows
        part_flow: bool = False,  # whether the flow is compared with that of the part warps
        gain: float = 0.02,  # of the orthogonal start, but for the heads
    ) -> None:
        super().__init__()
        if len(attention) not in (1, 2) or any(kernel not in (1, 3, 5, 7) for kernel in attention):
            raise UserError(f"attention={list(attention)}: impossible", "give one or two of 1, 3, 5 and 7")
        if min(ngf, flow_ngf, hidden) < 1:
            raise UserError(
                f"ngf={ngf}, flow_ngf={flow_ngf}, hidden={hidden}: impossible", "give 1 or more of each"
            )
        self.stage = ""
        self.sigma, self.part_flow, self.kernels = sigma, part_flow, tuple(attention)
        self.flow_net = FlowNet(flow_ngf, len(attention))
        self.source_net = encoders_of(3, (ngf, 2 * ngf, 4 * ngf))
        self.target_net = TargetNet(ngf, attention, hidden)
        self.apply(partial(init_orthogonal, gain=gain))
        if gain != _HEADS:
            for head in (*self.flow_net.flow_heads, *self.flow_net.mask_heads, self.target_net.to_image):
                head.apply(partial(init_orthogonal, gain=_HEADS))

    def forward(self, batch: PairBatch, parts: bool = False) -> Any:
        """The generated images (B, 3, H, W) in [-1, 1]; with ``parts`` also :class:`Flows`. Any size."""
        height, width = batch.source_image.shape[-2:]
        poses = both_poses(batch, self.sigma)
        source_pose, target_pose = (pad_to_multiple(maps, _STRIDE) for maps in poses)
        source = pad_to_multiple(to_float(batch.source_image), _STRIDE)
        flows, masks = self.flow_net(torch.cat([source, source_pose, target_pose], dim=1))
        if self.stage == "flow":
            wide = F.interpolate(4 * flows[0], scale_factor=4, mode="bilinear", align_corners=False)
            image = blocks_at(source, wide, 1)[:, :, 0]
        else:
            encoders = self.source_net[: len(flows) + 1]  # with one scale the last is read by nothing
            image = self.target_net(target_pose, maps_of(encoders, source), flows, masks)
        image = crop_to(image, height, width)
        return (image, self._looked_at(batch, flows)) if parts else image

    def _looked_at(self, batch: PairBatch, flows: Sequence[Tensor]) -> Flows:
        height, width = batch.source_image.shape[-2:]
        terms = {
            "flow_regularity": torch.stack(
                [flow_regularity(flow, kernel) for flow, kernel in zip(flows, self.kernels, strict=True)]
            ).sum()
        }
        cropped = tuple(
            crop_to(flow, height // 2**level, width // 2**level) for level, flow in enumerate(flows, start=2)
        )
        if self.part_flow:
            wanted = keypoint_flow(batch)
            terms["part_flow"] = torch.stack(
                [part_flow_loss(flow, *wanted, level) for level, flow in enumerate(cropped, start=2)]
            ).sum()
        return Flows(cropped, terms)


class FlowNet(nn.Module):
    """Source image and both poses -> flow and mask at 1/4 the size, of two scales also at 1/8."""

    def __init__(self, ngf: int, scales: int) -> None:
        super().__init__()
        widths = [min(ngf * 2**level, 8 * ngf) for level in range(5)]  # at 1/2 ... 1/32
        self.encoders = encoders_of(3 + 2 * NUM_JOINTS, widths)
        outs = (widths[3], widths[2], widths[1])  # at 1/16, 1/8, 1/4
        self.decoders = nn.ModuleList(
            Doubling(channels, width, width)
            for channels, width in zip((widths[4], *outs), outs, strict=False)
        )
        self.jumps = nn.ModuleList(Jump(width, width) for width in outs)
        self.flow_heads, self.mask_heads = nn.ModuleList(), nn.ModuleList()
        for width in outs[: -1 - scales : -1]:  # the finest first
            self.flow_heads.append(nn.Conv2d(width, 2, 3, padding=1))
            self.mask_heads.append(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, planes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(B, 39, H, W) -> flows (B, 2, h, w) in pixels of their size, masks (B, 1, h, w); finest first."""
        *skips, x = maps_of(self.encoders, planes)
        decoded: list[Tensor] = []
        for decoder, jump in zip(self.decoders, self.jumps, strict=True):
            x = decoder(x) + jump(skips.pop())
            decoded.insert(0, x)
        flows = [head(x).float() for head, x in zip(self.flow_heads, decoded, strict=False)]
        masks = [head(x).float().sigmoid() for head, x in zip(self.mask_heads, decoded, strict=False)]
        return flows, masks


class TargetNet(nn.Module):
    """The target's pose -> the image, with features of the source by attention where the masks say."""

    def __init__(self, ngf: int, attention: Sequence[int], hidden: int) -> None:
        super().__init__()
        self.encoders = encoders_of(NUM_JOINTS, (ngf, 2 * ngf, 4 * ngf))
        widths = (4 * ngf, 2 * ngf, ngf, ngf)  # at 1/8, 1/4, 1/2, 1/1
        self.blocks = nn.ModuleList(ResidualBlock(width) for width in widths[:3])
        self.decoders = nn.ModuleList(
            Doubling(channels, width, channels) for channels, width in pairwise(widths)
        )
        self.attentions = nn.ModuleList(
            LocalAttention(2 * ngf * 2**scale, kernel, hidden) for scale, kernel in enumerate(attention)
        )
        self.to_image = Jump(ngf, 3)

    def forward(
        self, pose: Tensor, source: Sequence[Tensor], flows: Sequence[Tensor], masks: Sequence[Tensor]
    ) -> Tensor:
        """Pose (B, 18, H, W), source maps at 1/2, 1/4, 1/8; flows and masks at 1/4, 1/8 -> (B, 3, H, W)."""
        x = maps_of(self.encoders, pose)[-1]
        for step, (block, decoder) in enumerate(zip(self.blocks, self.decoders, strict=True)):
            scale = 1 - step  # of the flows: 1 at 1/8, 0 at 1/4
            if 0 <= scale < len(flows):
                attended = self.attentions[scale](source[scale + 1], x, flows[scale])
                x = torch.lerp(x.float(), attended.float(), masks[scale])
            x = decoder(block(x))
        image: Tensor = self.to_image(x)
        return image.float().tanh()


# ---- The local attention, and where the flow leads.


class LocalAttention(nn.Module):
    """k x k features of the source about where the flow leads, weighted by how they fit the target's.

    With blocks S_uv and T_uv of source and target: a = softmax over uv of conv([T ; S]), a k x k convolution
    of stride k on blocks laid side by side; the result is the sum of a_uv S_uv, over k^2 as in the authors'
    code. Neither is laid out: on the target it is a k x k convolution, on the source a sum over uv.
    """

    def __init__(self, channels: int, kernel: int, hidden: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.mix = nn.Conv2d(2 * channels, hidden, kernel, stride=kernel)
        self.weigh = nn.Conv2d(hidden, kernel**2, 1)

    def forward(self, source: Tensor, target: Tensor, flow: Tensor) -> Tensor:
        """(B, C, h, w) twice, flow (B, 2, h, w) in pixels -> (B, C, h, w)."""
        channels, reach = source.shape[1], self.kernel // 2
        blocks = blocks_at(source, flow, self.kernel)  # (B, C, k k, h, w)
        ours, theirs = self.mix.weight[:, :channels], self.mix.weight[:, channels:]
        padded = F.pad(target, (reach,) * 4, mode="replicate")
        mixed = F.conv2d(padded, ours, self.mix.bias)
        mixed = mixed + F.conv2d(blocks.flatten(1, 2), theirs.flatten(1)[..., None, None])
        share = self.weigh(F.leaky_relu(mixed, _SLOPE)).float().softmax(1)
        found: Tensor = (blocks * share[:, None]).sum(2) / self.kernel**2
        return found


def blocks_at(maps: Tensor, flow: Tensor, kernel: int) -> Tensor:
    """k x k values about where a flow leads, between pixels, the border repeated.

    Args:
        maps: (B, C, h, w). flow: (B, 2, h, w) x and y in pixels, added to each place. kernel: odd.

    Returns:
        (B, C, k k, h, w) float32, row by row of the block.
    """
    batch, channels, height, width = maps.shape
    with torch.autocast(maps.device.type, enabled=False):
        x = torch.arange(width, device=maps.device) + flow[:, 0].float()  # (B, h, w)
        y = torch.arange(height, device=maps.device)[:, None] + flow[:, 1].float()
        steps = torch.arange(kernel, device=maps.device) - kernel // 2
        down, right = (s.flatten()[:, None, None] for s in torch.meshgrid(steps, steps, indexing="ij"))
        grid = torch.stack([x[:, None] + right, y[:, None] + down], -1)  # (B, k k, h, w, 2)
        size = torch.tensor([max(width - 1, 1), max(height - 1, 1)], device=maps.device)
        grid = (grid * (2 / size) - 1).flatten(1, 2)
        found = F.grid_sample(maps.float(), grid, padding_mode="border", align_corners=True)
    return found.view(batch, channels, kernel**2, height, width)


# ---- What the objective looks at.


class Flows(NamedTuple):
    """The flows, for the terms of the objective, and the terms that follow from them alone."""

    flows: tuple[Tensor, ...]  # (B, 2, h, w) pixels of their size; at 1/4, of two scales also at 1/8
    terms: dict[str, Tensor]


def flow_regularity(flow: Tensor, kernel: int) -> Tensor:
    """How far k x k patches of a flow (B, 2, h, w) are from affine: mean squared residual norm, x plus y."""
    if kernel < 3:
        return flow.new_zeros(())  # every such patch is affine
    steps = torch.arange(kernel, device=flow.device, dtype=torch.float64)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    plane = torch.stack([x.flatten(), y.flatten(), torch.ones_like(x.flatten())], 1)  # (k k, 3)
    residual = torch.eye(kernel**2, device=flow.device, dtype=plane.dtype) - plane @ torch.linalg.pinv(plane)
    with torch.autocast(flow.device.type, enabled=False):
        patches = F.unfold(flow.float().flatten(0, 1)[:, None], kernel)  # (2 B, k k, N)
        squares: Tensor = (residual.float() @ patches).square().sum(1)
        return 2 * squares.mean()


def part_flow_loss(flow: Tensor, wanted: Tensor, visibility: Tensor, level: int) -> Tensor:
    """Mean distance of a flow (B, 2, h, w) at 1 / 2^level to that of the part warps, in its pixels.

    Args:
        wanted: (B, 2, H, W) pixels. visibility: (B, H, W), 0 where the pixel shows in the source: others do
            not count; 0 where none does.
    """
    step = 2**level
    seen = (visibility == 0)[:, None].float()
    size = (flow.shape[2], flow.shape[3])
    share = F.adaptive_avg_pool2d(seen, size)
    mean = F.adaptive_avg_pool2d(wanted * seen, size) / share.clamp_min(1e-6) / step
    distance = ((flow.float() - mean).square().sum(1, keepdim=True) + 1e-6).sqrt()
    mean_distance: Tensor = (distance * share).sum() / share.sum().clamp_min(1e-6)
    return mean_distance


# ---- Blocks.


class Norm(nn.Module):
    """Instance norm with learned scale and shift; a map of one place, which has no deviation, becomes 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        normed = torch.zeros_like(x) if x.shape[2] * x.shape[3] == 1 else instance_norm(x)
        return normed * self.weight[:, None, None] + self.bias[:, None, None]


def activation() -> nn.Module:
    """LeakyReLU of GFLA and its relatives."""
    return nn.LeakyReLU(_SLOPE)  # not in place: shortcuts and skips read what it reads


class Encoder(nn.Sequential):
    """(B, in, H, W) -> (B, out, H/2, W/2)."""

    def __init__(self, channels: int, width: int) -> None:
        down = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        after = nn.Conv2d(width, width, 3, padding=1)
        super().__init__(Norm(channels), activation(), down, Norm(width), activation(), after)


def encoders_of(channels: int, widths: Sequence[int]) -> nn.ModuleList:
    """Encoders one behind the other, each to the next of the widths."""
    return nn.ModuleList(Encoder(*pair) for pair in pairwise((channels, *widths)))


def maps_of(encoders: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """What each gives, the finest first."""
    maps = []
    for encoder in encoders:
        x = encoder(x)
        maps.append(x)
    return maps


class ResidualBlock(nn.Module):
    """x + [norm, LeakyReLU, 3x3] twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        norms = (Norm(channels), Norm(channels))
        self.branch = nn.Sequential(norms[0], activation(), first, norms[1], activation(), second)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        return x + branch


class Doubling(nn.Module):
    """(B, in, H, W) -> (B, out, 2 H, 2 W): 3x3 to ``hidden``, transposed 3x3; beside it a transposed 3x3."""

    def __init__(self, channels: int, width: int, hidden: int) -> None:
        super().__init__()
        first = nn.Conv2d(channels, hidden, 3, padding=1)
        up, shortcut = (
            nn.ConvTranspose2d(inside, width, 3, stride=2, padding=1, output_padding=1)
            for inside in (hidden, channels)
        )
        self.branch = nn.Sequential(Norm(channels), activation(), first, Norm(hidden), activation(), up)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        beside: Tensor = self.shortcut(x)
        return branch + beside


class Jump(nn.Sequential):
    """LeakyReLU, 3x3 with reflected borders."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(activation(), nn.Conv2d(channels, width, 3, padding=1, padding_mode="reflect"))
