"""Augmentation of pair batches: the horizontal flip, which swaps left and right labels and joints as well.

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
    which = torch.as_tensor(flipped, dtype=torch.bool, device=batch.source_image.device)
    if not bool(which.any()):
        return batch
    return PairBatch(
        source_image=_flip_columns(batch.source_image, which),
        target_image=_flip_columns(batch.target_image, which),
        source_parsing=_flip_labels(batch.source_parsing, which),
        target_parsing=_flip_labels(batch.target_parsing, which),
        source_mask=_flip_columns(batch.source_mask, which),
        target_mask=_flip_columns(batch.target_mask, which),
        source_keypoints=_flip_joints(batch.source_keypoints, which, batch.source_image.shape[-1]),
        target_keypoints=_flip_joints(batch.target_keypoints, which, batch.target_image.shape[-1]),
        pids=batch.pids,
    )


def _select(which: Tensor, flipped: Tensor, original: Tensor) -> Tensor:
    return torch.where(which.view(-1, *[1] * (original.ndim - 1)), flipped, original)


def _flip_columns(values: Tensor, which: Tensor) -> Tensor:
    return _select(which, values.flip(-1), values)


def _flip_labels(parsing: Tensor, which: Tensor) -> Tensor:
    table = _LABEL_TABLE.to(parsing.device)
    return _select(which, table[parsing.flip(-1).long()], parsing)


def _flip_joints(keypoints: Tensor, which: Tensor, width: int) -> Tensor:
    mirrored = keypoints[:, _JOINT_ORDER.to(keypoints.device)].clone()
    mirrored[..., 0] = width - 1 - mirrored[..., 0]
    return _select(which, mirrored, keypoints)
