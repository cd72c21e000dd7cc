"""A generator that mends carried texture: it begins with the person already re-posed, pixel by pixel.

Texture transport (:mod:`reposer.models.texture_transport`) brings the source's pixels to the target's pose.
The network sees that picture W, how far each of its pixels is to be trusted, and the colors of garments,
aligned with the target's maps, at full resolution. What W lacks it takes from the source's features by
attention. The picture is I = w W + (1 - w) G with a learned gate w, as in Intro-Flow's last step (Li et al.,
CVPR 2019). Two streams and a U-Net-like decoder as in SAN. The network is the project's own: no paper has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.layers import (
    ConvNormAct,
    Padding,
    ResidualBlock,
    UpNormAct,
    check_choice,
    conv,
    crop_to,
    init_weights,
    join_planes,
    pad_to_multiple,
)
from reposer.models.texture_transport import NEEDS, carried_to
from reposer.structures import NUM_LABELS, Carried, PairBatch

GATES = ("learned", "none")
_SIZES: dict[str, dict[str, Any]] = {
    "paper": {"widths": (64, 128, 256, 512), "blocks": 4},
    "small": {"widths": (24, 48, 96, 128), "blocks": 2, "padding": "zeros"},
}


def transport_unet_size(name: str) -> dict[str, Any]:
    """Arguments of ``TransportUNet`` for a named size: "paper" for GPUs, "small" for CPUs.

    Raises:
        UserError: no such size.
    """
    check_choice("size", name, _SIZES)
    return dict(_SIZES[name])


class Mended(NamedTuple):
    """What the terms of the objective may look at beside the image."""

    painted: Tensor  # (B, 3, H, W) in [-1, 1]: G, what the network paints itself
    gate: Tensor  # (B, 1, H, W) in [0, 1]: share of the carried picture


class TransportUNet(nn.Module):
    """Carried texture, target maps and the source's features -> the image."""

    needs = NEEDS
    extra_terms = {"gate": "parts", "painted": "parts"}  # noqa: RUF012  a table, never changed

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 256, 512),  # channels at 1/1, 1/2, 1/4, ...
        blocks: int = 4,  # residual blocks at the lowest resolution
        gate: str = "learned",  # learned: I = w W + (1 - w) G | none: I = G
        gate_bias: float = 0.0,  # of the gate's logit before training; above 0: it starts open
        heads: int = 4,  # of the attention to the source's features
        norm: str = "batch",  # batch | instance
        lrelu_slope: float = 0.2,
        padding: Padding = "reflect",
        parts: bool = True,  # whether terms may look at gate and painted picture
    ) -> None:
        super().__init__()
        check_choice("gate", gate, GATES)
        if not 3 <= len(widths) <= 6 or min(widths) < 1 or blocks < 0 or heads < 1 or widths[-2] % heads:
            raise UserError(
                f"widths={list(widths)}, blocks={blocks}, heads={heads}: impossible together",
                "give three to six widths, the last but one a multiple of heads",
            )
        layer: dict[str, Any] = {"norm": norm, "lrelu_slope": lrelu_slope, "padding": padding}
        self.gate, self.gate_bias = gate, gate_bias
        self.total_stride = 2 ** (len(widths) - 1)
        self.target_stages = _down(8 + NUM_LABELS, widths, 1, 2, layer)
        self.source_stages = _down(4 + NUM_LABELS, widths[1:-1], 2, 1, layer)
        self.attention = SourceAttention(widths[-2], heads)
        self.body = nn.Sequential(*(ResidualBlock(widths[-1], **layer) for _ in range(blocks)))
        self.up_stages, self.join_stages = nn.ModuleList(), nn.ModuleList()
        channels = widths[-1]
        for level, width in reversed(list(enumerate(widths[:-1]))):
            self.up_stages.append(UpNormAct(channels, width, "resize", **layer))
            attended = widths[-2] if level == len(widths) - 2 else 0
            carried = 4 if level == 0 else 0
            self.join_stages.append(ConvNormAct(2 * width + attended + carried, width, **layer))
            channels = width
        self.to_image = conv(channels, 4, padding=padding, bias=True)
        self.apply(init_weights)

    def forward(self, batch: PairBatch, parts: bool = False) -> Any:
        """The generated images (B, 3, H, W) in [-1, 1]; with ``parts`` also :class:`Mended`.

        Any height and width: those that do not divide by the total stride are padded inside.
        """
        height, width = batch.source_image.shape[-2:]
        carried = carried_to(batch)
        known = torch.cat([carried.image, carried.validity], 1)
        x = pad_to_multiple(_target_planes(batch, carried), self.total_stride)
        skips = []
        for stage in self.target_stages:
            x = stage(x)
            skips.append(x)
        x = self.body(skips.pop())
        attended = self.attention(skips[-1], self._source_features(batch))
        for level, (up, join) in enumerate(zip(self.up_stages, self.join_stages, strict=True)):
            joined = [up(x), skips.pop()]
            if not level:
                joined.append(attended)
            if not skips:
                joined.append(pad_to_multiple(known, self.total_stride))
            x = join(torch.cat(joined, 1))
        out = crop_to(self.to_image(x), height, width).float()
        painted = out[:, :3].tanh()
        if self.gate == "none":
            gate = torch.zeros_like(out[:, 3:])
        else:
            gate = (out[:, 3:] + self.gate_bias).sigmoid()
        image = torch.lerp(painted, carried.image, gate)
        return (image, Mended(painted, gate)) if parts else image

    def _source_features(self, batch: PairBatch) -> Tensor:
        """(B, C, h, w) of the first source: what further sources offer is in the carried picture."""
        planes = [to_float(batch.source_image), batch.source_mask.unsqueeze(1)]
        x = pad_to_multiple(join_planes(planes, batch.source_parsing, NUM_LABELS), self.total_stride)
        for stage in self.source_stages:
            x = stage(x)
        return x


