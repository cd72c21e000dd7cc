"""Augmentation of pair batches: the horizontal flip, rows swaps left and right labels and joints as well.

A transform takes what it does per sample (drawn by samplers.py from seed, step and position) and draws
nothing itself, so that its result depends neither on workers nor on processes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from reposer.data.keypoints import FLIP_JOINTS
from reposer.data.parsing import FLIP_LABELS
from reposer.images import IMAGENET_MEAN
from reposer.structures import MISSING_LABEL, MoreSources, PairBatch

_LABEL_TABLE = torch.from_numpy(FLIP_LABELS["lip20"].copy())  # (256,) uint8
_JOINT_ORDER = torch.from_numpy(FLIP_JOINTS.copy())  # (J,) int64


def flip_pairs(batch: PairBatch, flipped: NDArray[np.bool_] | Tensor) -> PairBatch:
    """Mirror source and target of the samples where ``flipped`` (B,) is true; the others stay as they are."""
    device, width = batch.source_image.device, batch.source_image.shape[-1]
    rows = torch.as_tensor(flipped, dtype=torch.bool).nonzero()[:, 0]
    if not len(rows):
        return batch
    order = torch.arange(len(batch))  # of each sample among the originals, followed by the mirrored ones
    order[rows] = torch.arange(len(batch), len(batch) + len(rows))
    rows, order = rows.to(device), order.to(device)
    return PairBatch(
        source_image=_flip_image(batch.source_image, rows, order),
        target_image=_flip_image(batch.target_image, rows, order),
        source_parsing=_flip_labels(batch.source_parsing, rows, order),
        target_parsing=_flip_labels(batch.target_parsing, rows, order),
        source_mask=_replace(batch.source_mask, batch.source_mask.index_select(0, rows).flip(-1), order),
        target_mask=_replace(batch.target_mask, batch.target_mask.index_select(0, rows).flip(-1), order),
        source_keypoints=_flip_joints(batch.source_keypoints, rows, order, width),
        target_keypoints=_flip_joints(batch.target_keypoints, rows, order, width),
        pids=batch.pids,
        more_sources=None if batch.more_sources is None else _flip_sources(batch.more_sources, rows),
    )


def _flip_sources(more: MoreSources, rows: Tensor) -> MoreSources:
    """Every further image of the samples ``rows``; a few images, so copies do not matter."""
    views = more.known.shape[1]
    wanted = (rows[:, None] * views + torch.arange(views, device=rows.device)).flatten()
    order = torch.arange(more.known.numel(), device=rows.device)
    order[wanted] = more.known.numel() + torch.arange(len(wanted), device=rows.device)
    image, parsing, mask, joints = (
        x.flatten(0, 1) for x in (more.image, more.parsing, more.mask, more.keypoints)
    )
    flipped = {
        "image": _flip_image(image, wanted, order).contiguous(),
        "parsing": _flip_labels(parsing, wanted, order),
        "mask": _replace(mask, mask[wanted].flip(-1), order),
        "keypoints": _flip_joints(joints, wanted, order, more.image.shape[-1]),
    }
    return replace(more, **{name: x.view_as(getattr(more, name)) for name, x in flipped.items()})


def _replace(originals: Tensor, mirrored: Tensor, order: Tensor) -> Tensor:
    # index_select on whole samples copies blocks; torch.where and masks are ten times slower
    return torch.cat([originals, mirrored]).index_select(0, order)


def _flip_image(images: Tensor, rows: Tensor, order: Tensor) -> Tensor:
    pixels = images.permute(0, 2, 3, 1)  # (B, H, W, 3), contiguous for a channels_last batch
    return _replace(pixels, pixels.index_select(0, rows).flip(2), order).permute(0, 3, 1, 2)


def _flip_labels(parsing: Tensor, rows: Tensor, order: Tensor) -> Tensor:
    mirrored = parsing.index_select(0, rows).flip(-1)
    swapped = _LABEL_TABLE.to(parsing.device).index_select(0, mirrored.flatten().int()).view_as(mirrored)
    return _replace(parsing, swapped, order)


def _flip_joints(keypoints: Tensor, rows: Tensor, order: Tensor, width: int) -> Tensor:
    mirrored = keypoints.index_select(0, rows).index_select(1, _JOINT_ORDER.to(keypoints.device))
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return _replace(keypoints, mirrored, order)


# ---- Augmentation of images with their parsing maps: zoom, shift, mirror, brightness, contrast.
#
# What happens to a sample is drawn for the whole global batch from (seed, step).

_PARSING_STREAM = 31


@dataclass(frozen=True, slots=True)
class ParsingDraws:
    """What happens to each of B samples."""

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
    rng = np.random.default_rng([seed, _PARSING_STREAM, step])
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
    swapped = _LABEL_TABLE[maps.long()]
    maps = torch.where(torch.as_tensor(draws.flip).view(-1, 1, 1), swapped, maps)
    return pixels.round_().clamp_(0, 255).to(torch.uint8), maps


# ---- Augmentation of Re-ID batches: pad and crop, flip, random erasing; one draw for each sample.
#
# What happens to a sample is drawn from (seed, step, position in the global batch) for the whole batch and
# sliced afterwards: neither the number of processes nor that of workers changes it. The drawing is NumPy, the
# doing works on uint8 tensors of any device.

_REID_STREAM = 21
ERASE_AREA = (0.02, 0.4)  # of the image (Zhong et al., arXiv 1708.04896, as in Bag of Tricks)
ERASE_RATIO = 0.3  # height : width between 0.3 and 1 / 0.3
_ERASE_COLOR = tuple(round(255 * value) for value in IMAGENET_MEAN)


@dataclass(frozen=True, slots=True)
class Draws:
    """What happens to each of B samples."""

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
    rng = np.random.default_rng([seed, _REID_STREAM, step])
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
