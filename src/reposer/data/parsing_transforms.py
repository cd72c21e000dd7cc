"""Augmentation of images with their parsing maps: zoom, shift, mirror, brightness, contrast.

As in reid_transforms.py, what happens to a sample is drawn for the whole global batch from (seed, step).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from reposer.data.parsing import FLIP_LABELS
from reposer.structures import MISSING_LABEL

_STREAM = 31
_FLIP_TABLE = torch.from_numpy(FLIP_LABELS["lip20"].copy())  # (256,) uint8


@dataclass(frozen=True, slots=True)
class ParsingDraws:
    """What shall happen to each of B samples."""

    zoom: NDArray[np.float64]  # (B,) larger than 1 enlarges
    shift: NDArray[np.float64]  # (B, 2) x, y in shares of the image's size
    flip: NDArray[np.bool_]  # (B,)
    brightness: NDArray[np.float64]  # (B,) factor
    contrast: NDArray[np.float64]  # (B,) factor around the image's mean

    def __getitem__(self, part: slice) -> Self:
        return type(self)(**{f.name: getattr(self, f.name)[part] for f in fields(self)})


def draw_parsing_transforms(
    batch_size: int, zoom: float, shift: float, flip: float, light: float, seed: int, step: int
) -> ParsingDraws:
    """Draw for a global batch.

    Args:
        batch_size: B.
        zoom: between 1 / (1 + zoom) and 1 + zoom, logarithmically uniform.
        shift: up to this share of the image's size in each direction.
        flip: probability that a sample is mirrored.
        light: brightness and contrast between 1 - light and 1 + light.
        seed: of the run.
        step: of the batch.
    """
    rng = np.random.default_rng([seed, _STREAM, step])
    reach = np.log1p(zoom)
    return ParsingDraws(
        zoom=np.exp(rng.uniform(-reach, reach, batch_size)),
        shift=rng.uniform(-shift, shift, (batch_size, 2)),
        flip=rng.random(batch_size) < flip,
        brightness=rng.uniform(1 - light, 1 + light, batch_size),
        contrast=rng.uniform(1 - light, 1 + light, batch_size),
    )


def transform_parsing(images: Tensor, labels: Tensor, draws: ParsingDraws) -> tuple[Tensor, Tensor]:
    """(B, 3, H, W) uint8 and (B, H, W) uint8 -> the same, transformed.

    What comes from outside an image is black and MISSING_LABEL. Mirrored maps have left and right swapped.
    """
    pixels = images.float()
    mean = pixels.mean((1, 2, 3), keepdim=True)
    contrast, brightness = (
        torch.as_tensor(v, dtype=torch.float32).view(-1, 1, 1, 1) for v in (draws.contrast, draws.brightness)
    )
    pixels = ((pixels - mean) * contrast + mean) * brightness
    theta = torch.zeros(len(images), 2, 3)
    inverse = torch.as_tensor(1 / draws.zoom, dtype=torch.float32)
    theta[:, 0, 0] = torch.where(torch.as_tensor(draws.flip), -inverse, inverse)
    theta[:, 1, 1] = inverse
    theta[:, :, 2] = torch.as_tensor(2 * draws.shift, dtype=torch.float32)
    grid = F.affine_grid(theta, [len(images), 1, *images.shape[2:]], align_corners=False)
    pixels = F.grid_sample(pixels, grid, align_corners=False)
    # padding is 0, so that labels are moved by MISSING_LABEL first: outside becomes MISSING_LABEL
    moved = F.grid_sample(labels[:, None].float() - MISSING_LABEL, grid, mode="nearest", align_corners=False)
    maps = (moved[:, 0] + MISSING_LABEL).to(torch.uint8)
    swapped = _FLIP_TABLE[maps.long()]
    maps = torch.where(torch.as_tensor(draws.flip).view(-1, 1, 1), swapped, maps)
    return pixels.round_().clamp_(0, 255).to(torch.uint8), maps
