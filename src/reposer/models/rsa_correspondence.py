"""Pose-correspondence-guided style injection: module 2 of RSA-GAN (reconstruction from the abstract).

Where in the source is what belongs here in the target? Places are compared by their pose features alone, a
sharp softmax makes them a warp, and the warped scale and shift of the source's appearance style the target's
pose: the coarse style. The form follows CoCosNet and PISE, which compare image and semantic features instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from reposer.errors import UserError
from reposer.models.instance_norm import instance_norm
from reposer.models.layers import Padding, ResidualBlock, check_choice, conv

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
