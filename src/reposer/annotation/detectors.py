"""torchvision's R-CNNs: built without any download, filled from a verified or a user's own file.

The one person of a crop is the one with the largest score x area x nearness to the middle.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.annotation.interfaces import AnnotatorInfo
from reposer.errors import UserError
from reposer.files import sha256_file
from reposer.licences import licensed_weights
from reposer.weights import KNOWN, load_state_dict_file

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
    accept_licence: bool = False,
    may_download: bool = False,
    device: str = "cpu",
) -> tuple[nn.Module, AnnotatorInfo]:
    """A detector in eval mode, and what to write beside its annotations.

    Args:
        name: one of DETECTORS.
        weights: a state dict of the user's (.pth, .safetensors); None: the official file.
        accept_licence: the user has accepted the terms of the official weights.
        may_download: get them where they are not on this machine.
        device: where it runs.

    Raises:
        LicenceError: the terms are not accepted yet; shows them.
        MissingWeightsError: they are not here; says what to put where.
        UserError: unknown name, a damaged file, or weights of another network.
    """
    if name not in _BUILDERS:
        raise UserError(f"detector {name!r}: unknown", f"use one of {', '.join(DETECTORS)}")
    info = AnnotatorInfo(f"{name} (own weights)")
    if weights is None:
        weights = licensed_weights(name, accept_licence=accept_licence, may_download=may_download)
        info = AnnotatorInfo(name, licence=KNOWN[name].licence, non_commercial=KNOWN[name].non_commercial)
    tensors = load_state_dict_file(weights)
    builder = getattr(torchvision.models.detection, _BUILDERS[name])
    network: nn.Module = builder(weights=None, weights_backbone=None)
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise UserError(
            f"{weights}: not the weights of {name} ({lines[-1].strip()[:160]})",
            "use the file of this very network",
        ) from error
    info = AnnotatorInfo(info.name, sha256_file(weights), info.licence, info.non_commercial)
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
