"""The parts of SAN: the encoder, the Semantic Attention Block, the U-Net-like decoder.

Source: Liu et al., arXiv 2008.07884, section 3.1; where it is silent, PATN's public code
(docs/explanation/san.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.models.layers import ConvNormAct, Padding, UpNormAct, check_choice, conv

GATE_SOURCES = ("semantic", "appearance", "appearance_conv")


class ConvStack(nn.Sequential):
    """``n_convs`` 3x3 convolutions with a norm and a LeakyReLU between each two; the last one is bare.

    With three it is the paper's "three convolutional layers with two normalization layers and LeakyReLU".
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        n_convs: int = 3,
        dropout: float = 0.0,
        norm: str = "batch",
        lrelu_slope: float = 0.2,
        padding: Padding = "reflect",
    ) -> None:
        if n_convs < 1:
            raise UserError(f"n_convs={n_convs} leaves a stack without a convolution", "use 1 or more")
        steps: list[nn.Module] = []
        channels = in_channels
        for _ in range(n_convs - 1):
            steps.append(
                ConvNormAct(channels, hidden_channels, norm=norm, lrelu_slope=lrelu_slope, padding=padding)
            )
            if dropout:
                steps.append(nn.Dropout(dropout))
            channels = hidden_channels
        super().__init__(*steps, conv(channels, out_channels, padding=padding, bias=True))


class SemanticAttentionBlock(nn.Module):
    """One SAB: updates the appearance code F_s and the semantic code F_t, both (B, C, H, W).

    A   = sigmoid(mask_conv(F_t))            eq. 1
    F_s = A * F_t + F_s                      eq. 2, as printed
    F_t = update_conv([F_t ; F_s])           eq. 3, with the new F_s
    """

    def __init__(
        self,
        channels: int,
        n_convs: int = 3,  # convolutions of the mask and of the update branch
        mask_channels: str
        | int = "full",  # attention: "full" one value per channel and position, 1 per position
        share_conv: bool = False,  # PATN: the mask logits go on as the semantic code; one 3x3 merges
        gate_source: str = "semantic",  # what A multiplies: F_t (printed), F_s (typo), conv(F_s) (PATN)
        **layer_args: Any,  # dropout, norm, lrelu_slope, padding
    ) -> None:
        super().__init__()
        check_choice("mask_channels", mask_channels, ("full", 1))
        check_choice("gate_source", gate_source, GATE_SOURCES)
        if share_conv and mask_channels != "full":
            raise UserError(
                "share_conv=True needs as many mask channels as the code has", "use mask_channels=full"
            )
        gate_channels = channels if mask_channels == "full" else 1
        self.share_conv = share_conv
        self.gate_source = gate_source
        self.mask_conv = ConvStack(channels, channels, gate_channels, n_convs, **layer_args)
        self.appearance_conv: nn.Module | None = None
        if gate_source == "appearance_conv":
            self.appearance_conv = ConvStack(channels, channels, channels, n_convs, **layer_args)
        update_convs = 1 if share_conv else n_convs
        self.update_conv = ConvStack(2 * channels, channels, channels, update_convs, **layer_args)

    def forward(self, appearance: Tensor, semantic: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.mask_conv(semantic)
        attention = logits.sigmoid()
        gated = semantic
        if self.appearance_conv is not None:
            gated = self.appearance_conv(appearance)
        elif self.gate_source == "appearance":
            gated = appearance
        appearance = torch.addcmul(appearance, attention, gated)  # one pass over memory
        carried = logits if self.share_conv else semantic
        return appearance, self.update_conv(torch.cat([carried, appearance], dim=1))


class _Stages(nn.Module):
    """Stages one after the other; gives the map of every one."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Encoder(_Stages):
    """7x7, then 3x3 convolutions, widths ngf, 2 ngf, 4 ngf; returns the map of every stage, the code last."""

    def __init__(self, in_channels: int, ngf: int, strides: Sequence[int], **layer_args: Any) -> None:
        super().__init__()
        for i, stride in enumerate(strides):
            width = ngf * 2**i
            self.stages.append(ConvNormAct(in_channels, width, 3 if i else 7, stride, **layer_args))
            in_channels = width


class DeepEncoder(_Stages):
    """Conv_A or Conv_S: three halvings of a final code; returns the map of every one."""

    def __init__(self, in_channels: int, widths: Sequence[int], convs: int, **layer_args: Any) -> None:
        super().__init__()
        for width in widths:
            stage = nn.Sequential(ConvNormAct(in_channels, width, stride=2, **layer_args))
            stage.extend(ConvNormAct(width, width, **layer_args) for _ in range(convs - 1))
            self.stages.append(stage)
            in_channels = width


class Decoder(nn.Module):
    """Up from the deepest maps to the image's size, a skip joined after each doubling where there is one.

    Args:
        bottleneck: channels of the deepest map.
        widths: output channels of each doubling.
        skips: channels of the map joined after each doubling, 0 for none.
    """

    def __init__(
        self, bottleneck: int, widths: Sequence[int], skips: Sequence[int], up: str, **layer_args: Any
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = bottleneck
        for width, skip in zip(widths, skips, strict=True):
            self.stages.append(UpNormAct(channels, width, up, **layer_args))
            channels = width + skip
        self.out_channels = channels

    def forward(self, x: Tensor, skips: Sequence[Sequence[Tensor]]) -> Tensor:
        for stage, joined in zip(self.stages, skips, strict=True):
            x = stage(x)
            if joined:
                x = torch.cat([x, *joined], dim=1)
        return x
