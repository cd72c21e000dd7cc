"""A generated image against the true target, one value each: pixels (SSIM, PSNR, L1), poses and label maps.

Every function on pixels takes uint8 RGB images (B, 3, H, W) and returns float64 (B,), one value an image;
pixels are compared on [0, 1] at native size. NaN means "undefined for this image" (an empty mask): such
images are counted by the caller and never pass for perfect ones.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.draw import disk, polygon
from skimage.metrics import structural_similarity
from skimage.morphology import closing
from torch import Tensor

from reposer.errors import UserError
from reposer.images import require_uint8
from reposer.structures import LIMBS, MISSING_LABEL, NUM_JOINTS, NUM_LABELS

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


# ---- Poses and parsing maps compared: IoU, garments kept, PCKh, and the mask of published figures.


# ---- How good predicted maps of a target are: mask IoU, and whether the garments are the source's.
#
# A garment counts as worn where it has at least VISIBLE of the person's pixels, in the source and in the
# prediction alike: a few stray pixels are neither a garment nor the loss of one.

# Of LIP-20: hat, glove, sunglasses, upper-clothes, dress, coat, socks, pants, jumpsuits, scarf, skirt.
GARMENTS = (1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
VISIBLE = 0.01  # of the person's pixels


def mask_iou(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(N,) pixels of both masks (N, H, W) over pixels of either; NaN where both are empty."""
    both = (predicted & truth).sum((1, 2))
    either = (predicted | truth).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def garments_kept(predicted: NDArray[np.uint8], source: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N,) share of the source's garments that the prediction has too; NaN for a source without one.

    Args:
        predicted, source: LIP-20 maps (N, H, W).
    """
    had, has = worn(source), worn(predicted)
    return np.where(had.any(1), (had & has).sum(1) / np.maximum(had.sum(1), 1), np.nan)


def garments_added(predicted: NDArray[np.uint8], source: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N,) share of the prediction's garments that the source does not have; 0 for one without garments."""
    had, has = worn(source), worn(predicted)
    return np.asarray((has & ~had).sum(1) / np.maximum(has.sum(1), 1), np.float64)


def worn(maps: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N, G) whether each of GARMENTS is worn, of LIP-20 maps (N, H, W)."""
    areas = np.stack([(maps == label).sum((1, 2)) for label in range(NUM_LABELS)], 1)
    person = np.maximum(((maps != 0) & (maps != MISSING_LABEL)).sum((1, 2)), 1)
    return np.asarray(areas[:, GARMENTS] >= np.maximum(VISIBLE * person, 1)[:, None])


# ---- How well two parsing maps agree: the confusion of their labels, and intersection over union.


def label_confusion(
    truth: NDArray[np.uint8], predicted: NDArray[np.uint8], labels: int = NUM_LABELS
) -> NDArray[np.int64]:
    """(L, L) pixels by (true label, predicted label) over maps of one shape; MISSING_LABEL counts nowhere.

    Confusions of parts add up to that of the whole.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"maps of shapes {truth.shape} and {predicted.shape}")
    known = (truth != MISSING_LABEL) & (predicted != MISSING_LABEL)
    index = truth[known].astype(np.int64) * labels + predicted[known]
    return np.bincount(index, minlength=labels * labels).reshape(labels, labels)


def merged_confusion(confusion: NDArray[np.int64], groups: NDArray[np.integer]) -> NDArray[np.int64]:
    """(G, G) of labels that count as one: ``groups`` (L,) is the group of each label, from 0 to G - 1."""
    count = int(groups.max()) + 1
    merged = np.zeros((count, count), np.int64)
    np.add.at(merged, (groups[:, None], groups[None]), confusion)
    return merged


