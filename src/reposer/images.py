"""The only file that decodes, encodes and converts images; three named ranges, one place where they change.

* uint8: RGB in [0, 255], as stored;
* model float: float32 in [-1, 1], what generators and discriminators see;
* ImageNet-normalized: what torchvision's classification networks see.
"""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_float(image: Tensor) -> Tensor:
    """uint8 [0, 255] -> model float [-1, 1]; a floating-point image is in [-1, 1] already and passes unchanged."""
    if image.dtype == torch.uint8:
        return image.to(torch.float32).div_(127.5).sub_(1.0)
    return image


def to_uint8(image: Tensor) -> Tensor:
    """Model float [-1, 1] -> uint8 [0, 255], rounded to nearest and clipped."""
    return image.float().add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def imagenet_normalize(image: Tensor) -> Tensor:
    """Model float [-1, 1] (..., 3, H, W) -> ImageNet-normalized."""
    mean = image.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = image.new_tensor(IMAGENET_STD).view(3, 1, 1)
    return (image * 0.5 + 0.5 - mean) / std
