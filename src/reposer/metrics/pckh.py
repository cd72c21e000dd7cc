"""PCKh: whether the joints of a generated person lie where those of the target do.

A joint is right when it lies within ALPHA head sizes of the target's (Andriluka et al., CVPR 2014); the head
is the larger side of the box around those of the target's nose, neck, eyes and ears that are visible, as in
PATN's script (which MPII's annotated head segment is not). Joints that the target lacks do not count; one
that the generated person lacks is wrong.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reposer.structures import NUM_JOINTS

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
        raise ValueError(f"key-points of shapes {generated.shape} and {target.shape}")
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
