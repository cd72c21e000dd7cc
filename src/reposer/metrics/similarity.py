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

from reposer.errors import UserError
from reposer.images import require_uint8

SSIM_WINDOW = 11  # pixels: sigma 1.5 cut at 3.5 sigma, as in Wang et al., IEEE TIP 2004
GFLA_WINDOW = 51  # pixels
DEEPFASHION_SIZE = (256, 176)  # H, W; PATN's DeepFashion script compares these padded to a square
DEEPFASHION_SIDE = 256


def ssim(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """Structural similarity (Wang et al., 2004): Gaussian window 11, sigma 1.5, data range 1, mean over
    channels.

    Population covariance; the mean leaves out the border of 5 pixels where the window does not fit
    (scikit-image). (torchmetrics averages over a padded border instead: up to 0.028 away from this at
    128x64.)

    Raises:
        UserError: an image is smaller than the window.
    """
    pairs = zip(*_pair(generated, target), strict=True)
    return np.array([_ssim(a, b, data_range=1.0) for a, b in pairs], np.float64)


def ssim_gfla(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """SSIM with the settings of GFLA's script/metrics.py: uniform window of 51 pixels, sample covariance.

    Data range 1, mean over channels; the mean leaves out the border of 25 pixels.

    Raises:
        UserError: an image is smaller than the window.
    """
    a, b = _pair(generated, target)
    _require_window(a, GFLA_WINDOW)
    values = [
        structural_similarity(  # type: ignore[no-untyped-call]
            x, y, win_size=GFLA_WINDOW, channel_axis=2, data_range=1.0
        )
        for x, y in zip(a, b, strict=True)
    ]
    return np.array(values, np.float64)


def mae_gfla(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """What GFLA's script calls MAE: sum |a - b| / sum (a + b), in [0, 1]; NaN for two black images."""
    a, b = _pair(generated, target)
    total = (a + b).sum(axis=(1, 2, 3))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(a - b).sum(axis=(1, 2, 3)) / total, np.float64)


def ssim_patn(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """SSIM as PATN's scripts compute it: the data range is max - min of the *generated* image.

    DeepFashion images (256x176) are padded to 256x256 with white first, which raises the value (0.68 -> 0.77
    was reported). NaN for a generated image of one color, whose data range is 0.
    """
    a, b = (_pad_deepfashion(images) for images in _pair(generated, target))
    values = np.full(len(a), np.nan)
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        data_range = float(x.max() - x.min())
        if data_range > 0:
            values[i] = _ssim(x, y, data_range)
    return values


def mask_ssim(generated: Tensor, target: Tensor, mask: Tensor) -> NDArray[np.float64]:
    """SSIM of both images times the mask (B, H, W), over the whole frame; NaN where the mask is empty."""
    a, b = _pair(generated, target)
    weights = _weights(mask, a)[..., None]
    pairs = zip(a * weights, b * weights, strict=True)
    values = np.array([_ssim(a, b, data_range=1.0) for a, b in pairs], np.float64)
    return np.where(weights.any(axis=(1, 2, 3)), values, np.nan)


def psnr(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB, peak 1; infinite for two equal images."""
    a, b = _pair(generated, target)
    squared = ((a - b) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.asarray(-10.0 * np.log10(squared), np.float64)


def l1(generated: Tensor, target: Tensor) -> NDArray[np.float64]:
    """Mean absolute difference over pixels and channels, on [0, 1]."""
    return np.asarray(_difference(generated, target).mean(axis=(1, 2)) / 3.0, np.float64)


def mask_l1(generated: Tensor, target: Tensor, mask: Tensor) -> NDArray[np.float64]:
    """sum |a - b| * M / (3 * sum M), M (B, H, W) the target's person mask; NaN where the mask is empty."""
    difference = _difference(generated, target)
    weights = _weights(mask, difference)
    total = (difference * weights).sum(axis=(1, 2))
    with np.errstate(invalid="ignore"):
        return np.asarray(total / (3.0 * weights.sum(axis=(1, 2))), np.float64)


def _ssim(a: NDArray[np.float64], b: NDArray[np.float64], data_range: float) -> float:
    _require_window(a[None], SSIM_WINDOW)
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
    a, b = _pair(generated, target)
    return np.asarray(np.abs(a - b).sum(axis=3), np.float64)


def _require_window(images: NDArray[np.float64], window: int) -> None:
    height, width = images.shape[1:3]
    if min(height, width) < window:
        raise UserError(
            f"images of {height}x{width} are smaller than the {window} pixels of this SSIM's window",
            "leave the metric out",
        )


def _weights(mask: Tensor, images: NDArray[np.float64]) -> NDArray[np.float64]:
    """A mask (B, H, W) of the images (B, H, W, ...) as 0 and 1; one of 0 and 255 would weigh 255-fold."""
    if mask.dtype != torch.bool or tuple(mask.shape) != images.shape[:3]:
        raise ValueError(f"expected a bool mask {images.shape[:3]}, got {mask.dtype} {tuple(mask.shape)}")
    return mask.detach().cpu().numpy().astype(np.float64)


def _pad_deepfashion(images: NDArray[np.float64]) -> NDArray[np.float64]:
    if images.shape[1:3] != DEEPFASHION_SIZE:
        return images
    side = (DEEPFASHION_SIDE - DEEPFASHION_SIZE[1]) // 2
    return np.pad(images, ((0, 0), (0, 0), (side, side), (0, 0)), constant_values=1.0)


def _pair(generated: Tensor, target: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as (B, H, W, 3) float64 in [0, 1]; equal in shape, so that nothing is broadcast in silence."""
    if generated.shape != target.shape:
        raise ValueError(f"images of shapes {tuple(generated.shape)} and {tuple(target.shape)}")
    return _unit(generated), _unit(target)


def _unit(images: Tensor) -> NDArray[np.float64]:
    """(B, 3, H, W) uint8 -> (B, H, W, 3) float64 in [0, 1]."""
    return np.ascontiguousarray(require_uint8(images).detach().cpu().numpy().transpose(0, 2, 3, 1)) / 255.0
