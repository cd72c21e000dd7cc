"""DPTN: a pose transformer brings the source's texture to the target's pose; a second task makes the source.

Zhang, Yang, Lai, Xie: "Exploring Dual-task Correlation for Pose Guided Person Image Generation", CVPR 2022,
with widths and order as in the authors' public code: 9,794,371 parameters. Both tasks share encoder, residual
blocks and decoder; what the source task knows of itself is the memory that the target task asks. It differs
in one point: of the second task only the L1 term is here (``self_reconstruction``), not its perceptual ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.gfla import Doubling, Jump, Norm, activation, encoders_of
from reposer.models.layers import crop_to, init_orthogonal, pad_to_multiple
from reposer.models.pose_maps import both_poses
from reposer.structures import NUM_JOINTS, PairBatch

_STRIDE = 8


class SelfTask(NamedTuple):
    """Of the second task, for the objective."""

    image: Tensor  # (B, 3, H, W) the source made again
    terms: dict[str, Tensor]


class DPTN(nn.Module):
    """Source image and two poses -> the image; no parsing map, no mask."""

    needs = ("source_image", "source_keypoints", "target_keypoints")
    about = (
        "DPTN (Zhang et al., CVPR 2022), built anew. It differs from the authors' code: of the second task,"
        " which makes the source again, only the L1 term is trained, not its perceptual terms."
    )
    extra_terms = {"self_reconstruction": "dual"}  # noqa: RUF012  a table, never changed

    def __init__(
        self,
        ngf: int = 64,  # channels at 1/2; twice as many at 1/4, four times at 1/8
        blocks: int = 3,  # residual, at 1/8
        heads: int = 2,  # of every attention
        context: int = 2,  # blocks in which the source task looks at itself
        texture: int = 2,  # blocks in which the target task asks for the source's texture
        sigma: float = 6.0,  # pixels, of the pose maps
        dual: bool = True,  # whether the second task may be trained
    ) -> None:
        super().__init__()
        if min(ngf, blocks, heads, context, texture) < 1 or (4 * ngf) % heads:
            raise UserError(
                f"ngf={ngf}, blocks={blocks}, heads={heads}, context={context}, texture={texture}:"
                " impossible",
                "give 1 or more of each, and heads that divide 4 ngf",
            )
        self.sigma, self.dual = sigma, dual
        width = 4 * ngf
        self.encoder = _PlainStart(3 + 2 * NUM_JOINTS, ngf)
        self.source_encoder = _PlainStart(3, ngf)
        self.blocks = nn.ModuleList(_Residual(width) for _ in range(blocks))
        self.context = nn.ModuleList(_Attending(width, heads, False) for _ in range(context))
        self.texture = nn.ModuleList(_Attending(width, heads, True) for _ in range(texture))
        self.last_norm = Norm(width)
        self.decoders = nn.ModuleList(
            Doubling(before, after, after) for before, after in ((width, 2 * ngf), (2 * ngf, ngf), (ngf, ngf))
        )
        self.to_image = Jump(ngf, 3)
        self.apply(init_orthogonal)

    def forward(self, batch: PairBatch, parts: bool = False) -> Any:
        """The generated images (B, 3, H, W) in [-1, 1]; with ``parts`` also :class:`SelfTask`. Any size."""
        height, width = batch.source_image.shape[-2:]
        poses = both_poses(batch, self.sigma)
        source_pose, target_pose = (pad_to_multiple(maps, _STRIDE) for maps in poses)
        source = pad_to_multiple(to_float(batch.source_image), _STRIDE)
        own = self._encoded(source, source_pose, source_pose)
        wanted = self._encoded(source, source_pose, target_pose)
        size = wanted.shape
        memory = own.flatten(2).transpose(1, 2)  # (B, N, C)
        for block in self.context:
            memory = block(memory)
        tokens = wanted.flatten(2).transpose(1, 2)
        values = self.source_encoder(source).flatten(2).transpose(1, 2)
        for block in self.texture:
            tokens = block(tokens, memory, values)
        tokens = _normed(self.last_norm, tokens)
        image = crop_to(self._decoded(tokens.transpose(1, 2).reshape(size)), height, width)
        if not parts:
            return image
        again = crop_to(self._decoded(own), height, width)
        return image, SelfTask(again, {"self_reconstruction": F.l1_loss(again, to_float(batch.source_image))})

    def _encoded(self, *planes: Tensor) -> Tensor:
        x: Tensor = self.encoder(torch.cat(planes, dim=1))
        for block in self.blocks:
            x = block(x)
        return x

    def _decoded(self, x: Tensor) -> Tensor:
        for decoder in self.decoders:
            x = decoder(x)
        image: Tensor = self.to_image(x)
        return image.float().tanh()


# ---- Blocks.


class _PlainStart(nn.Module):
    """(B, planes, H, W) -> (B, 4 ngf, H/8, W/8); no norm on what comes in."""

    def __init__(self, planes: int, ngf: int) -> None:
        super().__init__()
        down = nn.Conv2d(planes, ngf, 4, stride=2, padding=1)
        self.first = nn.Sequential(down, Norm(ngf), activation(), nn.Conv2d(ngf, ngf, 3, padding=1))
        self.further = encoders_of(ngf, (2 * ngf, 4 * ngf))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for encoder in self.further:
            x = encoder(x)
        return x


class _Residual(nn.Module):
    """[norm, LeakyReLU, 3x3] twice, and a 1x1 beside it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        norms = (Norm(channels), Norm(channels))
        self.branch = nn.Sequential(norms[0], activation(), first, norms[1], activation(), second)
        self.beside = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.branch(x)
        beside: Tensor = self.beside(x)
        return branch + beside


class _Attending(nn.Module):
    """Attention of the places to each other, then, if ``asks``, to a memory with other values, then a layer
    for each place; each is added, then normed over the places."""

    def __init__(self, channels: int, heads: int, asks: bool) -> None:
        super().__init__()
        self.attention = _Attention(channels, heads)
        self.asked = _Attention(channels, heads) if asks else None
        self.feed = nn.Sequential(nn.Linear(channels, channels), activation(), nn.Linear(channels, channels))
        self.norms = nn.ModuleList(Norm(channels) for _ in range(3 if asks else 2))

    def forward(self, x: Tensor, memory: Tensor | None = None, values: Tensor | None = None) -> Tensor:
        """(B, N, C) each -> (B, N, C)."""
        norms = iter(self.norms)
        x = _normed(next(norms), x + self.attention(x, x, x))
        if self.asked is not None:
            x = _normed(next(norms), x + self.asked(x, memory, values))
        return _normed(next(norms), x + self.feed(x))


class _Attention(nn.Module):
    """Of several heads, softmax(Q K^T / sqrt(d)) V."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.into, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.into.weight)
        nn.init.xavier_uniform_(self.out.weight)
        for layer in (self.into, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights, biases = self.into.weight.chunk(3), self.into.bias.chunk(3)
        q, k, v = (
            F.linear(x, w, b).reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )
        found: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return found


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """Each channel of each picture over its places: (B, N, C) -> (B, N, C)."""
    normed: Tensor = norm(x.transpose(1, 2)[..., None])
    return normed[..., 0].transpose(1, 2)
