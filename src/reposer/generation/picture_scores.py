"""Scores of generated pictures that need no true picture: sharpness, and agreement with the donor's pose."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from reposer.data.parsing import LABEL_SETS, convert
from reposer.structures import MISSING_LABEL

SHAPES = ("merged8", "mask")  # what a pose is compared by
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG
_FEWEST_PIXELS = 32  # fewer say nothing about sharpness


def sharpness(pictures: Tensor, mask: Tensor) -> NDArray[np.float64]:
    """(B,) variance of the Laplacian on the person, in squared gray levels of 0 to 255; higher is sharper.

    The 4-neighbor Laplacian of the BT.601 gray picture, over the pixels whose four neighbors are all on the
    person, so that neither the outline nor the background counts (Pech-Pacheco et al., ICPR 2000, takes the
    whole picture). It depends on the size of the picture. NaN where fewer than 32 such pixels are left.

    Args:
        pictures: (B, 3, H, W) uint8 RGB.
        mask: (B, H, W) bool, True on the person.
    """
    gray = torch.einsum("bchw,c->bhw", pictures.double(), torch.tensor(_LUMA, dtype=torch.float64))
    middle = gray[:, 1:-1, 1:-1]
    around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    laplacian = around - 4 * middle
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    inside = (F.conv2d(mask[:, None].float(), cross)[:, 0] > 4.5).double()  # all five pixels
    count = inside.sum((1, 2))
    mean = (laplacian * inside).sum((1, 2)) / count.clamp(min=1)
    variance = ((laplacian - mean[:, None, None]) ** 2 * inside).sum((1, 2)) / count.clamp(min=1)
    return np.asarray(torch.where(count < _FEWEST_PIXELS, torch.nan, variance).numpy())


def pose_agreement(
    predicted: NDArray[np.uint8], wanted: NDArray[np.uint8], shape: str = "merged8"
) -> NDArray[np.float64]:
    """(B,) mean intersection over union of two LIP-20 maps (B, H, W), in [0, 1]; higher is better.

    Over the labels that either map shows, without the background; pixels that one map does not label are
    left out. NaN where neither map shows a person.

    Args:
        shape: "merged8": label for label, in the merged8 set; "mask": the person as a whole.
    """
    first, second = (convert(np.asarray(maps), "lip20", "merged8") for maps in (predicted, wanted))
    labeled = (first != MISSING_LABEL) & (second != MISSING_LABEL)
    if shape == "mask":
        first, second = np.minimum(first, 1), np.minimum(second, 1)
    shares = np.full((len(first), len(LABEL_SETS["merged8"]) - 1), np.nan)
    for label in range(1, len(LABEL_SETS["merged8"])):
        here, there = (first == label) & labeled, (second == label) & labeled
        union = (here | there).sum((1, 2))
        both = (here & there).sum((1, 2))
        shares[:, label - 1] = np.where(union > 0, both / np.maximum(union, 1), np.nan)
    shown = ~np.isnan(shares)
    total = np.where(shown, shares, 0).sum(1)
    return np.asarray(np.where(shown.any(1), total / np.maximum(shown.sum(1), 1), np.nan))
