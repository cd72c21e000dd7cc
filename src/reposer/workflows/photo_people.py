"""One person of a photo, framed and annotated: what ``reposer repose`` and the page begin with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from reposer.annotation.annotators import Annotation, Annotators
from reposer.generation.pictures import Person, resize_array
from reposer.generation.reposing import Box, cut, frame_of, working_size


@dataclass(frozen=True)
class FoundPerson:
    """One person of a photo."""

    box: Box  # as found
    score: float
    frame: Box
    pixels: NDArray[np.uint8]  # (h, w, 3) of the frame, the edge repeated outside the photo
    known: NDArray[np.bool_]  # (h, w) what of it is in the photo
    person: Person  # at the working size


def look_at(
    annotators: Annotators, pixels: NDArray[np.uint8], box: Box, score: float, name: str
) -> FoundPerson | None:
    """The person of a box, in a frame of 2:1 around them; None where no map, mask or joint is found.

    Args:
        annotators: with a parser, a mask and keypoints.
        pixels: (H, W, 3) uint8 RGB of the photo.
        box: of the person, as found with ``score``.
        name: of the photo, for messages.
    """
    frame = frame_of(box)
    region, known = cut(pixels, frame)
    size = working_size(frame)
    image = resize_array(region, size)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
    (annotation,) = annotators.annotate(batch, [name])
    inside = resize_array(known.astype(np.uint8), size).astype(np.bool_)
    person = _person(name, image, annotation, inside, (region.shape[0], region.shape[1]))
    return None if person is None else FoundPerson(box, score, frame, region, known, person)


def _person(
    name: str,
    image: NDArray[np.uint8],
    annotation: Annotation,
    inside: NDArray[np.bool_],
    original: tuple[int, int],
) -> Person | None:
    """Without what lies outside the photo; None where nobody is."""
    if annotation.parsing is None or annotation.mask is None or annotation.keypoints is None:
        return None
    joints = annotation.keypoints.copy()
    known = np.flatnonzero(~np.isnan(joints[:, 0]))
    x, y = joints[known].round().astype(int).T
    x, y = x.clip(0, inside.shape[1] - 1), y.clip(0, len(inside) - 1)
    mask = _own(annotation.mask & inside, x, y)
    joints[known[~inside[y, x]]] = np.nan
    if annotation.mask_source == "everything" or not mask.any() or np.isnan(joints).all():
        return None
    parsing = np.where(mask, annotation.parsing, 0).astype(np.uint8)
    return Person(name, image, parsing, mask, joints, original, "")


def _own(mask: NDArray[np.bool_], x: NDArray[np.integer], y: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The piece of a mask that most joints lie on: a mask may show the neighbors too."""
    from scipy import ndimage  # here, because the page waits without it

    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(pieces.ravel(), minlength=count + 1) / mask.size
    votes = np.bincount(pieces[y, x], minlength=count + 1) + sizes  # of equal ones the largest
    votes[0] = -1
    return np.asarray(pieces == votes.argmax())