def label_iou(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """(L,) pixels of both over pixels of either, for each label; NaN for a label that the truth lacks."""
    both = np.diag(confusion).astype(np.float64)
    true = confusion.sum(1)
    either = true + confusion.sum(0) - both
    return np.where(true > 0, both / np.maximum(either, 1), np.nan)


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """Mean of :func:`label_iou` over the labels that the truth has; NaN where it has none."""
    values = label_iou(confusion)
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


# ---- PCKh: whether the joints of a generated person lie where those of the target do.
#
# A joint is right when it lies within ALPHA head sizes of the target's (Andriluka et al., CVPR 2014); the
# head is the larger side of the box around those of the target's nose, neck, eyes and ears that are visible,
# as in PATN's script (which MPII's annotated head segment is not). Joints that the target lacks do not count;
# one that the generated person lacks is wrong.

ALPHA = 0.5
HEAD = (0, 1, 14, 15, 16, 17)  # nose, neck, eyes, ears


def pckh(
    generated: NDArray[np.float32], target: NDArray[np.float32], alpha: float = ALPHA
) -> NDArray[np.float64]:
    """(N,) share of the target's joints that are right; NaN for a target with fewer than two joints of the
    head, or whose head has no size.

    Args:
        generated, target: (N, J, 2) x, y in pixels, NaN for a missing joint.
    """
    if generated.shape != target.shape or target.shape[1:] != (NUM_JOINTS, 2):
        raise ValueError(f"keypoints of shapes {generated.shape} and {target.shape}")
    head = np.asarray(target, np.float64)[:, HEAD]
    seen = np.asarray(~np.isnan(head).any(-1))
    low = np.where(seen[..., None], head, np.inf).min(1)
    high = np.where(seen[..., None], head, -np.inf).max(1)
    enough = seen.sum(1) >= 2
    size = np.where(enough, np.where(enough[:, None], high - low, 0).max(1), 0)
    distance = np.linalg.norm(np.asarray(generated, np.float64) - target, axis=-1)  # NaN where either lacks
    known = np.asarray(~np.isnan(target).any(-1))
    right = (distance <= alpha * size[:, None]) & known
    return np.where((size > 0) & known.any(1), right.sum(1) / np.maximum(known.sum(1), 1), np.nan)


# ---- The person mask that GFLA and PATN draw from keypoints: what "mask" means in the published mask-LPIPS
# figures.
#
# GFLA (script/metrics.py, as PATN's tool/pose_utils.py): a rectangle of half-width 4 along every limb whose
# two joints are present, a disc of radius 4 around every joint, then a morphological closing with a 5x5
# square.

RADIUS = 4.0  # pixels, at 128x64
CLOSING = 5  # pixels, side of the square


def pose_mask(keypoints: NDArray[np.float32], height: int, width: int) -> NDArray[np.bool_]:
    """Mask (H, W) of one person from keypoints (J, 2), x and y in pixels with NaN for a missing joint.

    Pixels count by their centers: inside or on a rectangle's edge (scikit-image's polygon rule), closer than
    4 to a joint. Two joints at one point get no rectangle (the script divides by zero there); their discs
    cover it.
    """
    mask = np.zeros((height, width), bool)
    points = np.asarray(keypoints, np.float64)[:, ::-1]  # y, x
    present = np.asarray(~np.isnan(points).any(axis=1))
    for start, end in LIMBS:
        if present[start] and present[end] and (points[start] != points[end]).any():
            corners = _rectangle(points[start], points[end])
            mask[polygon(corners[:, 0], corners[:, 1], shape=mask.shape)] = True  # type: ignore[no-untyped-call]
    for center in points[present]:
        mask[disk(tuple(center), RADIUS, shape=mask.shape)] = True  # type: ignore[no-untyped-call]
    return np.asarray(closing(mask, np.ones((CLOSING, CLOSING), bool)), bool)


def _rectangle(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 2) corners y, x of the limb's rectangle."""
    along = start - end
    across = RADIUS * np.array([-along[1], along[0]]) / np.linalg.norm(along)
    return np.array([start + across, start - across, end - across, end + across])
