"""Person masks: from selfie segmentation, Mask R-CNN, a parsing map, or a folder of the user's."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.annotation.interfaces import (
    AUTO,
    AnnotatorInfo,
    Masks,
    MaskSource,
    PersonMasker,
    detect,
    load_detector,
    main_person,
)
from reposer.annotation.mediapipe import open_selfie
from reposer.data.label_files import map_names, read_mask
from reposer.errors import find
from reposer.storage.paths import no_folder
from reposer.structures import MISSING_LABEL

MASK_THRESHOLD = 0.5
_SUFFIXES = (".png", ".npy")


class DetectorMasker:
    """Mask R-CNN's main person; else parsing != 0; else the whole image (``Masks.source`` tells which).

    Score and mask threshold are 0.5; of several people detectors.main_person chooses, with the area and the
    center of gravity of their masks.

    Args:
        network: a torchvision Mask R-CNN in eval mode.
        info: what to write beside its masks.
    """

    def __init__(self, network: nn.Module, info: AnnotatorInfo) -> None:
        self.info = info
        self._network = network

    def __call__(self, images: Tensor, parsing: Tensor | None = None) -> Masks:
        """(B, 3, H, W) uint8 and, for images in which nobody is found, (B, H, W) LIP-20 -> masks."""
        fallback = ParsingMasker()(images, parsing)
        mask, source, people = fallback.mask, list(fallback.source), []
        for i, found in enumerate(detect(self._network, images)):
            chosen = _main_mask(found["masks"][:, 0].numpy() >= MASK_THRESHOLD, found["scores"].numpy())
            people.append(len(found["scores"]))
            if chosen is not None:
                mask[i], source[i] = chosen, "detector"
        return Masks(mask, tuple(source), np.array(people, np.int64))


class ParsingMasker:
    """What a parsing map does not call background; the whole image where it calls everything so."""

    info = AnnotatorInfo("parsing")

    def __call__(self, images: Tensor, parsing: Tensor | None = None) -> Masks:
        """(B, 3, H, W) uint8 and (B, H, W) LIP-20, MISSING_LABEL where there is no map -> masks."""
        count, _, height, width = images.shape
        mask = np.zeros((count, height, width), np.bool_)
        if parsing is not None:
            if parsing.shape != (count, height, width):
                raise ValueError(f"maps {tuple(parsing.shape)} for images {tuple(images.shape)}")
            mask = ((parsing != 0) & (parsing != MISSING_LABEL)).cpu().numpy()
        found = [bool(one.any()) for one in mask]
        mask[[not one for one in found]] = True
        sources: list[MaskSource] = ["parsing" if one else "everything" for one in found]
        return Masks(mask, tuple(sources), np.full(count, -1, np.int64))


class FolderMasks:
    """Masks that the user has: ``<stem>.png``, ``.npy`` and what ``map_names`` adds, 0 and one other value.

    Args:
        folder: the folder.

    Raises:
        UserError: no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.info = AnnotatorInfo("folder")
        if not self.folder.is_dir():
            raise no_folder(self.folder, "give the folder that holds the masks")

    def places(self, stem: str) -> list[Path]:
        """Where the mask of the image ``stem`` is looked for; the first one counts."""
        names = [f"{stem}{suffix}" for suffix in _SUFFIXES]
        more = [spelled for name in map_names("mask", stem) for spelled in _spellings(name)]
        there = [
            name for name in dict.fromkeys(more) if name not in names and os.path.lexists(self.folder / name)
        ]
        return [self.folder / name for name in (*names, *there)]

    def find(self, stem: str, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """(H, W) bool of the image ``stem``; None where the folder has no file for it.

        Raises:
            RefusedFileError: unreadable, or more than two values.
            AnnotationError: another size.
        """
        for path in self.places(stem):
            if os.path.lexists(path):  # what is no file, or a link out, is refused and not passed over
                return read_mask(path, size, self.folder)
        return None


def _spellings(name: str) -> tuple[str, str]:
    """A file name with its suffix in small and in capital letters."""
    base, dot, suffix = name.rpartition(".")
    return name, f"{base}{dot}{suffix.upper()}"


def open_masker(
    name: str = "maskrcnn_v2",
    weights: str | Path | None = None,
    *,
    accept_license: bool = False,
    may_download: bool | None = None,
    device: str = "cpu",
) -> PersonMasker:
    """The masker of that name, a key of MASKERS.

    Raises:
        UserError: as ``interfaces.load_detector``; unknown name.
    """
    made = find("masker", name, MASKERS)
    return made(weights, accept_license=accept_license, may_download=may_download, device=device)


def _open_detector(name: str, weights: str | Path | None, **how: Any) -> PersonMasker:
    return DetectorMasker(*load_detector(name, weights, **how))


# Each is called with the user's weights (or None), accept_license, may_download and device.
MASKERS: dict[str, Callable[..., PersonMasker]] = {
    AUTO: open_selfie,
    "selfie": open_selfie,
    "parsing": lambda weights, **how: ParsingMasker(),
    "maskrcnn_v2": partial(_open_detector, "maskrcnn_v2"),
    "maskrcnn": partial(_open_detector, "maskrcnn"),
}


def _main_mask(masks: NDArray[np.bool_], scores: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """The mask (H, W) of the main person of (N, H, W); None where all are empty."""
    areas = masks.sum(axis=(1, 2)).astype(np.float64)
    if not areas.any():
        return None
    height, width = masks.shape[1:]
    x = (masks.sum(axis=1) @ np.arange(width)) / np.maximum(areas, 1)
    y = (masks.sum(axis=2) @ np.arange(height)) / np.maximum(areas, 1)
    chosen = main_person(scores, areas, np.stack([x, y], axis=1), (height, width))
    return np.asarray(masks[chosen])
