"""Augmentation of Re-ID batches: pad and crop, flip, random erasing; one draw for each sample.

What happens to a sample is drawn from (seed, step, position in the global batch) for the whole batch and
sliced afterwards: neither the number of processes nor that of workers changes it. The drawing is NumPy, the
doing works on uint8 tensors of any device.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reposer.images import IMAGENET_MEAN

_STREAM = 21
ERASE_AREA = (0.02, 0.4)  # of the image (Zhong et al., arXiv 1708.04896, as in Bag of Tricks)
ERASE_RATIO = 0.3  # height : width between 0.3 and 1 / 0.3
_ERASE_COLOR = tuple(round(255 * value) for value in IMAGENET_MEAN)


@dataclass(frozen=True, slots=True)
class Draws:
    """What shall happen to each of B samples."""

    top: NDArray[np.int64]  # (B,) of the crop in the padded image
    left: NDArray[np.int64]  # (B,)
    flip: NDArray[np.bool_]  # (B,)
    erase: NDArray[np.int64]  # (B, 4) top, left, height, width in the crop; height 0: nothing

    def __getitem__(self, part: slice | NDArray[np.int64]) -> Self:
        return type(self)(**{f.name: getattr(self, f.name)[part] for f in fields(self)})


def draw_transforms(
    batch_size: int,
    size: tuple[int, int],
    crop: tuple[int, int],
    pad: int,
    flip: float,
    erase: float,
    seed: int,
    step: int,
) -> Draws:
    """Draw for a global batch.

    Args:
        batch_size: B.
        size: (H, W) before padding.
        crop: (H, W) afterwards; no larger than the padded image.
        pad: black pixels added on each side.
        flip: probability that a sample is mirrored.
        erase: probability that a rectangle of it is erased.
        seed: of the run.
        step: of the batch.
    """
    room = [size[i] + 2 * pad - crop[i] for i in (0, 1)]
    if min(room) < 0:
        raise ValueError(f"a crop of {crop} does not fit into {size} with {pad} pixels around it")
    rng = np.random.default_rng([seed, _STREAM, step])
    top, left = (rng.integers(0, space + 1, batch_size) for space in room)
    flipped = rng.random(batch_size) < flip
    return Draws(top, left, flipped, _draw_rectangles(rng, batch_size, crop, erase))


def transform(images: Tensor, draws: Draws, crop: tuple[int, int], pad: int) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 3, h, w) uint8 in channels_last order, on the same device."""
    pixels = images.permute(0, 2, 3, 1)
    height, width = crop
    result = pixels.new_empty((len(pixels), height, width, 3))
    if pad:
        b, h, w, _ = pixels.shape
        padded = pixels.new_zeros((b, h + 2 * pad, w + 2 * pad, 3))
        padded[:, pad : pad + h, pad : pad + w] = pixels
        pixels = padded
    color = torch.tensor(_ERASE_COLOR, dtype=torch.uint8, device=pixels.device)
    rows = zip(draws.top.tolist(), draws.left.tolist(), draws.flip.tolist(), strict=True)
    for i, (top, left, flipped) in enumerate(rows):
        view = pixels[i, top : top + height, left : left + width]
        result[i] = view.flip(1) if flipped else view
    for i, (top, left, h, w) in enumerate(draws.erase.tolist()):
        if h:
            result[i, top : top + h, left : left + w] = color
    return result.permute(0, 3, 1, 2)


def _draw_rectangles(
    rng: np.random.Generator, batch_size: int, crop: tuple[int, int], probability: float
) -> NDArray[np.int64]:
    """(B, 4); area uniform in ERASE_AREA, ratio uniform between its bounds; the first of 16 that fits."""
    height, width = crop
    tries = (batch_size, 16)
    area = rng.uniform(*ERASE_AREA, tries) * height * width
    ratio = rng.uniform(ERASE_RATIO, 1 / ERASE_RATIO, tries)
    h, w = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (h < height) & (w < width) & (h > 0) & (w > 0)
    row, first = np.arange(batch_size), fits.argmax(1)
    h, w = h[row, first], w[row, first]
    wanted = (rng.random(batch_size) < probability) & fits[row, first]
    corner = rng.random((batch_size, 2))
    top = (corner[:, 0] * (height - h + 1)).astype(np.int64)
    left = (corner[:, 1] * (width - w + 1)).astype(np.int64)
    rectangles: NDArray[np.int64] = np.stack([top, left, h, w], axis=1) * wanted[:, None]
    return rectangles
