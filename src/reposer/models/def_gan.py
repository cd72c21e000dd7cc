"""Def-GAN: a U-Net of two encoders whose skips of the source are warped part by part to the target's pose.

Siarohin, Sangineto, Lathuiliere, Sebe: "Deformable GANs for Pose-based Human Image Generation", CVPR 2018,
with widths, order and norm as in the authors' public code: 61,109,085 parameters at 128x64, 82,080,611 at
256x256. Its norm is called instance norm there and is none: mean and deviation are those of a whole map with
all its channels, scale and shift are two numbers. It differs in these points:

* the maps of the parts are ours where a person lacks joints (:mod:`reposer.models.part_warps`; the authors
  leave such people out), their singular values are bounded, and the head's square is not rounded to pixels;
* skips are sampled between pixels, with the centers of small pixels where they belong; ``sampling`` nearest
  takes the nearest;
* sizes that do not divide are padded inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.layers import check_choice, crop_to, make_norm, pad_to_multiple
from reposer.models.part_warps import deformable_skip, part_warps
from reposer.models.pose_maps import both_poses
from reposer.structures import NUM_JOINTS, PairBatch

SAMPLINGS = ("bilinear", "nearest")
DEVIATIONS = (
    "Def-GAN (Siarohin et al., CVPR 2018), built anew. It differs from the authors' code: people without a"
    " shoulder or hip are warped by the joints that they have, not left out; the singular values of part maps"
    " are bounded; skips are sampled between pixels; the head's square is not rounded; both networks learn"
    " from one batch; the discriminator starts from N(0, 0.02) and pads the borders of its first convolution;"
    " weights are averaged."
)
_SLOPE = 0.2
_SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "deepfashion": {
        "encoder": (64, 128, 256, 512, 512, 512, 512),
        "decoder": (512, 512, 512, 512, 256, 128),
    },
    "small": {"encoder": (32, 64, 128, 128, 128, 128), "decoder": (128, 128, 128, 96, 48)},
}


def def_gan_size(name: str) -> dict[str, Any]:
    """Arguments of ``DefGAN`` for a named size: "paper" (128x64), "deepfashion" (256x256), "small" (CPUs).

    Raises:
        UserError: no such size.
    """
    check_choice("size", name, _SIZES)
    return dict(_SIZES[name])


class DefGAN(nn.Module):
    """Source image, source pose and target pose -> the image; no parsing map, no mask."""

    needs = ("source_image", "source_keypoints", "target_keypoints")
    about = DEVIATIONS

    def __init__(
        self,
        encoder: Sequence[int] = (64, 128, 256, 512, 512, 512),  # channels at 1/1, 1/2, 1/4, ... of both
        decoder: Sequence[int] = (512, 512, 512, 256, 128),  # channels of the steps up, the coarsest first
        warped: int = 4,  # finest levels whose source skips are warped; the others are taken as they are
        norm: str = "layer",  # layer: of a whole map, the paper's | instance: of each channel | batch
        dropout: float = 0.5,  # behind the first three steps up
        sampling: str = "bilinear",  # of the warped skips: bilinear | nearest
        sigma: float = 6.0,  # pixels, of the pose maps
    ) -> None:
        super().__init__()
        check_choice("sampling", sampling, SAMPLINGS)
        if len(encoder) < 2 or len(decoder) != len(encoder) - 1 or min(*encoder, *decoder) < 1:
            raise UserError(
                f"encoder={list(encoder)}, decoder={list(decoder)}: impossible together",
                "give two or more widths, and one fewer of the decoder",
            )
        if not 0 <= warped <= len(encoder) or not 0 <= dropout < 1:
            raise UserError(
                f"warped={warped}, dropout={dropout}: impossible",
                f"warped is 0 to {len(encoder)}, dropout at least 0 and below 1",
            )
        self.warped, self.nearest, self.sigma = warped, sampling == "nearest", sigma
        self.total_stride = 2 ** (len(encoder) - 1)
        self.source_encoder = _encoder(3 + NUM_JOINTS, encoder, norm)
        self.target_encoder = _encoder(NUM_JOINTS, encoder, norm)
        self.decoder = nn.ModuleList()
        channels = 0
        for step, (skip, width) in enumerate(zip(reversed(encoder), decoder, strict=False)):
            self.decoder.append(
                nn.Sequential(
                    nn.ReLU(inplace=True),
                    nn.ConvTranspose2d(channels + 2 * skip, width, 4, stride=2, padding=1, bias=False),
                    make_norm(norm, width),
                    nn.Dropout(dropout) if step < 3 and dropout else nn.Identity(),
                )
            )
            channels = width
        self.to_image = nn.Conv2d(channels + 2 * encoder[0], 3, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, batch: PairBatch) -> Tensor:
        """The generated images (B, 3, H, W) in [-1, 1]; any size. A missing joint is a map of zeros."""
        height, width = batch.source_image.shape[-2:]
        poses = both_poses(batch, self.sigma)
        source = pad_to_multiple(
            torch.cat([to_float(batch.source_image), poses[0]], dim=1), self.total_stride
        )
        target = pad_to_multiple(poses[1], self.total_stride)
        padded = source.shape[2:]
        corner = torch.tensor(
            [(padded[1] - width) // 2, (padded[0] - height) // 2], device=source.device
        )  # x, y
        warps = part_warps(batch.source_keypoints + corner, batch.target_keypoints + corner, *padded)
        ours, theirs = _maps(self.source_encoder, source), _maps(self.target_encoder, target)
        x: Tensor | None = None
        for level in reversed(range(len(ours))):
            skip = ours[level]
            if level < self.warped:
                skip = deformable_skip(skip, warps, level, self.nearest).to(skip.dtype)
            joined = torch.cat([*([] if x is None else [x]), skip, theirs[level]], dim=1)
            if level:
                x = self.decoder[len(ours) - 1 - level](joined)
        image = self.to_image(joined.relu_())
        return crop_to(image.float().tanh(), height, width)


def _encoder(planes: int, widths: Sequence[int], norm: str) -> nn.ModuleList:
    """3x3 to the first width; then LeakyReLU, 4x4 with stride 2, norm, the last without."""
    steps = nn.ModuleList([nn.Conv2d(planes, widths[0], 3, padding=1)])
    for number, (channels, width) in enumerate(pairwise(widths), start=2):
        steps.append(
            nn.Sequential(
                nn.LeakyReLU(_SLOPE),  # not in place: the map before it is a skip
                nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=False),
                nn.Identity() if number == len(widths) else make_norm(norm, width),
            )
        )
    return steps


def _maps(encoder: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """What each step gives, the finest first."""
    maps = []
    for step in encoder:
        x = step(x)
        maps.append(x)
    return maps
