"""Gated depth-wise-convolutional cross-attention: module 3 of RSA-GAN (reconstruction from the abstract).

Queries come from the growing picture in the target's pose, keys and values from the coarse style and from the
source's semantics; each is a 1x1 convolution followed by a depth-wise 3x3, and a gate decides place by place
how much arrives. Forms: Restormer's MDTA and GDFN; spatial attention by default, because the semantics lie in
the source's coordinates and only attention between places can move them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.models.layers import check_choice

ATTENTIONS = ("spatial", "channel")
GATES = ("both", "attn", "ffn", "none")


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each place: (B, C, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        places = x.permute(0, 2, 3, 1)
        return F.layer_norm(places, self.weight.shape, self.weight, self.bias).permute(0, 3, 1, 2)


def _places(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, hw, C)."""
    return x.flatten(2).transpose(1, 2)


class PointDepth(nn.Sequential):
    """1x1 convolution, then a depth-wise 3x3: (B, in, h, w) -> (B, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, groups=out_channels, bias=False),
        )


class FeedForward(nn.Module):
    """GDFN: 1x1 up, depth-wise 3x3, one half gates the other (or a plain GELU), 1x1 down."""

    def __init__(self, channels: int, expansion: float = 2.66, gated: bool = True) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.gated = gated
        self.up = PointDepth(channels, hidden * (2 if gated else 1))
        self.down = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.gated:
            gate, content = x.chunk(2, 1)
            x = F.gelu(gate) * content
        else:
            x = F.gelu(x)
        y: Tensor = self.down(x)
        return y


class GatedCrossAttention(nn.Module):
    """One block: X + gated attention to style and semantics, then X + feed-forward."""

    def __init__(
        self,
        channels: int = 256,  # C, a multiple of head_channels
        head_channels: int = 32,
        attention: str = "spatial",  # spatial: between places | channel: between channels (Restormer)
        gate: str = "both",  # what is gated: both | attn | ffn | none
        semantics: bool = True,  # False: attend to the coarse style only
        expansion: float = 2.66,  # of the feed-forward part
    ) -> None:
        super().__init__()
        check_choice("attention", attention, ATTENTIONS)
        check_choice("gate", gate, GATES)
        if channels % head_channels:
            raise UserError(
                f"{channels} channels are not a multiple of {head_channels} a head", "change width"
            )
        self.heads, self.attention = channels // head_channels, attention
        memories = 1 + semantics
        self.norm_x, self.norm_y = ChannelNorm(channels), ChannelNorm(channels)
        self.norm_style = ChannelNorm(channels)
        self.norm_semantics = ChannelNorm(channels) if semantics else None
        self.query = PointDepth(channels, channels)
        if attention == "spatial":
            self.from_style = PointDepth(channels, 2 * channels)
            self.from_semantics = PointDepth(channels, 2 * channels) if semantics else None
        else:
            joined = memories * channels
            self.fuse = nn.Conv2d(joined, joined, 1, bias=False)
            self.from_both = PointDepth(joined, 2 * joined)
            self.scale = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.gate = PointDepth(channels, channels) if gate in ("both", "attn") else None
        self.out = nn.Conv2d(channels, channels, 1, bias=False)
        self.feed_forward = FeedForward(channels, expansion, gate in ("both", "ffn"))

    def forward(
        self, x: Tensor, style: Tensor, semantics: Tensor | None, tokens: Tensor | None = None
    ) -> Tensor:
        """The next X.

        Args:
            x: (B, C, h, w) in the target's pose. style: (B, C, h, w) coarse style, in the target's pose.
            semantics: (B, C, h, w) in the source's coordinates; None for a block without.
            tokens: (B, N, C) more keys and values of the spatial form, of no place (styles of regions).
        """
        normed = self.norm_x(x)
        style = self.norm_style(style)
        if self.norm_semantics is not None:
            assert semantics is not None, "this block attends to semantics"
            semantics = self.norm_semantics(semantics)
        else:
            semantics = None
        look = self._between_places if self.attention == "spatial" else self._between_channels
        attended = look(self.query(normed), style, semantics, tokens)
        if self.gate is not None:
            attended = F.gelu(self.gate(normed)) * attended
        x = x + self.out(attended)
        y: Tensor = x + self.feed_forward(self.norm_y(x))
        return y

    def _between_places(
        self, query: Tensor, style: Tensor, semantics: Tensor | None, tokens: Tensor | None
    ) -> Tensor:
        """Ordinary multi-head attention over the places of all memories."""
        pairs = [_places(self.from_style(style))]
        if semantics is not None and self.from_semantics is not None:
            pairs.append(_places(self.from_semantics(semantics)))
        if tokens is not None:
            pairs.append(torch.cat((tokens, tokens), 2).to(pairs[0].dtype))
        key, value = torch.cat(pairs, 1).chunk(2, 2)  # (B, M, C) each
        # (B, heads, M, c) with adjacent channels in memory: the fused kernels want no other layout
        q, k, v = (
            x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2) for x in (_places(query), key, value)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, hw, C)
        return attended.transpose(1, 2).reshape(query.shape)

    def _between_channels(
        self, query: Tensor, style: Tensor, semantics: Tensor | None, tokens: Tensor | None
    ) -> Tensor:
        """Restormer's transposed attention: which channels of the memories go into which of X."""
        assert tokens is None, "tokens have no place, and channel attention compares channels place by place"
        joined = style if semantics is None else torch.cat((style, semantics), 1)
        key, value = self.from_both(self.fuse(joined)).chunk(2, 1)
        q, k, v = (self._by_head(x.flatten(2)) for x in (query, key, value))  # (B, heads, c, hw)
        weights = torch.softmax(F.normalize(q, dim=3) @ F.normalize(k, dim=3).transpose(2, 3) * self.scale, 3)
        attended: Tensor = weights @ v
        return attended.reshape(query.shape)

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, C, M) -> (B, heads, c, M)."""
        return x.reshape(len(x), self.heads, -1, x.shape[2])
