"""One person for a generator: image, parsing, mask and keypoints from files or arrays, at the model's
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from reposer.data.keypoints import Pose, scale_keypoints
from reposer.data.label_files import read_mask
from reposer.data.parsing import LIP_LABELS, read_parsing
from reposer.errors import UserError
from reposer.images import read_picture
from reposer.storage.paths import printable
from reposer.structures import NUM_JOINTS, PairBatch

ImageLike = str | Path | NDArray[np.uint8]
_BILINEAR, _NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST  # Pillow's bilinear antialiases


@dataclass(frozen=True, slots=True)
class Person:
    """An image and its annotations, all of the size (H, W) that the model works at."""

    name: str  # file name, or what the caller calls it
    image: NDArray[np.uint8]  # (H, W, 3) RGB
    parsing: NDArray[np.uint8]  # (H, W) LIP-20
    mask: NDArray[np.bool_]  # (H, W) True on the person
    keypoints: Pose  # (J, 2) x, y in pixels of this size, NaN for a missing joint
    original_size: tuple[int, int]  # (H, W) of the image as given
    sha256: str  # of the image file; empty for an array


def load_person(
    image: ImageLike,
    parsing: ImageLike | None,
    mask: ImageLike | NDArray[np.bool_] | None = None,
    keypoints: Pose | None = None,
    *,
    size: tuple[int, int],
    name: str = "",
) -> Person:
    """Read one person and bring everything to ``size``.

    Args:
        image: file, or (H, W, 3) uint8 RGB.
        parsing: file (palette or gray PNG, .npy), or (H, W) uint8 LIP-20 labels, as large as the image.
        mask: file, or (H, W); without one, or with an empty one, every pixel with a label other than
            background is the person, and every pixel at all where the label map has none either.
        keypoints: (J, 2) x, y in pixels of the image, NaN for a missing joint.
        size: (H, W) of the model.
        name: what messages call the person; default: the image's file name.

    Raises:
        UserError: no parsing, or something that cannot be read or has another size than the image.
    """
    if isinstance(image, str | Path):
        picture = read_picture(image)
        pixels, digest, name = picture.pixels, picture.sha256, name or Path(image).name
    else:
        pixels, digest, name = _checked(image, (3,), name or "image"), "", name or "image"
    original = (pixels.shape[0], pixels.shape[1])
    if parsing is None:
        raise UserError(
            f"{printable(name)}: has no parsing map; a person is re-posed by the maps of source and donor",
            "give a LIP-20 label map as large as the image (palette PNG, gray PNG or .npy)",
        )
    labels = _labels(parsing, original, name)
    person = _mask(mask, original, name)
    if person is None or not person.any():
        person = labels != 0 if labels.any() else np.ones(original, np.bool_)
    pose = np.full((NUM_JOINTS, 2), np.nan, np.float32) if keypoints is None else keypoints
    if pose.shape != (NUM_JOINTS, 2):
        raise UserError(f"{printable(name)}: keypoints are {pose.shape}", f"give ({NUM_JOINTS}, 2) x, y")
    return Person(
        name=name,
        image=resize_array(pixels, size, _BILINEAR),
        parsing=resize_array(labels, size, _NEAREST),
        mask=resize_array(person.astype(np.uint8), size, _NEAREST).astype(np.bool_),
        keypoints=pose if original == tuple(size) else scale_keypoints(pose, original, size),
        original_size=original,
        sha256=digest,
    )


def people_batch(sources: Sequence[Person], donors: Sequence[Person]) -> PairBatch:
    """The PairBatch of B sources and as many donors; pids are -1, since nobody is known here."""
    fields: dict[str, Tensor] = {"pids": torch.full((len(sources),), -1, dtype=torch.int64)}
    for side, people in (("source", sources), ("target", donors)):
        images = torch.from_numpy(np.stack([p.image for p in people]))
        fields[f"{side}_image"] = images.permute(0, 3, 1, 2)
        fields[f"{side}_parsing"] = torch.from_numpy(np.stack([p.parsing for p in people]))
        fields[f"{side}_mask"] = torch.from_numpy(np.stack([p.mask for p in people]))
        fields[f"{side}_keypoints"] = torch.from_numpy(np.stack([p.keypoints for p in people]))
    return PairBatch(**fields)


def _labels(parsing: ImageLike, size: tuple[int, int], name: str) -> NDArray[np.uint8]:
    if isinstance(parsing, str | Path):
        return read_parsing(parsing, size)
    labels = _checked(parsing, (), f"parsing of {name}", size)
    known = len(LIP_LABELS)
    if int(labels.max()) >= known:
        problem = f"label {labels.max()} is not in lip20 (0 to {known - 1})"
        raise UserError(f"parsing of {printable(name)}: {problem}", "convert the label map")
    return labels


def _mask(
    mask: ImageLike | NDArray[np.bool_] | None, size: tuple[int, int], name: str
) -> NDArray[np.bool_] | None:
    if mask is None:
        return None
    if isinstance(mask, str | Path):
        return read_mask(mask, size)
    return _checked(np.asarray(mask).astype(np.uint8), (), f"mask of {name}", size) > 0


def _checked(
    array: NDArray[Any], channels: tuple[int, ...], what: str, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """``array`` if it is uint8 of (H, W, *channels), and of ``size`` where one is given."""
    fits = array.dtype == np.uint8 and array.ndim == 2 + len(channels) and array.shape[2:] == channels
    if not fits or (size is not None and array.shape[:2] != size):
        wanted = ", ".join(str(side) for side in (*(size or ("H", "W")), *channels))
        problem = f"is {array.dtype} {array.shape}, uint8 ({wanted}) is wanted"
        raise UserError(f"{printable(what)}: {problem}", "convert it")
    return array


def resize_array(
    array: NDArray[np.uint8], size: tuple[int, int], how: Image.Resampling = _BILINEAR
) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) uint8 at another (H, W); bilinear with antialiasing for pictures, as packing
    does.
    """
    if array.shape[:2] == tuple(size):
        return np.ascontiguousarray(array)
    return np.array(Image.fromarray(array).resize((size[1], size[0]), how))
