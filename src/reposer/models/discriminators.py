"""The residual discriminator of PATN and SAN: two halvings, three residual blocks, a logit per patch.

Source: SAN section 3.2; widths, order and residual blocks as in PATN's public code. No sigmoid here: the
losses work on logits (reposer.losses.image_gan).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import to_float
from reposer.models.layers import (
    ConvNormAct,
    Padding,
    ResidualBlock,
    check_arguments,
    check_choice,
    conv,
    init_weights,
    join_planes,
)
from reposer.models.pose_maps import convolve, pose_maps
from reposer.models.texture_transport import carried_to
from reposer.structures import NUM_JOINTS, NUM_LABELS, PairBatch

PAIRINGS = ("source", "as_printed", "shape", "pose", "carried", "none")
HEADS = ("patch", "none")


class ResnetDiscriminator(nn.Module):
    """Tells target images from generated ones, seen beside a condition."""

    def __init__(
        self,
        # beside the image: source I_s | as_printed eq. 4 | shape S_t, M_t | pose P_t | carried W, v | none
        pairing: str = "source",
        head: str = "patch",  # patch: 3x3 to one logit per position | none: the 4 ndf maps themselves (PATN)
        ndf: int = 64,  # channels of the first layer
        halvings: int = 2,  # stride-2 convolutions
        blocks: int = 3,  # residual blocks
        norm: str = "batch",  # batch | instance
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
        beside = {"source": 3, "as_printed": 3, "shape": 1 + labels, "pose": NUM_JOINTS, "carried": 4}
        channels = 3 + beside.get(pairing, 0)
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
            source_image: (B, 3, H, W) I_s; read by the pairings source and as_printed.
            image: (B, 3, H, W) the image to judge.
            batch: the rows that the images belong to; read by the pairings as_printed, shape, pose and
                carried (the texture that was carried to the target, and how far it is to be trusted).
            fake: whether ``image`` is generated; read by as_printed alone: eq. 4 pairs a real image with I_s
                but a generated one with I_t.

        Returns:
            (B, 1, H/4, W/4) with the patch head, (B, 4 ndf, H/4, W/4) without.
        """
        image = to_float(image)
        if self.pairing == "shape":
            pair = join_planes([image, batch.target_mask.unsqueeze(1)], batch.target_parsing, self.labels)
        elif self.pairing == "pose":
            return self._judge_pose(image, batch.target_keypoints)
        elif self.pairing == "carried":
            carried = carried_to(batch)
            pair = torch.cat([image, carried.image, carried.validity], dim=1)
        elif self.pairing == "none":
            pair = image
        else:
            beside = batch.target_image if self.pairing == "as_printed" and fake else source_image
            pair = torch.cat([to_float(beside), image], dim=1)
        logits: Tensor = self.network(pair.contiguous(memory_format=torch.channels_last))
        return logits

    def _judge_pose(self, image: Tensor, keypoints: Tensor) -> Tensor:
        """The logits of the image beside its keypoint maps, never made: the first layer is linear."""
        stem = self.network[0]
        assert isinstance(stem, ConvNormAct)
        layer = stem[0]
        assert isinstance(layer, nn.Conv2d)
        image = image.contiguous(memory_format=torch.channels_last)
        x: Tensor = layer._conv_forward(image, layer.weight[:, :3], None)
        maps = pose_maps(keypoints, x.shape[2], x.shape[3])
        x = x + convolve(maps, layer.weight[:, 3:], 1, layer.kernel_size[0] // 2, layer.padding_mode)
        for step in (*list(stem)[1:], *list(self.network)[1:]):
            x = step(x)
        return x


class DiscriminatorPair(nn.Module):
    """PATN's two discriminators side by side: is it the person of the source, and is it in the target's pose?

    Their logits stand in two groups of channels; the losses average over all logits, so both weigh the same.
    """

    def __init__(self, appearance: ResnetDiscriminator, shape: ResnetDiscriminator) -> None:
        super().__init__()
        self.appearance, self.shape = appearance, shape  # the second may look at shape or pose

    def forward(self, source_image: Tensor, image: Tensor, batch: PairBatch, fake: bool = False) -> Tensor:
        """Arguments as of :class:`ResnetDiscriminator`; (B, 2 C, H/4, W/4) for heads of C channels."""
        judges = (self.appearance, self.shape)
        return torch.cat([judge(source_image, image, batch, fake) for judge in judges], dim=1)


def build_discriminator(shape: bool = False, pose: bool = False, **args: Any) -> nn.Module:
    """One discriminator (SAN), or two: the second sees what the target should look like.

    Args:
        shape: the second one sees the target's mask and label map.
        pose: the second one sees the target's keypoint maps (PATN).
        args: keywords of :class:`ResnetDiscriminator`.

    Raises:
        UserError: an impossible value, or both.
    """
    if shape and pose:
        raise UserError("shape and pose each ask for a second discriminator", "choose one of them")
    check_arguments(args)
    first = ResnetDiscriminator(**args)
    if not (shape or pose):
        return first
    second = ResnetDiscriminator(**{**args, "pairing": "shape" if shape else "pose"})
    return DiscriminatorPair(first, second)
