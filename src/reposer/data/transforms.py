"""Augmentation of pair batches: the horizontal flip, rows swaps left and right labels and joints as well.

A transform takes what it shall do per sample (drawn by samplers.py from seed, step and position) and draws
nothing itself, so that its result depends neither on workers nor on processes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reposer.data.keypoints import FLIP_JOINTS
from reposer.data.parsing import FLIP_LABELS
from reposer.structures import PairBatch

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
    )


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
