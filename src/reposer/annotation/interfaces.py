"""What annotators are: a parser, a person masker, a key-point detector, each a callable on a batch of images.

All take (B, 3, H, W) uint8 RGB images of one size, on any device, and answer on the CPU. ``info`` says what
made an annotation and goes into the manifest beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MaskSource = Literal["detector", "parsing", "folder", "everything"]


@dataclass(frozen=True, slots=True)
class AnnotatorInfo:
    """What made an annotation."""

    name: str  # of the model or rule, as "schp_lip"
    sha256: str = ""  # of the weights; empty where there are none
    licence: str = ""  # terms of the weights in a few words
    non_commercial: bool = False  # whether these terms forbid commercial use


@dataclass(frozen=True, slots=True)
class Masks:
    """Person masks of B images and where each comes from."""

    mask: NDArray[np.bool_]  # (B, H, W) True on the person
    source: tuple[MaskSource, ...]  # (B,) "everything": no person was found, the whole image counts
    people: NDArray[np.int64]  # (B,) people seen; -1 where nobody counted


@dataclass(frozen=True, slots=True)
class Poses:
    """Key-points of one person in each of B images."""

    keypoints: NDArray[np.float32]  # (B, 18, 2) x, y in pixels, OpenPose order; NaN for a missing joint
    scores: NDArray[np.float32]  # (B, 18) the model's own confidence; 0 for a missing joint
    people: NDArray[np.int64]  # (B,) people seen; -1 where the model does not look for people


@runtime_checkable
class Parser(Protocol):
    """Images to LIP-20 maps."""

    info: AnnotatorInfo
    needs_keypoints: bool  # whether the model knows no left and right, and key-points have to tell

    def __call__(self, images: Tensor, keypoints: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) uint8 and, where needed, (B, 18, 2) float32 -> (B, H, W) uint8 LIP-20."""
        ...


@runtime_checkable
class PersonMasker(Protocol):
    """Images, and parsing maps where there are any, to person masks."""

    info: AnnotatorInfo

    def __call__(self, images: Tensor, parsing: Tensor | None = None) -> Masks:
        """(B, 3, H, W) uint8 and (B, H, W) uint8 LIP-20 -> masks."""
        ...


@runtime_checkable
class KeypointDetector(Protocol):
    """Images to OpenPose-18 key-points."""

    info: AnnotatorInfo

    def __call__(self, images: Tensor) -> Poses:
        """(B, 3, H, W) uint8 -> poses."""
        ...
