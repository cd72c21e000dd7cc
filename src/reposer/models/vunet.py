"""VU-Net: a stick figure drawn as a person, with an appearance that a variational code and crops tell.

Esser, Sutter, Ommer: "A Variational U-Net for Conditional Appearance and Shape Generation", CVPR 2018, with
sizes as in the authors' public code. It is trained to give back the target from the target's own crops and
stick figure, and used with the source's crops and the target's stick figure. See ``DEVIATIONS`` for what
differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import resize, to_float
from reposer.models.layers import check_choice
from reposer.models.pose_maps import moved, segment_distance
from reposer.structures import PairBatch

DEVIATIONS = (
    "VU-Net (Esser et al., CVPR 2018), built anew. It differs: five layers that feed nothing are left out"
    " (1,230,848 of 47,419,270 parameters at paper size); losses look at the picture in the data's size, not"
    " squeezed to a square; people without shoulders or hips stay, with grey crops; the start is fitted to 64"
    " targets of pairs; weights are averaged; there is no second round with Gram matrices."
)
_SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper_256": {"size": (256, 256), "crop_halvings": 2},
    "small": {"size": (128, 64), "width": 16, "cap": 40, "scales": 6},
}
_LATENTS = 2  # scales that have a code, from the lowest


def vunet_size(name: str) -> dict[str, Any]:
    """Arguments of ``VUNet``: "paper" for Market-1501, "paper_256" for DeepFashion, "small" for CPUs.

    Raises:
        UserError: no such size.
    """
    check_choice("size", name, _SIZES)
    return dict(_SIZES[name])


@dataclass(frozen=True, slots=True)
class VUNetParts:
    """What the objective may look at beside the image."""

    terms: dict[str, Tensor]  # kl: of the codes, a scalar


class VUNet(nn.Module):
    """The generator of VU-Net. Reads a picture with its keypoints, and the keypoints of another."""

    needs = ("source_image", "source_keypoints", "target_keypoints")
    extra_terms: ClassVar = {"kl": "prior"}
    about = DEVIATIONS

    def __init__(
        self,
        size: Sequence[int] = (128, 128),  # (H, W) it works at; pictures of another size are resized
        width: int = 32,  # channels at full size; each scale has twice as many, up to the cap
        cap: int = 128,
        scales: int = 7,  # the lowest is 2^(scales - 1) times smaller
        crop_halvings: int = 1,  # crops of the appearance are 2^this times smaller than the picture
        dropout: float = 0.1,
        prior: bool = True,  # p(code | pose), for the term kl; the transfer needs none
    ) -> None:
        super().__init__()
        if len(size) != 2 or any(side < 1 or side % 2**scales for side in size):
            raise UserError(f"size={list(size)}: does not divide by {2**scales}", "choose another size")
        if min(width, cap, crop_halvings) < 1 or scales < max(_LATENTS, crop_halvings) + 1:
            raise UserError(
                f"width={width}, cap={cap}, scales={scales}, crop_halvings={crop_halvings}: impossible",
                "each is at least 1, and scales above crop_halvings and at least 3",
            )
        if not 0 <= dropout < 1:
            raise UserError(f"dropout={dropout}: impossible", "dropout is at least 0 and below 1")
        self.size = (int(size[0]), int(size[1]))
        self.crop_size = (self.size[0] >> crop_halvings, self.size[1] >> crop_halvings)
        channels = [min(width * 2**level, cap) for level in range(scales)]
        self.crop_encoder = _Pyramid(24, channels[crop_halvings:], dropout)
        self.posterior = _Posterior(channels[-1], dropout)
        self.pose_encoder = _Pyramid(3, channels, dropout)
        self.decoder = _Decoder(channels, dropout, prior)
        self.to_image = _Conv(channels[0], 3, 3)

    def forward(self, batch: PairBatch, parts: bool = False) -> Any:
        """The generated images (B, 3, H, W); with ``parts`` also :class:`VUNetParts`.

        In eval mode in [-1, 1], the source in the target's pose, by the mean of the code. In train mode the
        target as it is told by itself, not clipped. A missing joint leaves out what hangs on it: a person
        without any has crops of zeros and an empty stick figure.
        """
        image, keypoints = batch.source_image, batch.source_keypoints
        frame = (int(image.shape[-2]), int(image.shape[-1]))
        if self.training:
            image, keypoints = batch.target_image, batch.target_keypoints
        image = resize(to_float(image), self.size)
        own, wanted = (
            _present(moved(points, frame, self.size)) for points in (keypoints, batch.target_keypoints)
        )
        looks = self.crop_encoder(appearance_crops(image, own, *self.crop_size))
        means, codes = self.posterior(looks)
        shapes = self.pose_encoder(stick_figure(wanted, *self.size))
        x, priors = self.decoder(shapes, codes, parts)
        made = resize(self.to_image(x).float(), frame)
        made = made if self.training else made.clamp(-1, 1)
        if not parts:
            return made
        distances = [
            (q.float() - p.float()).square().flatten(1).sum(1) / 2 for q, p in zip(means, priors, strict=True)
        ]
        return made, VUNetParts({"kl": torch.stack(distances).sum(0).mean()})

    @torch.no_grad()
    def begin(self, batch: PairBatch) -> None:
        """Fit the start to pictures: every layer gets outputs of mean 0 and variance 1 on them, in order."""
        layers = [layer for layer in self.modules() if isinstance(layer, _Conv)]
        was = self.training
        for layer in layers:
            layer.fitting = True
        self.train()(batch, parts=self.decoder.priors is not None)
        for layer in layers:
            layer.fitting = False
        self.train(was)


# ---- The network. Every convolution is weight-normalized; ELU comes before it.


class _Conv(nn.Conv2d):
    """w = gain V / |V| for each output channel, V ~ N(0, 0.05)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2)
        nn.init.normal_(self.weight, 0.0, 0.05)
        self.bias: nn.Parameter
        nn.init.zeros_(self.bias)
        self.gain = nn.Parameter(torch.ones(out_channels))
        self.fitting = False  # whether the next pictures tell gain and bias

    def forward(self, x: Tensor) -> Tensor:
        if self.fitting:
            self._fit(x)
        scale = self.gain / torch.linalg.vector_norm(self.weight, dim=(1, 2, 3))
        out: Tensor = self._conv_forward(x, self.weight * scale[:, None, None, None], self.bias)
        return out

    def _fit(self, x: Tensor) -> None:
        """Salimans and Kingma 2016; a channel that does not vary keeps its scale."""
        direction = self.weight / torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
        out = self._conv_forward(x, direction, None).float()
        variance, mean = torch.var_mean(out, (0, 2, 3), correction=0)
        self.gain.copy_(torch.where(variance > 1e-6, (variance + 1e-10).rsqrt(), 1.0))
        self.bias.copy_(-mean * self.gain)


