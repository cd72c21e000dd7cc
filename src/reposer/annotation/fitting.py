"""How an image is fitted into a segmentation model's input, and its scores are carried back: two matrices.

Every fit here moves rows and columns independently, so that "warp, then resample" is ``rows @ x @ columns.T``
with two small matrices, exactly, for any number of interpolations in a row; nothing of the size of the
intermediate pictures is made.

* affine: SCHP's. The aspect is kept, the first and last pixel of the longer side land on 0 and on the model's
  *size* (not size - 1), the rest is black; scores go back by way of the model's input size. OpenCV does the
  same with positions rounded to 1/32 pixel.
* resize: the aspect is not kept; pixel centers as Pillow and torchvision have them (antialiased when it
  shrinks); scores go directly to the image's size.
* pad: the aspect is kept, the image stands in the middle of black; pixel centers as in resize.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Fit = Literal["affine", "resize", "pad"]
Size: TypeAlias = tuple[int, int]  # (H, W)


def resample(x: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
    """(B, C, H, W) float -> (B, C, h, w) by rows (h, H) and columns (w, W); x itself if it fits."""
    rows, columns = matrices
    if not _is_identity(rows):
        x = torch.matmul(rows.to(x.device), x)
    return x if _is_identity(columns) else torch.matmul(x, columns.T.to(x.device))


@lru_cache(maxsize=256)
def into_model(fit: Fit, image: Size, model: Size) -> tuple[Tensor, Tensor]:
    """Matrices (h, H), (w, W) that bring an image of size ``image`` to the input size ``model``."""
    if fit == "resize":
        return _resize(image[0], model[0]), _resize(image[1], model[1])
    if fit == "pad":
        inner = _inner(image, model)
        return _padded(image[0], inner[0], model[0]), _padded(image[1], inner[1], model[1])
    scale = _affine_scale(image, model)
    places = (
        (torch.arange(m, dtype=torch.float64) - m / 2) / scale + (n - 1) / 2
        for n, m in zip(image, model, strict=True)
    )
    rows, columns = (_taps(place, n) for place, n in zip(places, image, strict=True))
    return rows.float(), columns.float()


@lru_cache(maxsize=256)
def onto_image(
    fit: Fit, scores: Size, model: Size, image: Size, align_corners: bool
) -> tuple[Tensor, Tensor]:
    """Matrices (H, h), (W, w) that bring scores of size ``scores`` back to the image's size."""
    if fit == "resize":
        rows, columns = (_upsample(s, n, align_corners) for s, n in zip(scores, image, strict=True))
        return rows.float(), columns.float()
    inner = _inner(image, model)
    both = []
    for axis in (0, 1):
        n, m = image[axis], model[axis]
        if fit == "affine":
            places = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2) * _affine_scale(image, model)
            back = _taps(places + m / 2, m)
        else:
            start = (m - inner[axis]) // 2
            back = torch.zeros(n, m, dtype=torch.float64)
            back[:, start : start + inner[axis]] = _upsample(inner[axis], n, False)
        both.append((back @ _upsample(scores[axis], m, align_corners)).float())
    return both[0], both[1]


def _is_identity(matrix: Tensor) -> bool:
    return matrix.shape[0] == matrix.shape[1] and torch.equal(matrix, torch.eye(len(matrix)))


def _affine_scale(image: Size, model: Size) -> float:
    """Model pixels for an image pixel; SCHP measures the image from its first to its last pixel's center."""
    height, width = max(image[0] - 1, 1), max(image[1] - 1, 1)
    return min(model[1] / width, model[0] / height)


def _inner(image: Size, model: Size) -> Size:
    """Size of the image inside a padded input."""
    scale = min(model[0] / image[0], model[1] / image[1])
    return max(1, round(image[0] * scale)), max(1, round(image[1] * scale))


def _taps(places: Tensor, n: int) -> Tensor:
    """(M, n) linear interpolation at (M,) places on the grid 0 .. n - 1; everything around it is 0."""
    low = places.floor()
    share = places - low
    matrix = torch.zeros(len(places), n, dtype=torch.float64)
    row = torch.arange(len(places))
    for place, weight in ((low, 1 - share), (low + 1, share)):
        inside = (place >= 0) & (place < n)
        matrix[row[inside], place[inside].long()] += weight[inside]
    return matrix


def _upsample(n: int, m: int, align_corners: bool) -> Tensor:
    """(m, n) float64, what ``interpolate(mode="bilinear")`` does along one side, without antialiasing."""
    place = torch.arange(m, dtype=torch.float64)
    place = place * ((n - 1) / max(m - 1, 1)) if align_corners else (place + 0.5) * (n / m) - 0.5
    return _taps(place.clamp(0, n - 1), n)


def _resize(n: int, m: int) -> Tensor:
    """(m, n): bilinear, antialiased where it shrinks."""
    return F.interpolate(torch.eye(n)[None, None], (m, n), mode="bilinear", antialias=True)[0, 0]


def _padded(n: int, inner: int, m: int) -> Tensor:
    """(m, n): resized to ``inner`` in the middle of m."""
    matrix = torch.zeros(m, n)
    start = (m - inner) // 2
    matrix[start : start + inner] = _resize(n, inner)
    return matrix
