"""Networks of label maps: parsers (image to map), the predictor (a person to the map of another pose)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.backbones import MobileNetV2
from reposer.models.layers import (
    ConvNormAct,
    ResidualBlock,
    UpNormAct,
    build,
    check_arguments,
    crop_to,
    init_weights,
    join_planes,
    pad_to_multiple,
)
from reposer.models.pose_maps import both_poses, gaussian_maps
from reposer.structures import MISSING_LABEL, NUM_JOINTS, NUM_LABELS, PairBatch
from reposer.weights.files import find_weights, load_state_dict_file

# ---- A small parser of our own: MobileNetV2 features and a light decoder, (B, 3, H, W) -> (B, 20, H, W)
# scores.
#
# The encoder gives maps at 1/2, 1/4, 1/8, 1/16 and 1/32; the decoder goes up again, at each step joining the
# map of that size (U-Net; Ronneberger et al., MICCAI 2015). The last step, from 1/2, is an interpolation.
# With 2.3 M parameters and 170 MMAC at 128x64 it is made for crops and for CPUs.

_STAGES = (2, 4, 7, 14, 18)  # blocks of MobileNetV2 up to 1/2, 1/4, 1/8, 1/16, 1/32
_CHANNELS = (16, 24, 32, 96, 320)


class ParsingNetwork(nn.Module):
    """Images to LIP-20 scores; sides must be multiples of 2, better of 32."""

    def __init__(
        self,
        widths: Sequence[int] = (128, 96, 64, 32),  # of the decoder at 1/16, 1/8, 1/4, 1/2
        keras: bool = False,  # MobileNetV2 in Keras' form (models.backbones)
    ) -> None:
        super().__init__()
        check_arguments({"widths": widths})
        if len(widths) != 4 or min(widths) < 1:
            raise UserError(f"widths={list(widths)}: four positive numbers are wanted")
        self.encoder = MobileNetV2(keras=keras)
        self.encoder.features = self.encoder.features[: _STAGES[-1]]
        channels, steps = _CHANNELS[-1], []
        for skip, width in zip(reversed(_CHANNELS[:-1]), widths, strict=True):
            steps.append(_conv_norm_act(channels + skip, width))
            channels = width
        self.decoder = nn.ModuleList(steps)
        self.head = nn.Conv2d(channels, NUM_LABELS, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 or model float -> (B, 20, H, W) scores."""
        maps = self._encoded(to_float(image))
        x = maps.pop()
        for step in self.decoder:
            skip = maps.pop()
            x = F.interpolate(x, skip.shape[-2:], mode="bilinear", align_corners=False)
            x = step(torch.cat([x, skip], 1))
        return F.interpolate(self.head(x), image.shape[-2:], mode="bilinear", align_corners=False)

    def _encoded(self, x: Tensor) -> list[Tensor]:
        """Maps at 1/2 to 1/32."""
        maps, start = [], 0
        for end in _STAGES:
            x = self.encoder.blocks(x, start, end)
            maps.append(x)
            start = end
        return maps


def load_imagenet(network: ParsingNetwork, path: str | Path | None = None) -> Path:
    """Give the encoder ImageNet weights; returns the file they came from.

    Args:
        network: its encoder is changed.
        path: weights of all of MobileNetV2's features; None: the official file in the weights folders.

    Raises:
        UserError: a file of another network, or Keras' form without a file.
        MissingWeightsError: the official file is not on this machine.
    """
    if path is None and network.encoder.pretrained is None:
        raise UserError("Keras' form of MobileNetV2 has no official file", "name the file: initial_path=FILE")
    file = Path(path) if path is not None else find_weights(str(network.encoder.pretrained))
    whole = MobileNetV2(keras=network.encoder.keras)
    try:
        whole.load(load_state_dict_file(file))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{file}: not the weights of MobileNetV2 ({reason})", "give another file") from error
    network.encoder.features.load_state_dict(whole.features[: _STAGES[-1]].state_dict(), strict=True)
    return file