class _Residual(nn.Module):
    """x + conv3(dropout(elu x)); where ``beside`` channels are given, of [x ; conv1(elu beside)]."""

    def __init__(self, channels: int, dropout: float, beside: int = 0) -> None:
        super().__init__()
        self.beside = _Conv(beside, channels, 1) if beside else None
        self.drop = nn.Dropout(dropout)
        self.conv = _Conv(2 * channels if beside else channels, channels, 3)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same."""
        joined = x
        if self.beside is not None and other is not None:
            joined = torch.cat([x, self.beside(F.elu(other))], 1)
        change: Tensor = self.conv(self.drop(F.elu(joined)))
        return x + change


class _Up(nn.Module):
    """(B, C, H, W) -> (B, out, 2H, 2W), by a convolution to four times the channels."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = _Conv(channels, 4 * out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class _Pyramid(nn.Module):
    """Planes -> two maps of each scale, from fine to coarse."""

    def __init__(self, planes: int, channels: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.first = _Conv(planes, channels[0], 1)
        self.firsts = nn.ModuleList(_Residual(width, dropout) for width in channels)
        self.seconds = nn.ModuleList(_Residual(width, dropout) for width in channels)
        self.downs = nn.ModuleList(_Conv(fine, coarse, 3, 2) for fine, coarse in pairwise(channels))

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        x = self.first(x)
        maps = []
        for level, (first, second) in enumerate(zip(self.firsts, self.seconds, strict=True)):
            x = self.downs[level - 1](x) if level else x
            one = first(x)
            x = second(one)
            maps.append((one, x))
        return maps


class _Posterior(nn.Module):
    """Maps of the appearance -> mean and code of the two lowest scales, from coarse to fine.

    Of the last scale the authors' network goes on to layers that nothing reads; they are left out.
    """

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.first = _Conv(channels, channels, 1)
        self.before = nn.ModuleList(_Residual(channels, dropout, channels) for _ in range(_LATENTS))
        self.means = nn.ModuleList(_Conv(channels, channels, 3) for _ in range(_LATENTS))
        self.after = nn.ModuleList(_Residual(channels, dropout, 2 * channels) for _ in range(_LATENTS - 1))
        self.ups = nn.ModuleList(_Up(channels, channels) for _ in range(_LATENTS - 1))

    def forward(self, maps: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        x = self.first(maps[-1][1])
        means, codes = [], []
        for step in range(_LATENTS):
            one, two = maps[-1 - step]
            x = self.before[step](x, two)
            mean = self.means[step](x)
            code = mean + torch.randn_like(mean) if self.training else mean  # of variance 1
            means.append(mean)
            codes.append(code)
            if step < _LATENTS - 1:
                x = self.ups[step](self.after[step](x, torch.cat([one, code], 1)))
        return means, codes


class _Decoder(nn.Module):
    """Maps of the pose and codes -> features at full size, and the priors of the codes where asked for."""

    def __init__(self, channels: Sequence[int], dropout: float, prior: bool) -> None:
        super().__init__()
        upwards = list(channels)[::-1]
        low = upwards[0]
        self.first = _Conv(low, low, 1)
        self.before = nn.ModuleList(_Residual(width, dropout, width) for width in upwards)
        self.merges = nn.ModuleList(_Conv(2 * low, low, 1) for _ in range(_LATENTS))
        self.after = nn.ModuleList(_Residual(width, dropout, width) for width in upwards)
        self.ups = nn.ModuleList(_Up(coarse, fine) for coarse, fine in pairwise(upwards))
        priors = nn.ModuleList(_Prior(low, dropout) for _ in range(_LATENTS))
        self.priors = priors if prior else None

    def forward(
        self, maps: Sequence[tuple[Tensor, Tensor]], codes: Sequence[Tensor], priors: bool
    ) -> tuple[Tensor, list[Tensor]]:
        x = self.first(maps[-1][1])
        found = []
        for step, (one, two) in enumerate(reversed(maps)):
            x = self.before[step](x, two)
            if step < _LATENTS:
                if priors and self.priors is not None:
                    found.append(self.priors[step](x, codes[step]))
                x = self.merges[step](torch.cat([x, codes[step]], 1))
            x = self.after[step](x, one)
            x = self.ups[step](x) if step < len(self.ups) else x
        return x, found


class _Prior(nn.Module):
    """The mean of p(code | pose), in four groups of places, each told the groups before it."""

    def __init__(self, channels: int, dropout: float) -> None:
        super().__init__()
        self.block = _Residual(channels, dropout)
        self.means = nn.ModuleList(_Conv(4 * channels, channels, 3) for _ in range(4))
        self.mixers = nn.ModuleList(_Residual(4 * channels, dropout, channels) for _ in range(3))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """(B, C, h, w) twice -> (B, C, h, w)."""
        groups = torch.unflatten(F.pixel_unshuffle(code, 2), 1, (-1, 4))  # (B, C, 4, h/2, w/2)
        features = F.pixel_unshuffle(self.block(x), 2)
        means = []
        for i, mean in enumerate(self.means):
            means.append(mean(features))
            if i < 3:
                features = self.mixers[i](features, groups[:, :, i])
        return F.pixel_shuffle(torch.stack(means, 2).flatten(1, 2), 2)


# ---- What it sees: a stick figure and crops of body parts.

_NOSE, _RIGHT_EYE, _LEFT_EYE = 0, 14, 15
_RIGHT_CHAIN, _LEFT_CHAIN = (10, 9, 8, 2, 3, 4), (13, 12, 11, 5, 6, 7)  # ankle to wrist
_TORSO = (11, 5, 2, 8)  # left hip, left shoulder, right shoulder, right hip
_ARMS = ((5, 6), (6, 7), (2, 3), (3, 4))  # left upper and forearm, then right
_THIGHS = ((11, 12), (8, 9))


def _present(keypoints: Tensor) -> Tensor:
    """Joints with a number that is none are missing."""
    return torch.where(keypoints.isfinite().all(-1, keepdim=True), keypoints, torch.nan)


def stick_figure(keypoints: Tensor, height: int, width: int) -> Tensor:
    """(B, J, 2) x, y in pixels, NaN missing -> (B, 3, H, W) in [-1, 1]: right side, left side, torso.

    What lacks a joint is left out.
    """
    reach = (max(3 * height // 128, 1) / 2) ** 2
    neck, nose = keypoints[:, (2, 5)].mean(1, keepdim=True), keypoints[:, _NOSE : _NOSE + 1]
    eyes = keypoints[:, (_RIGHT_EYE, _LEFT_EYE)]
    head = torch.where(eyes.isnan().any(2, keepdim=True).any(1, keepdim=True), torch.nan, nose)
    starts = [keypoints[:, _RIGHT_CHAIN[:-1]], keypoints[:, _LEFT_CHAIN[:-1]], neck, head, head]
    ends = [keypoints[:, _RIGHT_CHAIN[1:]], keypoints[:, _LEFT_CHAIN[1:]], nose, eyes]
    drawn = segment_distance(torch.cat(starts, 1), torch.cat(ends, 1), height, width) <= reach
    throat, planes = drawn[:, 10], []
    for side in (0, 1):
        chain = drawn[:, 5 * side : 5 * side + 5].any(1)
        plane = torch.where(throat, 127.0, torch.where(chain, 255.0, 0.0))
        planes.append(torch.where(drawn[:, 11 + side], 255.0, plane))
    torso = _polygon(keypoints[:, _TORSO], height, width)
    return torch.stack([*planes, torch.where(torso, 255.0, 0.0)], 1) / 127.5 - 1


def _polygon(corners: Tensor, height: int, width: int) -> Tensor:
    """(B, N, 2) -> (B, H, W) bool, inside by the even-odd rule or on the border; NaN anywhere: empty."""
    x = torch.arange(width, device=corners.device, dtype=torch.float32)[None, None]
    y = torch.arange(height, device=corners.device, dtype=torch.float32)[None, :, None]
    following = corners.roll(-1, 1)
    inside = torch.zeros(len(corners), height, width, dtype=torch.bool, device=corners.device)
    for i in range(corners.shape[1]):
        (ax, ay), (bx, by) = (one[:, i, :, None, None].unbind(1) for one in (corners, following))
        rise = torch.where(by == ay, 1.0, by - ay)
        inside ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / rise + ax)
    border = (segment_distance(corners, following, height, width) <= 0.25).any(1)
    return (inside | border) & ~corners.isnan().flatten(1).any(1)[:, None, None]


def appearance_crops(image: Tensor, keypoints: Tensor, height: int, width: int) -> Tensor:
    """Eight upright crops of (B, 3, H, W): (B, 24, height, width), zeros for what cannot be placed.

    Torso, head, upper arm and forearm of the left and of the right, left and right thigh, each a homography
    of four corners; where those cross over, which has none, bilinear between them. Beyond the picture its
    border goes on.
    """
    corners = _corners(keypoints, image.shape[-2])  # (B, 8, 4, 2)
    known = corners.isfinite().flatten(2).all(2)  # (B, 8)
    corners = torch.where(known[:, :, None, None], corners, 0.0)
    u = torch.arange(width, device=image.device, dtype=torch.float32) / width
    v = (torch.arange(height, device=image.device, dtype=torch.float32) / height)[:, None]
    places = _places(corners, u.expand(height, width), v.expand(height, width))  # (B, 8, h, w, 2)
    far = 4.0 * max(image.shape[-2:])  # the border goes on for ever
    places = places.clamp(-far, far)
    last = places.new_tensor([image.shape[-1] - 1, image.shape[-2] - 1]).clamp_min(1)
    grid = (2 * places / last - 1).flatten(1, 2)  # (B, 8 h, w, 2)
    crops = F.grid_sample(image.float(), grid, padding_mode="border", align_corners=True)
    crops = torch.unflatten(crops, 2, (8, height)).transpose(1, 2)  # (B, 8, 3, h, w)
    return torch.where(known[:, :, None, None, None], crops, 0.0).flatten(1, 2)


def _corners(keypoints: Tensor, height: int) -> Tensor:
    """(B, 8, 4, 2): top left, bottom left, bottom right and top right of each crop in the picture."""
    right, left = keypoints[:, 2], keypoints[:, 5]
    torso = torch.stack([left, keypoints[:, 11], keypoints[:, 8], right], 1)
    middle = (right + left) / 2
    top = middle + 2 * (keypoints[:, _NOSE] - middle)
    side = _normal(middle - top) / 2
    head = torch.stack([top - side, middle - side, middle + side, top + side], 1)
    up = _normal(right - left)
    up = torch.where(up[:, 1:] > 0, -up, up)
    faceless = torch.stack([left + up, left, right, right + up], 1)
    parts = [torso, torch.where(head.isnan(), faceless, head)]
    for first, second in (*_ARMS, *_THIGHS):
        a, b = keypoints[:, first], keypoints[:, second]
        if (first, second) in _THIGHS:  # without a knee it reaches to the lower border
            ground = torch.stack([a[:, 0], torch.full_like(a[:, 0], height - 1.0)], 1)
            b = torch.where(b.isnan(), ground, b)
        side = _normal(b - a) / 4
        parts.append(torch.stack([a + side, a - side, b - side, b + side], 1))
    return torch.stack(parts, 1)


def _normal(vector: Tensor) -> Tensor:
    """(B, 2) x, y turned by a quarter: (-y, x)."""
    return torch.stack([-vector[:, 1], vector[:, 0]], 1)


def _places(corners: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Where the points (u, v) of the unit square lie in quadrangles (B, N, 4, 2): (B, N, h, w, 2).

    Heckbert's projective map; bilinear for quadrangles that are not convex.
    """
    c00, c01, c11, c10 = corners.unbind(2)  # (B, N, 2): at (u, v) = (0, 0), (0, 1), (1, 1), (1, 0)
    d1, d2, bent = c10 - c11, c01 - c11, c00 - c10 + c11 - c01
    area = _cross(d1, d2)
    safe = area.abs() > 1e-3
    area = torch.where(safe, area, 1.0)
    g, h = _cross(bent, d2) / area, _cross(d1, bent) / area
    convex = safe & (1 + g > 0.05) & (1 + h > 0.05) & (1 + g + h > 0.05)  # of the weights at the corners
    g, h = (torch.where(convex, x, 0.0)[..., None] for x in (g, h))  # (B, N, 1)
    along_u = c10 - c00 + g * c10
    along_v = c01 - c00 + h * c01
    rest = torch.where(convex[..., None], 0.0, bent)
    u, v = u[..., None], v[..., None]  # (h, w, 1)
    along_u, along_v, rest, c00, g, h = (
        x[:, :, None, None] for x in (along_u, along_v, rest, c00, g, h)
    )  # (B, N, 1, 1, ...)
    return (along_u * u + along_v * v + rest * u * v + c00) / (1 + g * u + h * v)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
