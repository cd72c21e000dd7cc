"""The pixel-wise reconstruction loss of SAN (eq. 5)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def l1_loss(generated: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of model-float images (B, 3, H, W), in [0, 2]; a scalar.

    Eq. 5 writes a norm without an average; PATN's code averages, and so do we: the weights of eq. 7 fit that.
    """
    return F.l1_loss(generated.float(), target.float())
