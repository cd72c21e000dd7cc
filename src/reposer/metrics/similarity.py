"""Per-image similarity of a generated image to the true target: SSIM, PSNR, L1, and their masked forms.

Every function takes uint8 RGB images (B, 3, H, W) and returns float64 (B,), one value an image; pixels are
compared on [0, 1] at native size. NaN means "undefined for this image" (an empty mask): such images are
counted by the caller and never pass for perfect ones.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

SSIM_WINDOW = 11  # pixels: sigma 1.5 cut at 3.5 sigma, as in Wang et al., IEEE TIP 2004
DEEPFASHION_SIZE = (256, 176)  # H, W; PATN's DeepFashion script compares these padded to a square
DEEPFASHION_SIDE = 256


def ssim(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """Structural similarity (Wang et al., 2004): Gaussian window 11, sigma 1.5, data range 1, mean over
    channels.

    Population covariance; the mean leaves out the border of 5 pixels where the window does not fit
    (scikit-image). (torchmetrics averages over a padded border instead: up to 0.028 away from this at
    128x64.)

    Raises:
        ValueError: an image is smaller than the window.
    """
    pairs = zip(_unit(generated), _unit(target), strict=True)
    return np.array([_ssim(a, b, data_range=1.0) for a, b in pairs], np.float64)


def ssim_patn(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """SSIM as PATN's scripts compute it: the data range is max - min of the *generated* image.

    DeepFashion images (256x176) are padded to 256x256 with white first, which raises the value (0.68 -> 0.77
    was reported). NaN for a generated image of one color, whose data range is 0.
    """
    a, b = _pad_deepfashion(_unit(generated)), _pad_deepfashion(_unit(target))
    values = np.full(len(a), np.nan)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        data_range = float(x.max() - x.min())
        if data_range > 0:
            values[i] = _ssim(x, y, data_range)
    return values


def mask_ssim(generated: Tensor, target: Tensor, mask: Tensor) -> NDArray[np.float64]:
    """SSIM of both images times the mask (B, H, W), over the whole frame; NaN where the mask is empty."""
    weights = mask.detach().cpu().numpy().astype(np.float64)[..., None]
    pairs = zip(_unit(generated) * weights, _unit(target) * weights, strict=True)
    values = np.array([_ssim(a, b, data_range=1.0) for a, b in pairs], np.float64)
    return np.where(weights.any(axis=(1, 2, 3)), values, np.nan)


def psnr(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB, peak 1; infinite for two equal images."""
    squared = ((_unit(generated) - _unit(target)) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(-10.0 * np.log10(squared), np.float64)


def l1(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """Mean absolute difference over pixels and channels, on [0, 1]."""
    return np.asarray(_difference(generated, target).mean(axis=(1, 2)) / 3.0, np.float64)


def mask_l1(generated: Tensor, target: Tensor, mask: Tensor) -> NDArray[np.float64]:
    """sum |a - b| * M / (3 * sum M), M (B, H, W) the target's person mask; NaN where the mask is empty."""
    weights = mask.detach().cpu().numpy().astype(np.float64)
    total = (_difference(generated, target) * weights).sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return np.asarray(total / (3.0 * weights.sum(axis=(1, 2))), np.float64)


def _ssim(a: NDArray[np.float64], b: NDArray[np.float64], data_range: float) -> float:
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]
            a,
            b,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=2,
            data_range=data_range,
        )
    )


def _difference(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """(B, H, W) |a - b| summed over the channels, on [0, 1]."""
    return np.asarray(np.abs(_unit(generated) - _unit(target)).sum(axis=3), np.float64)


def _pad_deepfashion(images: NDArray[np.float64]) -> NDArray[np.float64]:
    if images.shape[1:3] != DEEPFASHION_SIZE:
        return images
    side = (DEEPFASHION_SIDE - DEEPFASHION_SIZE[1]) // 2
    return np.pad(images, ((0, 0), (0, 0), (side, side), (0, 0)), constant_values=1.0)


def _unit(images: Tensor) -> NDArray[np.float64]:
    """(B, 3, H, W) uint8 -> (B, H, W, 3) float64 in [0, 1]."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    return np.ascontiguousarray(images.detach().cpu().numpy().transpose(0, 2, 3, 1)) / 255.0
