"""Which of a detector's boxes become crops, and where exactly they are cut: rules, written down once.

1. Boxes are in pixels of the photo turned upright, as EXIF says; only people with a score of at least 0.5.
2. The same person twice (intersection over union above 0.7): the box with the lower score is left out.
3. Less than 64 pixels high or 24 wide: left out; nothing of use can be seen.
4. The rest is numbered from left to right, enlarged by 5 % of its size on each side, rounded outwards and cut
   at the photo's border.
5. A box that ends within 2 pixels of the border is cut as it is and flagged ``at-border``.
6. Of overlapping people every one is cut, the other stays in the picture; where more than half of a box lies
   in another box it is flagged ``overlapped``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAME_PERSON = 0.7  # intersection over union
OVERLAPPED = 0.5  # share of a box inside another
MIN_HEIGHT, MIN_WIDTH = 64, 24  # pixels
MARGIN = 0.05  # of the box's size, on each side
BORDER = 2.0  # pixels

Boxes = NDArray[np.float64]  # (N, 4) left, top, right, bottom in pixels, right and bottom exclusive


@dataclass(frozen=True, slots=True)
class Cut:
    """A crop to be cut out."""

    box: tuple[int, int, int, int]  # left, top, right, bottom, whole pixels inside the photo
    score: float
    flags: tuple[str, ...]  # of quality.FLAGS


@dataclass(frozen=True, slots=True)
class Dropped:
    """A box that is left out."""

    rule: str  # "same-person" or "tiny-box"
    message: str


def choose_cuts(
    boxes: Boxes, scores: NDArray[np.floating], size: tuple[int, int]
) -> tuple[list[Cut], list[Dropped]]:
    """The crops of a photo from left to right, and what is left out; the order of the input does not matter.

    Args:
        boxes: (N, 4) of people.
        scores: (N,).
        size: (H, W) of the photo.
    """
    if boxes.shape != (len(scores), 4):
        raise ValueError(f"boxes {boxes.shape}, scores {scores.shape}")
    limits = np.array([size[1], size[0], size[1], size[0]], np.float64)
    boxes = np.clip(boxes.astype(np.float64), 0, limits)
    dropped = []
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-float(scores[i]), *boxes[i])):
        width, height = boxes[i, 2] - boxes[i, 0], boxes[i, 3] - boxes[i, 1]
        if height < MIN_HEIGHT or width < MIN_WIDTH:
            least = f"at least {MIN_WIDTH}x{MIN_HEIGHT} are needed"
            dropped.append(Dropped("tiny-box", f"a person of {width:.0f}x{height:.0f} pixels; {least}"))
        elif any(_overlap(boxes[i], boxes[j])[0] > SAME_PERSON for j in kept):
            dropped.append(Dropped("same-person", f"a second box of one person, score {scores[i]:.2f}"))
        else:
            kept.append(i)
    kept.sort(key=lambda i: (boxes[i, 0], boxes[i, 1], -float(scores[i])))
    return [_cut(i, kept, boxes, float(scores[i]), size) for i in kept], dropped


def _cut(i: int, kept: list[int], boxes: Boxes, score: float, size: tuple[int, int]) -> Cut:
    left, top, right, bottom = boxes[i]
    flags = []
    if min(left, top, size[1] - right, size[0] - bottom) <= BORDER:
        flags.append("at-border")
    if any(_overlap(boxes[i], boxes[j])[1] > OVERLAPPED for j in kept if j != i):
        flags.append("overlapped")
    x, y = MARGIN * (right - left), MARGIN * (bottom - top)
    box = (
        max(0, int(np.floor(left - x))),
        max(0, int(np.floor(top - y))),
        min(size[1], int(np.ceil(right + x))),
        min(size[0], int(np.ceil(bottom + y))),
    )
    return Cut(box, score, tuple(flags))


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Intersection over union of two boxes, and the share of the first that lies in the second."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(sides.clip(min=0).prod())
    areas = [float((box[2:] - box[:2]).prod()) for box in (a, b)]
    return common / max(sum(areas) - common, 1e-9), common / max(areas[0], 1e-9)
