"""Discriminators: what each sees beside the image, and four kinds of network, of a logit per patch or one.

``resnet``: the residual one of PATN and SAN, two halvings, three residual blocks (SAN section 3.2; widths,
order and blocks as in PATN's public code). ``residual``: that of GFLA (Ren et al., CVPR 2020), without norm.
``dcgan``: that of PG2 (Ma et al., NIPS 2017) and DPIG, with one logit for the whole image.
``patch``: 4x4 convolutions alone (Isola et al., CVPR 2017), those of Def-GAN and Intro-Flow.
No sigmoid here: the losses work on logits (reposer.losses.image_gan).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from reposer.errors import UserError
from reposer.images import resize, to_float
from reposer.models.layers import (
    ConvNormAct,
    Padding,
    ResidualBlock,
    build,
    check_choice,
    conv,
    init_weights,
    join_planes,
    make_norm,
    pad_to_multiple,
)
from reposer.models.pose_maps import convolve, gaussian_maps, pose_maps
from reposer.models.texture_transport import carried_to
from reposer.structures import NUM_JOINTS, NUM_LABELS, PairBatch

# what a discriminator sees beside the image I -> its planes, without those of a label map
PAIRINGS = {
    "source": 3,  # I_s
    "as_printed": 3,  # eq. 4: I_s beside a real image, I_t beside a generated one
    "shape": 1,  # M_t and S_t
    "pose": NUM_JOINTS,  # P_t
    "source_pose": 3 + NUM_JOINTS,  # I_s and P_t (Intro-Flow)
    "poses": 3 + 2 * NUM_JOINTS,  # I_s, P_s and P_t (Def-GAN)
    "carried": 4,  # W, v
    "none": 0,
}
HEADS = ("patch", "none")


def seen(
    pairing: str, source_image: Tensor, image: Tensor, batch: PairBatch, fake: bool, labels: int
) -> Tensor:
    """(B, 3 + planes, H, W): the image, and beside it what the pairing names; arguments as of ``forward``."""
    image = to_float(image)
    if pairing == "none":
        return image
    if pairing == "shape":
        return join_planes([image, batch.target_mask.unsqueeze(1)], batch.target_parsing, labels)
    if pairing == "carried":
        carried = carried_to(batch)
        return torch.cat([image, carried.image, carried.validity], dim=1)
    source = to_float(batch.target_image if pairing == "as_printed" and fake else source_image)
    if pairing in ("source", "as_printed"):
        return torch.cat([source, image], dim=1)
    height, width = image.shape[-2:]
    target_pose = gaussian_maps(batch.target_keypoints, height, width)
    if pairing == "pose":
        return torch.cat([image, target_pose], dim=1)
    if pairing == "source_pose":
        return torch.cat([source, image, target_pose], dim=1)
    source_pose = gaussian_maps(batch.source_keypoints, height, width)
    return torch.cat([source, source_pose, image, target_pose], dim=1)


class ResnetDiscriminator(nn.Module):
    """Tells target images from generated ones, seen beside a condition."""

    def __init__(
        self,
        pairing: str = "source",  # what stands beside the image, a key of PAIRINGS
        head: str = "patch",  # patch: 3x3 to one logit per position | none: the 4 ndf maps themselves (PATN)
        ndf: int = 64,  # channels of the first layer
        halvings: int = 2,  # stride-2 convolutions
        blocks: int = 3,  # residual blocks
        norm: str = "batch",  # batch | instance | none
        lrelu_slope: float = 0.2,  # slope of every LeakyReLU below zero; 0 is PATN's ReLU
        dropout: float = 0.0,  # inside the residual blocks; PATN 0.5
        padding: Padding = "reflect",  # reflect | zeros
        labels: int = NUM_LABELS,  # of the parsing maps, for pairing shape
    ) -> None:
        super().__init__()
        check_choice("pairing", pairing, PAIRINGS)
        check_choice("head", head, HEADS)
        self.pairing = pairing
        self.labels = labels
        channels = _planes(pairing, labels)
        steps: list[nn.Module] = []
        for i in range(halvings + 1):
            width = ndf * 2**i
            steps.append(
                ConvNormAct(channels, width, 3 if i else 7, 2 if i else 1, norm, lrelu_slope, padding)
            )
            channels = width
        steps += [ResidualBlock(channels, dropout, norm, lrelu_slope, padding) for _ in range(blocks)]
        if head == "patch":
            steps.append(conv(channels, 1, padding=padding, bias=True))
        self.network = nn.Sequential(*steps)
        self.apply(init_weights)

    def forward(self, source_image: Tensor, image: Tensor, batch: PairBatch, fake: bool = False) -> Tensor:
        """Logits, positive for real.

        Args:
            source_image: (B, 3, H, W) I_s; read by the pairings that hold it.
            image: (B, 3, H, W) the image to judge.
            batch: the rows that the images belong to; read by the pairings but source and none.
            fake: whether ``image`` is generated; read by as_printed alone: eq. 4 pairs a real image with I_s
                but a generated one with I_t.

        Returns:
            (B, 1, H/4, W/4) with the patch head, (B, 4 ndf, H/4, W/4) without.
        """
        if self.pairing == "pose":
            return self._judge_pose(to_float(image), batch.target_keypoints)
        planes = seen(self.pairing, source_image, image, batch, fake, self.labels)
        logits: Tensor = self.network(planes.contiguous(memory_format=torch.channels_last))
        return logits

    def _judge_pose(self, image: Tensor, keypoints: Tensor) -> Tensor:
        """The logits of the image beside its keypoint maps, never made: the first layer is linear."""
        stem = self.network[0]
        assert isinstance(stem, ConvNormAct)
        layer = stem[0]
        assert isinstance(layer, nn.Conv2d)
        image, weight = image.contiguous(memory_format=torch.channels_last), layer.weight
        x: Tensor = layer._conv_forward(image, weight[:, :3], layer.bias)
        maps = pose_maps(keypoints, x.shape[2], x.shape[3])
        x = x + convolve(maps, weight[:, 3:], 1, layer.kernel_size[0] // 2, layer.padding_mode)
        for step in (*list(stem)[1:], *list(self.network)[1:]):
            x = step(x)
        return x


class DiscriminatorPair(nn.Module):
    """PATN's two discriminators side by side: is it the person of the source, and is it in the target's pose?

    Their logits stand in two groups of channels; the losses average over all logits, so both weigh the same.
    """

    def __init__(self, appearance: nn.Module, shape: nn.Module) -> None:
        super().__init__()
        self.appearance, self.shape = appearance, shape  # the second may look at shape or pose

    def forward(self, source_image: Tensor, image: Tensor, batch: PairBatch, fake: bool = False) -> Tensor:
        """Arguments as of :class:`ResnetDiscriminator`; (B, 2 C, H/4, W/4) for heads of C channels."""
        judges = (self.appearance, self.shape)
        return torch.cat([judge(source_image, image, batch, fake) for judge in judges], dim=1)


class ResidualDiscriminator(nn.Module):
    """GFLA's: residual halvings without a norm, by itself on the image alone; meant for spectral norm.

    A step is [LeakyReLU, 3x3, LeakyReLU, 4x4 with stride 2] + [mean of 2x2, 1x1]; then LeakyReLU and a 1x1.
    """

    def __init__(
        self,
        pairing: str = "none",  # what stands beside the image, a key of PAIRINGS
        widths: Sequence[int] = (32, 64, 128),  # channels behind each halving; DeepFashion one more 128
        lrelu_slope: float = 0.1,
        labels: int = NUM_LABELS,  # of the parsing maps, for pairing shape
    ) -> None:
        super().__init__()
        check_choice("pairing", pairing, PAIRINGS)
        if not widths or min(widths) < 1:
            raise UserError(f"widths={list(widths)}: impossible", "give one width or more, each at least 1")
        self.pairing, self.labels, self.lrelu_slope = pairing, labels, lrelu_slope
        inside = (widths[0], *widths[:-1])
        inputs = (_planes(pairing, labels), *widths[:-1])
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.LeakyReLU(lrelu_slope),  # not in place: the shortcut reads what it reads
                nn.Conv2d(channels, hidden, 3, padding=1),
                nn.LeakyReLU(lrelu_slope, inplace=True),
                nn.Conv2d(hidden, width, 4, stride=2, padding=1),
            )
            for channels, hidden, width in zip(inputs, inside, widths, strict=True)
        )
        self.shortcuts = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, width, 1))
            for channels, width in zip(inputs, widths, strict=True)
        )
        self.to_logit = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, source_image: Tensor, image: Tensor, batch: PairBatch, fake: bool = False) -> Tensor:
        """Arguments as of :class:`ResnetDiscriminator`; (B, 1, H / 2^n, W / 2^n) for n widths."""
        x = seen(self.pairing, source_image, image, batch, fake, self.labels)
        x = x.contiguous(memory_format=torch.channels_last)
        for branch, shortcut in zip(self.branches, self.shortcuts, strict=True):
            x = branch(x) + shortcut(x)
        logits: Tensor = self.to_logit(F.leaky_relu(x, self.lrelu_slope))
        return logits


class DcganDiscriminator(nn.Module):
    """PG2's and DPIG's: 5x5 convolutions with stride 2 and BatchNorm, then one logit for the whole image."""

    def __init__(
        self,
        pairing: str = "none",  # what stands beside the image, a key of PAIRINGS
        size: Sequence[int] = (128, 64),  # (H, W) it works at; what it sees of another size is resized
        widths: Sequence[int] = (64, 128, 256, 512),  # channels behind each halving; DeepFashion one more 512
        lrelu_slope: float = 0.2,
        labels: int = NUM_LABELS,  # of the parsing maps, for pairing shape
    ) -> None:
        super().__init__()
        check_choice("pairing", pairing, PAIRINGS)
        self.pairing, self.labels = pairing, labels
        stride = 2 ** len(widths)
        if len(size) != 2 or not widths or min(widths) < 1 or any(s < 1 or s % stride for s in size):
            raise UserError(
                f"size={list(size)}, widths={list(widths)}: impossible together",
                f"give widths of at least 1 and two sides that divide by {stride}",
            )
        self.size = (int(size[0]), int(size[1]))
        channels = (_planes(pairing, labels), *widths[:-1])
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, 5, stride=2, padding=2),
                nn.BatchNorm2d(width) if level else nn.Identity(),
                nn.LeakyReLU(lrelu_slope, inplace=True),
            )
            for level, (before, width) in enumerate(zip(channels, widths, strict=True))
        )
        self.to_logit = nn.Linear(widths[-1] * (self.size[0] // stride) * (self.size[1] // stride), 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.uniform_(layer.weight, -0.02 * 3**0.5, 0.02 * 3**0.5)  # of deviation 0.02
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, source_image: Tensor, image: Tensor, batch: PairBatch, fake: bool = False) -> Tensor:
        """Arguments as of :class:`ResnetDiscriminator`; (B, 1)."""
        x = resize(seen(self.pairing, source_image, image, batch, fake, self.labels), self.size)
        x = x.contiguous(memory_format=torch.channels_last)
        for step in self.steps:
            x = step(x)
        logits: Tensor = self.to_logit(x.flatten(1))
        return logits


class PatchDiscriminator(nn.Module):
    """4x4 convolutions: the first with a bias, the others with a norm, LeakyReLU, and one to the logits.

    Intro-Flow has strides (2, 2, 2, 1, 1), Def-GAN 2 everywhere. Sizes that the strides do not divide are
    padded, and a stride of 1 keeps the size.
    """

    def __init__(
        self,
        pairing: str = "source",  # what stands beside the image, a key of PAIRINGS
        widths: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int] = (2, 2, 2, 1, 1),  # one for each width, one for the logits
        norm: str = "batch",  # batch | instance | layer | none
        lrelu_slope: float = 0.2,
        labels: int = NUM_LABELS,  # of the parsing maps, for pairing shape
    ) -> None:
        super().__init__()
        check_choice("pairing", pairing, PAIRINGS)
        if len(strides) != len(widths) + 1 or min(widths) < 1 or any(s not in (1, 2) for s in strides):
            raise UserError(
                f"widths={list(widths)}, strides={list(strides)}: impossible together",
                "give one width or more, and one stride more, each 1 or 2",
            )
        self.pairing, self.labels, self.total_stride = pairing, labels, prod(strides)
        steps: list[nn.Module] = []
        channels = _planes(pairing, labels)
        for number, (width, stride) in enumerate(zip((*widths, 1), strides, strict=True)):
            normed = 0 < number < len(widths)
            bias = not normed or norm == "none"
            if stride == 1:
                steps.append(nn.ZeroPad2d((1, 2, 1, 2)))
            steps.append(nn.Conv2d(channels, width, 4, stride, 1 if stride == 2 else 0, bias=bias))
            if number < len(widths):
                after = [make_norm(norm, width)] if normed else []
                steps += [*after, nn.LeakyReLU(lrelu_slope, inplace=True)]
            channels = width
        self.network = nn.Sequential(*steps)
        self.apply(init_weights)

    def forward(self, source_image: Tensor, image: Tensor, batch: PairBatch, fake: bool = False) -> Tensor:
        """Arguments as of :class:`ResnetDiscriminator`; (B, 1, H / s, W / s) for strides of product s."""
        planes = seen(self.pairing, source_image, image, batch, fake, self.labels)
        planes = pad_to_multiple(planes, self.total_stride)
        logits: Tensor = self.network(planes.contiguous(memory_format=torch.channels_last))
        return logits


DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "resnet": ResnetDiscriminator,
    "residual": ResidualDiscriminator,
    "dcgan": DcganDiscriminator,
    "patch": PatchDiscriminator,
}


def build_discriminator(
    kind: str = "resnet", spectral: bool = False, shape: bool = False, pose: bool = False, **args: Any
) -> nn.Module:
    """One discriminator (SAN), or two: the second sees what the target should look like.

    Args:
        kind: a key of DISCRIMINATORS.
        spectral: spectral norm on every convolution (Miyato et al., ICLR 2018).
        shape: the second one sees the target's mask and label map.
        pose: the second one sees the target's keypoint maps (PATN).
        args: keywords of the kind's constructor.

    Raises:
        UserError: an impossible value, an argument that the kind does not have, or both ``shape`` and
            ``pose``.
    """
    if shape and pose:
        raise UserError("shape and pose each ask for a second discriminator", "choose one of them")
    judges = [build("discriminator", DISCRIMINATORS, kind, args)]
    if shape or pose:
        seconds = {**args, "pairing": "shape" if shape else "pose"}
        judges.append(build("discriminator", DISCRIMINATORS, kind, seconds))
    for layer in [layer for judge in judges for layer in judge.modules() if isinstance(layer, nn.Conv2d)]:
        if spectral:
            spectral_norm(layer)
    return DiscriminatorPair(*judges) if len(judges) == 2 else judges[0]


def _planes(pairing: str, labels: int) -> int:
    """Planes of what a discriminator sees, the image's among them."""
    return 3 + PAIRINGS[pairing] + (labels if pairing == "shape" else 0)
