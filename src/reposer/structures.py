"""The dataclasses that travel between the rooms: records, batches, features, rankings.

Shapes stand in the comments: B batch, H height, W width, J = 18 joints, N items, D feature size,
Q queries, G gallery images. A record needs no torch, so that what reads only records does without.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NUM_JOINTS = 18  # OpenPose-COCO-18, in the order of reposer.data.keypoints.JOINTS
NUM_LABELS = 20  # LIP-20, in the order of reposer.data.parsing.LIP_LABELS
MISSING_LABEL = 255  # fills the parsing map of a person who has none
# Pairs of joints by which PG2, DPIG, Def-GAN and GFLA draw a body, and pose masks of metrics too. Six are no
# limbs: they fill the torso's sides (8-11, 11-5, 8-2), join the shoulder to both ears of PATN's naming
# (1-16, 1-17) and one ear to the other (16-17).
LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13)),
    *((1, 0), (0, 14), (14, 16), (0, 15), (15, 17), (1, 16), (1, 17), (8, 11), (11, 5), (8, 2), (16, 17)),
)


@dataclass(frozen=True, slots=True)
class PersonRecord:
    """One person image and what is known about it: a row of the manifest."""

    name: str  # file name, unique in the data set; the key of every annotation
    path: str  # image file, relative to the data set's root, '/' as separator
    pid: int  # raw identity; -1 junk, 0 distractor
    camid: int  # raw camera number, as in the file name
    split: str  # "train", "val" (held-out people of the training folder), "query" or "gallery"
    width: int  # pixels
    height: int  # pixels
    sha256: str  # of the image file's bytes
    parsing: str | None = None  # LIP-20 label map, relative path
    mask: str | None = None  # binary person mask, relative path
    keypoints: NDArray[np.float32] | None = None  # (J, 2) x, y in pixels; NaN for a missing joint
    clothes: int = -1  # number of the outfit among the person's, from 0; -1 unknown


class _Batch:
    """Moving and slicing, shared by the batch dataclasses below."""

    __slots__ = ()

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors, by name; optional parts are none."""
        from torch import Tensor

        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch with every tensor on ``device``."""
        from torch import Tensor

        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        moved = {
            k: v.to(device, non_blocking=non_blocking)
            for k, v in values.items()
            if isinstance(v, Tensor | _Batch)
        }
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class MoreSources(_Batch):
    """K further images of each of B source persons."""

    image: Tensor  # (B, K, 3, H, W) uint8 RGB
    parsing: Tensor  # (B, K, H, W) uint8 LIP-20
    mask: Tensor  # (B, K, H, W) bool
    keypoints: Tensor  # (B, K, J, 2) float32
    known: Tensor  # (B, K) bool, False where the person has no further image: its fields are ignored

    def first(self, count: int) -> MoreSources | None:
        """The first so many of each person; None for none."""
        if not count:
            return None
        return MoreSources(*(getattr(self, field.name)[:, :count] for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Carried(_Batch):
    """What texture transport brought to B targets (:mod:`reposer.models.texture_transport`)."""

    image: Tensor  # (B, 3, H, W) float32 in [-1, 1]: carried pixels, group colors, the source's background
    validity: (
        Tensor  # (B, 1, H, W) float32 in [0, 1], how far a pixel is to be trusted; 0: nothing was carried
    )
    colors: (
        Tensor  # (B, 3, H, W) float32 in [-1, 1]: group colors on the target's person, background as above
    )
    coordinates: Tensor  # (B, H, W, 2) x, y in the source; the pixel's own place where nothing was carried
    view: Tensor  # (B, H, W) int64: which source, 0 the first


@dataclass(frozen=True, slots=True)
class PairBatch(_Batch):
    """Source and target of B pairs; every generator takes one and picks the fields that it needs."""

    source_image: Tensor  # (B, 3, H, W) uint8 RGB, until images.to_float makes it float in [-1, 1]
    target_image: Tensor  # (B, 3, H, W) the same; in use (no true target) the donor's image
    source_parsing: Tensor  # (B, H, W) uint8 LIP-20 label indices, MISSING_LABEL where there is no map
    target_parsing: Tensor  # (B, H, W)
    source_mask: Tensor  # (B, H, W) bool, True on the person
    target_mask: Tensor  # (B, H, W)
    source_keypoints: Tensor  # (B, J, 2) float32 x, y in pixels, NaN for a missing joint
    target_keypoints: Tensor  # (B, J, 2)
    pids: Tensor  # (B,) int64 raw identity of the source
    more_sources: MoreSources | None = None  # of the same persons, for generators that take several
    carried: Carried | None = None  # follows from the rest; here where several networks look at it

    def __len__(self) -> int:
        return self.source_image.shape[0]


@dataclass(frozen=True, slots=True)
class ReidBatch(_Batch):
    """Images of B people with their labels."""

    image: Tensor  # (B, 3, H, W) uint8 RGB, until images.to_float
    label: Tensor  # (B,) int64 contiguous class index
    camid: Tensor  # (B,) int64
    weight: Tensor  # (B,) float32 weight in the loss, 1 for a real image
    generated: Tensor  # (B,) bool
    known: Tensor  # (B,) bool, False where the label does not say who is on the image

    def __len__(self) -> int:
        return self.image.shape[0]


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """Features of N images with the labels that the protocol needs."""

    features: NDArray[np.floating]  # (N, D) float32; float64 where a file's numbers need it
    pids: NDArray[np.int64]  # (N,) raw identity; -1 junk, 0 distractor
    camids: NDArray[np.int64]  # (N,)
    names: tuple[str, ...]  # (N,) file names
    clothes: NDArray[np.int64] | None = None  # (N,) number of the outfit, where a data set tells it

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, chosen: NDArray[np.int64]) -> FeatureSet:
        """The images at these positions (n,), in this order."""
        return FeatureSet(
            self.features[chosen],
            self.pids[chosen],
            self.camids[chosen],
            tuple(self.names[i] for i in chosen.tolist()),
            None if self.clothes is None else self.clothes[chosen],
        )


@dataclass(frozen=True, slots=True)
class Ranking:
    """The gallery ordered for each query, nearest first."""

    order: NDArray[np.int64]  # (Q, K) gallery indices, K <= G
    distance: NDArray[np.float32]  # (Q, K) smaller is closer
    matches: NDArray[np.bool_]  # (Q, K) same identity
    valid: NDArray[np.bool_]  # (Q, K) False for junk and for the query's own camera


def unknown_cameras(camids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whose camera is not known, of images (N,) that are compared with each other.

    Unknown is a number below 0 and, where all images have one and the same number, every number: two cameras
    are the least that tell which match is an easy one.
    """
    same = len(camids) > 1 and bool((camids == camids[0]).all())
    return np.ones(len(camids), np.bool_) if same else camids < 0
