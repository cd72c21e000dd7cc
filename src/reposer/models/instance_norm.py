"""Instance norm that leaves maps in channels-last memory as they lie.

PyTorch's own copies such a map to the other layout, normalizes it as a batch norm of B x C channels, and the
convolution behind it copies it back: on a CPU about as long as the convolution itself takes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

EPSILON = 1e-5  # added to the variance


class InstanceNorm(nn.Module):
    """(B, C, H, W) -> the same, each channel of each picture with mean 0 and variance 1; nothing learned."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return instance_norm(x)

    def extra_repr(self) -> str:
        return str(self.channels)


def instance_norm(x: Tensor) -> Tensor:
    """``F.instance_norm`` of (B, C, H, W), to float tolerance, in the memory layout of ``x``.

    Raises:
        ValueError: a map of one pixel, which has no variance.
    """
    ours = (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.shape[2] * x.shape[3] > 1
        and not torch.compiler.is_compiling()  # which fuses PyTorch's own form
    )
    if not ours:
        return F.instance_norm(x, eps=EPSILON)
    y: Tensor = _InstanceNorm.apply(x)
    return y


class _InstanceNorm(torch.autograd.Function):
    """y = (x - mean) r with r = 1 / sqrt(variance + eps); dx = r (dy - mean(dy) - y mean(dy y))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.channels_last)  # no view: others may work in place on it
        places = _places(x)
        mean = places.mean(1, keepdim=True)  # (B, 1, C)
        out = torch.sub(places, mean, out=_places(y))
        inverse = (out.square().mean(1, keepdim=True) + EPSILON).rsqrt_()
        out.mul_(inverse)
        ctx.save_for_backward(x, mean, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, mean, inverse = ctx.saved_tensors
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        out, dy = _places(dx), _places(gradient.contiguous(memory_format=torch.channels_last))
        centered = _places(x) - mean
        shift = dy.mean(1, keepdim=True)
        slope = torch.mul(dy, centered, out=out).mean(1, keepdim=True) * inverse.pow(3)  # mean(dy y) r^2
        torch.addcmul(-shift * inverse, centered, slope, value=-1, out=out)
        out.addcmul_(dy, inverse)
        return dx


def _places(x: Tensor) -> Tensor:
    """(B, C, H, W), channels last -> (B, HW, C), the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)
