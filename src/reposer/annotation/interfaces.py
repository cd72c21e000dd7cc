"""What annotators are: a parser, a person masker, a keypoint detector, each a callable on a batch of images.

All take (B, 3, H, W) uint8 RGB images of one size, on any device, and answer on the CPU. ``info`` says what
made an annotation and goes into the manifest beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.errors import UserError, find
from reposer.storage.files import sha256_file
from reposer.weights.files import KNOWN, licensed_weights, load_state_dict_file

AUTO = "auto"  # the name of what needs no choice: in each registry, a network that comes by itself
MaskSource = Literal["detector", "network", "parsing", "folder", "everything"]


@dataclass(frozen=True, slots=True)
class AnnotatorInfo:
    """What made an annotation."""

    name: str  # of the model or rule, as "schp_lip"
    sha256: str = ""  # of the weights; empty where there are none
    license: str = ""  # terms of the weights in a few words
    non_commercial: bool = False  # whether these terms forbid commercial use


@dataclass(frozen=True, slots=True)
class Masks:
    """Person masks of B images and where each comes from."""

    mask: NDArray[np.bool_]  # (B, H, W) True on the person
    source: tuple[MaskSource, ...]  # (B,) "everything": no person was found, the whole image counts
    people: NDArray[np.int64]  # (B,) people seen; -1 where nobody counted


@dataclass(frozen=True, slots=True)
class Poses:
    """Keypoints of one person in each of B images."""

    keypoints: NDArray[np.float32]  # (B, 18, 2) x, y in pixels, OpenPose order; NaN for a missing joint
    scores: NDArray[np.float32]  # (B, 18) the model's own confidence; 0 for a missing joint
    people: NDArray[np.int64]  # (B,) people seen; -1 where the model does not look for people


@runtime_checkable
class Parser(Protocol):
    """Images to LIP-20 maps."""

    info: AnnotatorInfo
    needs_keypoints: bool  # whether the model knows no left and right, and keypoints have to tell

    def __call__(self, images: Tensor, keypoints: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) uint8 and, where needed, (B, 18, 2) float32 -> (B, H, W) uint8 LIP-20."""
        ...


@runtime_checkable
class MaskedParser(Protocol):
    """Images, keypoints and person masks to LIP-20 maps: masks are made before the map, not from it."""

    info: AnnotatorInfo
    needs_keypoints: bool  # as a Parser's
    needs_masks: bool  # False: it makes a map without a mask too

    def __call__(
        self, images: Tensor, keypoints: Tensor | None = None, masks: Tensor | None = None
    ) -> Tensor:
        """As a Parser's, with (B, H, W) bool masks, False everywhere where nobody was found, or None."""
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
    """Images to OpenPose-18 keypoints."""

    info: AnnotatorInfo

    def __call__(self, images: Tensor) -> Poses:
        """(B, 3, H, W) uint8 -> poses."""
        ...


# ---- torchvision's R-CNNs: built without any download, filled from a verified or a user's own file.
#
# The one person of a crop is the one with the largest score x area x nearness to the middle.

PERSON = 1  # COCO's label in torchvision's detectors
MIN_SCORE = 0.5
_BUILDERS = {
    "maskrcnn_v2": "maskrcnn_resnet50_fpn_v2",
    "maskrcnn": "maskrcnn_resnet50_fpn",
    "keypointrcnn": "keypointrcnn_resnet50_fpn",
}
DETECTORS = tuple(_BUILDERS)


def load_detector(
    name: str,
    weights: str | Path | None = None,
    *,
    accept_license: bool = False,
    may_download: bool | None = None,
    device: str = "cpu",
) -> tuple[nn.Module, AnnotatorInfo]:
    """A detector in eval mode, and what to write beside its annotations.

    Args:
        name: one of DETECTORS.
        weights: a state dict of the user's (.pth, .safetensors); None: the official file.
        accept_license: the user has accepted the terms of the official weights.
        may_download: get them where they are not on this machine.
        device: where it runs.

    Raises:
        LicenseError: the terms are not accepted yet; shows them.
        MissingWeightsError: they are not here; says what to put where.
        UserError: unknown name, a damaged file, or weights of another network.
    """
    from torchvision.models import detection  # here: it takes memory that few need

    builder = getattr(detection, find("detector", name, _BUILDERS))
    info = AnnotatorInfo(f"{name} (own weights)")
    if weights is None:
        weights = licensed_weights(name, accept_license=accept_license, may_download=may_download)
        info = AnnotatorInfo(name, license=KNOWN[name].license, non_commercial=KNOWN[name].non_commercial)
    tensors = load_state_dict_file(weights)
    network: nn.Module = builder(weights=None, weights_backbone=None)
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise UserError(
            f"{weights}: not the weights of {name} ({lines[-1].strip()[:160]})",
            "use the file of this very network",
        ) from error
    info = AnnotatorInfo(info.name, sha256_file(weights), info.license, info.non_commercial)
    return network.eval().to(device), info


def detect(network: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """What the detector sees in (B, 3, H, W) uint8 RGB images, people above MIN_SCORE only, on the CPU."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        found = network(list(images.to(device).float() / 255))
    people = []
    for one in found:
        keep = (one["labels"] == PERSON) & (one["scores"] >= MIN_SCORE)
        people.append({name: values[keep].cpu() for name, values in one.items()})
    return people


def main_person(
    scores: NDArray[np.floating],
    areas: NDArray[np.floating],
    centers: NDArray[np.floating],
    size: tuple[int, int],
) -> int:
    """Which of N people the crop is about: the largest score x area x nearness to the middle.

    Nearness is 1 in the middle of the image and 0 in its corners.

    Args:
        scores: (N,) of the detector.
        areas: (N,) in any unit.
        centers: (N, 2) x, y in pixels.
        size: (H, W) of the image.
    """
    middle = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    reach = max(float(np.linalg.norm(middle)), 1e-9)
    nearness = 1 - np.linalg.norm(centers - middle, axis=1) / reach
    return int(np.argmax(scores * areas * nearness.clip(min=0)))
