"""A small parser of our own: MobileNetV2 features and a light decoder, (B, 3, H, W) -> (B, 20, H, W) scores.

The encoder gives maps at 1/2, 1/4, 1/8, 1/16 and 1/32; the decoder goes up again, at each step joining the
map of that size (U-Net; Ronneberger et al., MICCAI 2015). The last step, from 1/2, is an interpolation. With
2.3 M parameters and 170 MMAC at 128x64 it is made for crops and for CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.backbones import MobileNetV2
from reposer.models.layers import check_arguments
from reposer.structures import NUM_LABELS
from reposer.weights.files import find_weights, load_state_dict_file

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