def _conv_norm_act(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


# ---- A parser that is guided: image, person mask and joints -> scores; mask and joints may be missing.
#
# For networks that have seen rendered people only: where a person is and where the limbs run is drawn by
# mask and joints, which are the same for drawn and for real people, so the network needs to read little
# from the texture. The form is ours: a U-Net (Ronneberger et al., MICCAI 2015) with sums in place of
# concatenations on the way up. Scores are made at half the size.

# Pairs of joints that limbs run between: trunk, arms, legs, head (OpenPose order).
LIMBS = (
    *((1, 2), (2, 3), (3, 4), (1, 5), (5, 6), (6, 7), (1, 8), (8, 9)),
    *((9, 10), (1, 11), (11, 12), (12, 13), (1, 0), (2, 5), (8, 11)),
)


class GuidedParser(nn.Module):
    """Images and, where known, masks and joints to LIP-20 scores. Any height and width.

    ``priors`` are for people who dress otherwise than those of the training, in use only (Saerens et al.,
    Neural Computation 2002): a network that saw many coats takes wide shapes for coats.
    """

    shift: Tensor

    def __init__(
        self,
        widths: Sequence[int] = (24, 48, 96, 128),  # at 1/2, 1/4, 1/8, 1/16
        blocks: int = 2,  # residual ones at 1/16
        sigma: float = 0.025,  # of joints and limbs, in image heights
        priors: Sequence[float] = (),  # factors of the labels' probabilities in use; empty: all 1
    ) -> None:
        super().__init__()
        check_arguments({"widths": widths, "blocks": blocks, "sigma": sigma, "priors": priors})
        if len(widths) != 4 or min(widths) < 1:
            raise UserError(f"widths={list(widths)}: four positive numbers are wanted")
        if priors and (len(priors) != NUM_LABELS or min(priors) <= 0):
            raise UserError(f"priors={list(priors)}: {NUM_LABELS} positive numbers are wanted")
        self.sigma = sigma
        factors = torch.tensor(priors or [1.0] * NUM_LABELS)
        self.register_buffer("shift", factors.log().view(-1, 1, 1), persistent=False)
        layer: dict[str, Any] = {"padding": "zeros"}
        half, quarter, eighth, last = widths
        self.image = ConvNormAct(3, half, 3, 2, **layer)
        self.guide = ConvNormAct(2 + NUM_JOINTS + len(LIMBS), half, 1, **layer)
        self.join = ConvNormAct(2 * half, half, **layer)
        self.down = nn.ModuleList(
            nn.Sequential(ConvNormAct(a, b, 3, 2, **layer), *(ResidualBlock(b, **layer) for _ in range(n)))
            for a, b, n in ((half, quarter, 1), (quarter, eighth, 1), (eighth, last, blocks))
        )
        self.context = nn.Linear(last, last)  # of the whole image, added everywhere
        ups = list(pairwise((last, eighth, quarter, half)))
        self.narrow = nn.ModuleList(ConvNormAct(a, b, 1, **layer) for a, b in ups)
        self.merge = nn.ModuleList(ConvNormAct(b, b, **layer) for _, b in ups)
        self.head = nn.Conv2d(half, NUM_LABELS, 1)

    def forward(self, image: Tensor, mask: Tensor | None = None, keypoints: Tensor | None = None) -> Tensor:
        """Scores (B, 20, H, W).

        Args:
            image: (B, 3, H, W) uint8 or model float.
            mask: (B, H, W) uint8: 1 on the person, 0 beside it, MISSING_LABEL unknown; None: all unknown.
            keypoints: (B, 18, 2) x, y in pixels, NaN for a missing joint; None: all are missing.
        """
        height, width = image.shape[-2:]
        x = pad_to_multiple(to_float(image), 16)
        guide = self._guide(x, (height, width), mask, keypoints)
        x = self.join(torch.cat([self.image(x), self.guide(guide)], 1))
        maps = [x]
        for step in self.down:
            maps.append(step(maps[-1]))
        x = maps.pop()
        x = x + self.context(x.mean((2, 3)))[:, :, None, None]
        for narrow, merge in zip(self.narrow, self.merge, strict=True):
            x = F.interpolate(narrow(x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = merge(x + maps.pop())
        scores = self.head(x).float()
        if not self.training:
            scores = scores + self.shift
        scores = F.interpolate(scores, scale_factor=2.0, mode="bilinear", align_corners=False)
        return crop_to(scores, height, width)

    def _guide(
        self, padded: Tensor, size: tuple[int, int], mask: Tensor | None, keypoints: Tensor | None
    ) -> Tensor:
        """(B, 35, H/2, W/2): person, ground, joints and limbs in [0, 1]; 0 where nothing is known."""
        batch, rows, columns = padded.shape[0], padded.shape[2], padded.shape[3]
        if mask is None:
            mask = torch.full((batch, *size), MISSING_LABEL, dtype=torch.uint8, device=padded.device)
        known = torch.stack([mask == 1, mask == 0], 1).to(padded.dtype)
        planes = F.avg_pool2d(pad_to_multiple(known, 16), 2)
        if keypoints is None:
            keypoints = torch.full((batch, NUM_JOINTS, 2), torch.nan, device=padded.device)
        left, top = (columns - size[1]) // 2, (rows - size[0]) // 2
        places = (keypoints.float() + keypoints.new_tensor([left + 0.5, top + 0.5])) / 2 - 0.5
        sigma = self.sigma * size[0] / 2
        joints = gaussian_maps(places, rows // 2, columns // 2, sigma)
        return torch.cat([planes, joints, limb_maps(places, rows // 2, columns // 2, sigma)], 1)


def limb_maps(keypoints: Tensor, height: int, width: int, sigma: float) -> Tensor:
    """(B, 18, 2) -> (B, 15, H, W) exp(-d^2 / 2 sigma^2) of the distance d to each of LIMBS; 0 if missing."""
    ends = keypoints[:, torch.tensor(LIMBS, device=keypoints.device)]  # (B, L, 2, 2)
    present = ~ends.isnan().flatten(2).any(2)
    ends = torch.where(present[..., None, None], ends, 0.0)
    start, line = ends[:, :, 0], ends[:, :, 1] - ends[:, :, 0]
    x = torch.arange(width, device=ends.device) - start[..., :1]  # (B, L, W)
    y = torch.arange(height, device=ends.device) - start[..., 1:]  # (B, L, H)
    unit = line / line.square().sum(-1, keepdim=True).clamp_min(1e-6)
    along = ((unit[..., 1:] * y)[..., None] + (unit[..., :1] * x)[..., None, :]).clamp_(0, 1)
    far = (y[..., None] - along * line[..., 1:, None]).square_()
    far += (x[..., None, :] - along * line[..., :1, None]).square_()
    return far.mul_(-0.5 / sigma**2).exp_() * present[..., None, None]


# ---- A predictor of the target's maps: what the source wears, in the target's pose.
#
# Source image, source parsing and the keypoints of both in; the target's LIP-20 map and person mask out. It
# never sees anything of the donor but keypoints, so the garments can only be the source's. SAN's authors
# name this as future work; SPGNet (Lv et al., CVPR 2021) and PISE predict the map in a first stage too. The
# form is ours: a U-Net (Ronneberger et al., MICCAI 2015). What somebody wears does not depend on where it
# is, so the share of the person that each label takes stands beside the narrowest map, and which labels
# there are at all moves the scores of every pixel.

PRESENT = 0.005  # of the person's pixels: a smaller label is no sign of what is worn


class PredictedMaps(NamedTuple):
    """Scores of B targets."""

    parsing: Tensor  # (B, 20, H, W) before softmax
    mask: Tensor  # (B, H, W) before sigmoid


class ParsingPredictor(nn.Module):
    """Pairs to scores of the target's maps. Any height and width."""

    needs = ("source_image", "source_parsing", "source_keypoints", "target_keypoints")

    def __init__(
        self,
        width: int = 32,  # channels at half the size; doubled at each further halving, up to 8 times
        halvings: int = 4,  # the narrowest map is at 1/2^halvings
        res_blocks: int = 2,  # at the narrowest map
        image: bool = True,  # whether the source image is seen beside its parsing map
        sigma: float = 6.0,  # pixels, of the pose maps
        norm: str = "batch",
    ) -> None:
        super().__init__()
        if width < 1 or halvings < 1 or res_blocks < 0:
            raise UserError(
                f"width={width}, halvings={halvings}, res_blocks={res_blocks}: impossible",
                "width and halvings are at least 1",
            )
        layer: dict[str, Any] = {"norm": norm, "padding": "zeros"}
        self.image, self.sigma = image, sigma
        self.total_stride = 2**halvings
        planes = 3 * image + NUM_LABELS + 2 * NUM_JOINTS
        widths = [planes, *(width * min(8, 2**step) for step in range(halvings))]
        self.down = nn.ModuleList(
            nn.Sequential(ConvNormAct(a, b, 3, 2, **layer), ConvNormAct(b, b, **layer))
            for a, b in pairwise(widths)
        )
        self.body = nn.Sequential(
            ConvNormAct(widths[-1] + NUM_LABELS, widths[-1], 1, **layer),
            *(ResidualBlock(widths[-1], **layer) for _ in range(res_blocks)),
        )
        skips = (*widths[-2:0:-1], 0)
        outs = [skip or width for skip in skips]
        ins = (widths[-1], *outs)
        self.up = nn.ModuleList(UpNormAct(a, b, "deconv", **layer) for a, b in pairwise(ins))
        self.merge = nn.ModuleList(
            ConvNormAct(out + skip, out, **layer) for out, skip in zip(outs, skips, strict=True)
        )
        self.apply(init_weights)
        self.head = nn.Conv2d(width, NUM_LABELS + 1, 1)
        self.habit = nn.Linear(NUM_LABELS, NUM_LABELS)  # presence of labels -> shift of scores
        nn.init.zeros_(self.habit.bias)
        nn.init.eye_(self.habit.weight)  # what is worn is likelier from the first step on

    def forward(self, batch: PairBatch) -> PredictedMaps:
        """Scores of the targets; a person without keypoints or without a map gives finite ones too."""
        height, width = batch.source_image.shape[-2:]
        planes = [*both_poses(batch, self.sigma)]
        if self.image:
            planes.append(to_float(batch.source_image))
        joined = join_planes(planes, batch.source_parsing, NUM_LABELS)
        shares = label_shares(joined[:, -NUM_LABELS:])
        worn = shares[:, :, None, None]
        x = pad_to_multiple(joined, self.total_stride)
        skips = []
        for step in self.down:
            x = step(x)
            skips.append(x)
        x = self.body(torch.cat([skips.pop(), worn.to(x.dtype).expand(-1, -1, *x.shape[2:])], dim=1))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = up(x)
            x = merge(torch.cat([x, skips.pop()], dim=1) if skips else x)
        scores = crop_to(self.head(x).float(), height, width)
        shift = self.habit((shares > PRESENT).to(x.dtype)).float()[:, :, None, None]
        return PredictedMaps(scores[:, :NUM_LABELS] + shift, scores[:, NUM_LABELS])


def label_shares(onehot: Tensor) -> Tensor:
    """(B, L) share of the person that each label takes, of (B, L, H, W); 0 for the background and nobody."""
    areas = onehot.sum((2, 3))
    areas = torch.cat([torch.zeros_like(areas[:, :1]), areas[:, 1:]], dim=1)
    return areas / areas.sum(1, keepdim=True).clamp_min(1)


def decide_maps(scores: PredictedMaps) -> tuple[Tensor, Tensor]:
    """The maps themselves: parsing (B, H, W) uint8 and mask (B, H, W) bool.

    An empty mask is replaced as that of a person without one: by every label but the background, or by the
    whole image where there is none.
    """
    parsing = scores.parsing.argmax(1).to(torch.uint8)
    mask = scores.mask > 0
    mask = torch.where(mask.flatten(1).any(1)[:, None, None], mask, parsing > 0)
    return parsing, torch.where(mask.flatten(1).any(1)[:, None, None], mask, True)


# ---- Parsers by name: an entry makes a network of a class here one that runs can hold.

PARSERS: dict[str, Callable[..., nn.Module]] = {
    "parsing_network": ParsingNetwork,
    "guided_parser": GuidedParser,
}


def build_parser(name: str, **args: Any) -> nn.Module:
    """The parser of that name with keywords of its constructor.

    Raises:
        UserError: an unknown name or keyword, or an impossible value.
    """
    return build("parser", PARSERS, name, args)
