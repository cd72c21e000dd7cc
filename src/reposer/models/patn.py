"""PATN, the pose-attentional transfer network, and XingGAN, which crosses its branches: a person in a wanted
pose from a source image and two poses.

Zhu, Huang, Shi, Yu, Wang, Bai: "Progressive Pose Attention Transfer for Person Image Generation", CVPR 2019,
with sizes as in the authors' public code: 41,365,763 parameters with batch norm. No
convolution before a norm has a bias, which the norm would cancel (the code has them with instance norm). With
``as_published`` the rest is the authors' too, for their weights: convolutions that halve pad with zeros, and
with instance norm the one before a sigmoid has a bias; otherwise borders are reflected everywhere.

Tang, Bai, Zhang, Torr, Sebe: "XingGAN for Person Image Generation", ECCV 2020: 44,853,189 parameters with
batch norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.layers import (
    ConvNormAct,
    Padding,
    conv,
    crop_to,
    init_weights,
    make_norm,
    pad_to_multiple,
)
from reposer.models.pose_maps import both_poses
from reposer.structures import NUM_JOINTS, PairBatch


class PoseAttentionBlock(nn.Module):
    """One PATB: the pose code tells where the image code changes, and is then updated by it.

    image' = image + f(image) * sigmoid(g(pose)); pose' = [g(pose) ; image']. In the first block the pose code
    has as many channels as the image code, afterwards twice as many.
    """

    def __init__(
        self, channels: int, first: bool, dropout: float, layer: dict[str, Any], pose_bias: bool = False
    ) -> None:
        super().__init__()
        inner = channels if first else 2 * channels
        padding = layer["padding"]
        drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.image_branch = nn.Sequential(
            ConvNormAct(channels, channels, **layer),
            drop,
            conv(channels, channels, padding=padding),
            make_norm(layer["norm"], channels),
        )
        self.pose_branch = nn.Sequential(
            ConvNormAct(inner, inner, **layer), drop, conv(inner, channels, padding=padding, bias=pose_bias)
        )

    def forward(self, image: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) and (B, C or 2C, h, w) -> (B, C, h, w) and (B, 2C, h, w)."""
        pose = self.pose_branch(pose)
        image = image + self.image_branch(image) * pose.sigmoid()
        return image, torch.cat([pose, image], dim=1)


class PATN(nn.Module):
    """The generator of PATN. Reads the source image and the keypoints of both; no parsing map, no mask."""

    needs = ("source_image", "source_keypoints", "target_keypoints")

    def __init__(
        self,
        ngf: int = 64,  # channels of the first layer; codes have 4 ngf
        enc_strides: Sequence[int] = (1, 2, 2),  # of the encoders' 7x7, 3x3, 3x3
        blocks: int = 9,
        norm: str = "batch",  # batch (Market-1501) | instance (DeepFashion)
        dropout: float = 0.5,  # inside the blocks
        sigma: float = 6.0,  # pixels, of the pose maps
        padding: Padding = "reflect",  # reflect | zeros
        as_published: bool = False,  # for the authors' weights: see above
    ) -> None:
        super().__init__()
        _check(ngf, blocks, dropout)
        if len(enc_strides) != 3 or any(stride not in (1, 2) for stride in enc_strides):
            raise UserError(f"enc_strides={list(enc_strides)}: impossible", "give three numbers, each 1 or 2")
        layer: dict[str, Any] = {"norm": norm, "lrelu_slope": 0.0, "padding": padding}
        self.sigma = sigma
        halvings = sum(stride == 2 for stride in enc_strides)
        self.total_stride = 2**halvings
        pose_bias = as_published and norm == "instance"
        downs = {**layer, "padding": "zeros"} if as_published else layer
        self.image_encoder = _encoder(3, ngf, enc_strides, layer, downs)
        self.pose_encoder = _encoder(2 * NUM_JOINTS, ngf, enc_strides, layer, downs)
        self.blocks = nn.ModuleList(
            PoseAttentionBlock(4 * ngf, number == 0, dropout, layer, pose_bias) for number in range(blocks)
        )
        widths = [4 * ngf // 2**step for step in range(halvings + 1)]
        last = conv(widths[-1], 3, kernel=7, padding=padding, bias=True)
        self.decoder = nn.Sequential(*_ups(widths, norm), last)
        self.apply(init_weights)

    def forward(self, batch: PairBatch) -> Tensor:
        """The generated images (B, 3, H, W) in [-1, 1]; any size. A missing joint is a map of zeros."""
        height, width = batch.source_image.shape[-2:]
        poses = both_poses(batch, self.sigma)
        image = self.image_encoder(pad_to_multiple(to_float(batch.source_image), self.total_stride))
        pose = self.pose_encoder(pad_to_multiple(torch.cat(poses, dim=1), self.total_stride))
        for block in self.blocks:
            image, pose = block(image, pose)
        return crop_to(self.decoder(image).float().tanh(), height, width)


def _encoder(
    planes: int, ngf: int, strides: Sequence[int], layer: dict[str, Any], downs: dict[str, Any]
) -> nn.Sequential:
    """7x7 to ngf, 3x3 to 2 ngf, 3x3 to 4 ngf channels."""
    return nn.Sequential(
        ConvNormAct(planes, ngf, 7, strides[0], **layer),
        ConvNormAct(ngf, 2 * ngf, 3, strides[1], **downs),
        ConvNormAct(2 * ngf, 4 * ngf, 3, strides[2], **downs),
    )


def _ups(widths: Sequence[int], norm: str) -> list[nn.Module]:
    """Transposed convolutions from each of the widths to the next, to twice the size, with norm and ReLU."""
    steps: list[nn.Module] = []
    for before, after in pairwise(widths):
        up = nn.ConvTranspose2d(before, after, 3, 2, padding=1, output_padding=1, bias=False)
        steps += [up, make_norm(norm, after), nn.ReLU(inplace=True)]
    return steps


def _check(ngf: int, blocks: int, dropout: float) -> None:
    if ngf < 1 or blocks < 1 or not 0 <= dropout < 1:
        raise UserError(
            f"ngf={ngf}, blocks={blocks}, dropout={dropout}: impossible",
            "ngf and blocks are at least 1, dropout is at least 0 and below 1",
        )


# ---- XingGAN.

_GUESSES = 10  # pictures that each branch makes


class CrossingBlock(PoseAttentionBlock):
    """PATB's two branches, which look at each other: no residual, one gamma for both.

    x = f(image), y = g(pose); image' = x + gamma A(x, y, x); pose' = y + gamma A(y, x, y), where A(a, b, c)
    is attention of the queries of a to the keys of b over the values of c; the next pose code is
    [image' ; pose'].
    """

    def __init__(
        self, channels: int, first: bool, dropout: float, layer: dict[str, Any], pose_bias: bool = False
    ) -> None:
        super().__init__(channels, first, dropout, layer, pose_bias)
        narrow = max(channels // 8, 1)
        self.query, self.key = nn.Conv2d(channels, narrow, 1), nn.Conv2d(channels, narrow, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) and (B, C or 2C, h, w) -> (B, C, h, w) and (B, 2C, h, w)."""
        x, y = self.image_branch(image), self.pose_branch(pose)
        image = x + self.gamma * self._attended(x, y)
        return image, torch.cat([image, y + self.gamma * self._attended(y, x)], dim=1)

    def _attended(self, asking: Tensor, asked: Tensor) -> Tensor:
        planes = (self.query(asking), self.key(asked), self.value(asking))
        query, key, value = (plane.flatten(2).transpose(1, 2) for plane in planes)
        found = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # as theirs: not divided
        return found.transpose(1, 2).reshape(asking.shape)


class XingGAN(nn.Module):
    """The generator of XingGAN: ten pictures of each branch and the source itself, mixed place by place."""

    needs = ("source_image", "source_keypoints", "target_keypoints")
    about = (
        "XingGAN (Tang et al., ECCV 2020), built anew. It differs from the authors' code: convolutions before"
        " a norm have no bias, which the norm cancels; there is no preset of its training."
    )
    total_stride = 4

    def __init__(
        self,
        ngf: int = 64,  # channels of the first layer; codes have 4 ngf
        blocks: int = 9,
        norm: str = "batch",  # batch (Market-1501) | instance (DeepFashion)
        dropout: float = 0.5,  # inside the blocks
        sigma: float = 6.0,  # pixels, of the pose maps
        padding: Padding = "reflect",  # reflect | zeros
        as_published: bool = False,  # for the authors' weights: see above
    ) -> None:
        super().__init__()
        _check(ngf, blocks, dropout)
        layer: dict[str, Any] = {"norm": norm, "lrelu_slope": 0.0, "padding": padding}
        self.sigma = sigma
        bias = norm == "instance"
        downs = {**layer, "padding": "zeros"} if as_published else layer
        self.image_encoder = _encoder(3, ngf, (1, 2, 2), layer, downs)
        self.pose_encoder = _encoder(2 * NUM_JOINTS, ngf, (1, 2, 2), layer, downs)
        code = 4 * ngf
        self.blocks = nn.ModuleList(
            CrossingBlock(code, number == 0, dropout, layer, bias) for number in range(blocks)
        )
        widths = (code, code // 2, code // 4)
        lasts = [conv(widths[-1], 3 * _GUESSES, kernel=7, padding=padding, bias=True) for _ in range(2)]
        self.image_decoder = nn.Sequential(*_ups(widths, norm), lasts[0])
        narrowed = nn.ConvTranspose2d(2 * code, code, 1, bias=False)
        self.pose_narrow = nn.Sequential(narrowed, make_norm(norm, code), nn.ReLU(inplace=True))
        self.pose_decoder = nn.Sequential(*_ups(widths, norm), lasts[1])
        shares = nn.ConvTranspose2d(code // 2, 2 * _GUESSES + 1, 1, bias=bias)
        self.attention = nn.Sequential(*_ups((3 * code, code, code // 2), norm), shares)
        self.apply(init_weights)

    def forward(self, batch: PairBatch) -> Tensor:
        """The generated images (B, 3, H, W) in [-1, 1]; any size. A missing joint is a map of zeros."""
        height, width = batch.source_image.shape[-2:]
        poses = both_poses(batch, self.sigma)
        source = pad_to_multiple(to_float(batch.source_image), self.total_stride)
        image = self.image_encoder(source)
        pose = self.pose_encoder(pad_to_multiple(torch.cat(poses, dim=1), self.total_stride))
        for block in self.blocks:
            image, pose = block(image, pose)
        shares = self.attention(torch.cat([image, pose], dim=1)).float().softmax(1)
        guesses = [self.image_decoder(image), self.pose_decoder(self.pose_narrow(pose))]
        made = torch.cat([*(guess.float().tanh() for guess in guesses), source], dim=1)
        made = made.reshape(len(made), 2 * _GUESSES + 1, 3, *made.shape[2:])
        mixed = (made * shares[:, :, None]).sum(1)
        return crop_to(mixed, height, width)