class SourceAttention(nn.Module):
    """Each place of the target asks all places of the source: scaled dot products, ``heads`` times.

    Args:
        channels: of both maps and of the result.
        heads: divides the channels.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Conv2d(channels, channels, 1)
        self.key_value = nn.Conv2d(channels, 2 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """(B, C, h, w) twice -> (B, C, h, w), what was found added to the target's."""
        maps = (self.query(target), *self.key_value(source).chunk(2, 1))
        query, key, value = (_by_heads(one, self.heads) for one in maps)
        found = F.scaled_dot_product_attention(query, key, value)
        found = found.transpose(2, 3).reshape(target.shape)  # (B, heads, h w, c) before
        answer: Tensor = self.out(found.contiguous(memory_format=torch.channels_last))
        return target + answer


def _by_heads(maps: Tensor, heads: int) -> Tensor:
    """(B, C, ...) -> (B, heads, places, C / heads)."""
    batch, channels = maps.shape[:2]
    return maps.reshape(batch, heads, channels // heads, -1).transpose(2, 3)


def _down(
    channels: int, widths: Sequence[int], stride: int, convs: int, layer: dict[str, Any]
) -> nn.ModuleList:
    """A stage for each width, each at half the resolution of the one before; the first at 1 / ``stride``."""
    stages = nn.ModuleList()
    for level, width in enumerate(widths):
        first = ConvNormAct(channels, width, stride=2 if level else stride, **layer)
        rest = (ConvNormAct(width, width, **layer) for _ in range(convs - 1))
        stages.append(nn.Sequential(first, *rest))
        channels = width
    return stages


def _target_planes(batch: PairBatch, carried: Carried) -> Tensor:
    """(B, 28, H, W): carried picture, its validity, group colors, mask and one-hot parsing map."""
    mask = batch.target_mask.unsqueeze(1)
    return join_planes(
        [carried.image, carried.validity, carried.colors, mask], batch.target_parsing, NUM_LABELS
    )
