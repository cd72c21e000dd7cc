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
from torch.utils.checkpoint import checkpoint

from reposer.errors import UserError
from reposer.models.layers import Padding, ResidualBlock, check_choice, conv, instance_norm

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


# ---- Pose-correspondence-guided style injection: module 2 of RSA-GAN (reconstruction from the abstract).
#
# Where in the source is what belongs here in the target? Places are compared by their pose features alone, a
# sharp softmax makes them a warp, and the warped scale and shift of the source's appearance style the
# target's pose: the coarse style. The form follows CoCosNet and PISE, which compare image and semantic
# features instead.

KEYS = ("pose", "pose+semantics", "pose+image")
_CHUNK_ELEMENTS = 2**25  # of a correlation that is held at once, over the batch: 128 MiB in float32


class StyleInjection(nn.Module):
    """Pose features of source and target, appearance of the source -> coarse style in the target's pose."""

    def __init__(
        self,
        channels: int = 256,  # C
        key_channels: int = 128,  # d of the comparison
        temperature: float = 0.01,
        keys: str = "pose",  # what source places are known by: pose | pose+semantics | pose+image
        warp: bool = True,  # False: the ablation without correspondence, style stays where it is
        norm: str = "instance",
        lrelu_slope: float = 0.2,
        padding: Padding = "reflect",
    ) -> None:
        super().__init__()
        check_choice("keys", keys, KEYS)
        if temperature <= 0:
            raise UserError(f"temperature={temperature} is not possible", "use a number above 0")
        self.keys, self.temperature, self.warps = keys, temperature, warp
        if warp:
            self.query = nn.Conv2d(channels, key_channels, 1)
            self.key = nn.Conv2d(channels * (1 if keys == "pose" else 2), key_channels, 1)
        self.style = conv(channels, 2 * channels, padding=padding, bias=True)
        self.refine = ResidualBlock(channels, 0.0, norm, lrelu_slope, padding)

    def align_keys(self) -> None:
        """Compare equal with equal to begin with: keys of the pose as queries, of anything else 0."""
        if self.warps:
            with torch.no_grad():
                self.key.weight.zero_()[:, : self.query.in_channels].copy_(self.query.weight)
                for layer in (self.key, self.query):
                    assert layer.bias is not None
                    layer.bias.zero_()

    def forward(
        self,
        appearance: Tensor,
        source_pose: Tensor,
        target_pose: Tensor,
        semantics: Tensor | None,
        image: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """The coarse style, and the small source image seen through the same warp.

        Args:
            appearance: (B, C, h, w) of the source image.
            source_pose, target_pose: (B, C, h, w), from one encoder.
            semantics: (B, C, h, w) of the source; read with keys=pose+semantics.
            image: (B, 3, h, w) the source image, small.

        Returns:
            (B, C, h, w), and (B, 3, h, w) float32 or None without a warp.
        """
        style = self.style(appearance)
        warped_image = None
        if self.warps:
            extra = {"pose": None, "pose+semantics": semantics, "pose+image": appearance}[self.keys]
            known = source_pose if extra is None else torch.cat((source_pose, extra), 1)
            values = torch.cat((style, image.to(style.dtype)), 1)
            warped = warp(self.query(target_pose), self.key(known), values, self.temperature)
            style, warped_image = warped[:, :-3].to(style.dtype), warped[:, -3:].float()
        scale, shift = style.chunk(2, 1)
        coarse: Tensor = self.refine(instance_norm(target_pose) * (1 + scale) + shift)
        return coarse, warped_image


def warp(query: Tensor, key: Tensor, values: Tensor, temperature: float) -> Tensor:
    """Every target place takes the values of the source places that it resembles.

    softmax_j(<n(query_i), n(key_j)> / temperature); n centers over the channels and makes the length 1. It is
    float32 whatever autocast says. The hw x hw correlation is held in parts of 2^25 elements or less; several
    of them are computed again in the backward pass.

    Args:
        query: (B, d, h, w) of the target.
        key, values: (B, d, h, w) and (B, V, h, w) of the source.

    Returns:
        (B, V, h, w) float32.
    """
    height, width = query.shape[-2:]
    with torch.autocast(query.device.type, enabled=False):
        q, k = (_comparable(x.float()) for x in (query, key))  # (B, hw, d)
        v = values.float().flatten(2).transpose(1, 2)  # (B, hw, V)
        rows = max(1, _CHUNK_ELEMENTS // (q.shape[0] * k.shape[1]))
        if rows >= q.shape[1]:
            warped = _look_up(q, k, v, temperature)
        else:
            parts = torch.split(q, rows, 1)
            warped = torch.cat(
                [checkpoint(_look_up, part, k, v, temperature, use_reentrant=False) for part in parts], 1
            )
    return warped.transpose(1, 2).reshape(len(v), -1, height, width)


def _look_up(query: Tensor, key: Tensor, values: Tensor, temperature: float) -> Tensor:
    return torch.softmax((query / temperature) @ key.transpose(1, 2), 2) @ values


def _comparable(x: Tensor) -> Tensor:
    """(B, d, h, w) -> (B, hw, d), centered over the channels, length 1; a flat place becomes 0."""
    places = x.flatten(2).transpose(1, 2)
    return F.normalize(places - places.mean(2, keepdim=True), dim=2)
