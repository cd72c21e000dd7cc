"""PG2: a coarse person in the wanted pose, then what it lacks as a difference from it.

Ma, Jia, Sun, Schiele, Tuytelaars, Van Gool: "Pose Guided Person Image Generation", NIPS 2017, with sizes as
in the authors' public code. First the coarse network learns alone, then the fine one against a discriminator
(``stages``). DPIG (:mod:`reposer.models.dpig`) shares the network of the first stage. ``DEVIATIONS`` says
what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reposer.errors import UserError
from reposer.images import resize, to_float
from reposer.models.layers import check_choice
from reposer.models.pose_maps import disc_maps, limb_mask, moved
from reposer.structures import NUM_JOINTS, PairBatch

DEVIATIONS = (
    "PG2 (Ma et al., NIPS 2017), built anew; all parameters of the authors' code are there. It differs: the"
    " discriminator's batch holds real, generated and source images, not the coarse ones as well; weights"
    " are averaged; the result is clipped in use, and pictures of another size are resized."
)
_SIZES: dict[str, dict[str, Any]] = {
    "paper": {},
    "paper_256": {"size": (256, 256), "levels": 6, "fine_levels": 4, "fine_skip": True},
    "small": {"width": 32},
}


def pg2_size(name: str) -> dict[str, Any]:
    """Arguments of ``PG2``: "paper" for Market-1501, "paper_256" for DeepFashion, "small" for CPUs.

    Raises:
        UserError: no such size.
    """
    check_choice("size", name, _SIZES)
    return dict(_SIZES[name])


@dataclass(frozen=True, slots=True)
class PG2Parts:
    """What the objective may look at beside the image."""

    terms: dict[str, Tensor]  # masked_l1: mean of |image - target| (1 + pose mask), a scalar


class PG2(nn.Module):
    """The generator of PG2. Reads the source image and the target's keypoints."""

    needs = ("source_image", "target_keypoints")
    extra_terms: ClassVar = {"masked_l1": "parts"}
    stages: ClassVar = {"coarse": ("coarse",), "fine": ("fine",)}
    about = DEVIATIONS

    def __init__(
        self,
        size: Sequence[int] = (128, 64),  # (H, W) it works at; pictures of another size are resized
        width: int = 128,  # channels at full size; level l of an encoder has l times as many
        levels: int = 5,  # of the coarse network
        fine_levels: int = 3,
        fine_skip: bool = False,  # the fine network's skip at full size
        code: int = 64,  # numbers of the coarse network's bottleneck
        radius: float = 4.0,  # pixels, of the joints' discs and of the pose mask
        parts: bool = True,  # whether the term masked_l1 may be asked for
    ) -> None:
        super().__init__()
        self.size = checked_size(size, max(levels, fine_levels))
        if fine_levels < 2 or radius <= 0:
            raise UserError(
                f"fine_levels={fine_levels}, radius={radius}: impossible",
                "fine_levels is at least 2, radius above 0",
            )
        self.radius, self.stage = radius, ""
        self.coarse = CodeUNet(3 + NUM_JOINTS, self.size, width, levels, code)
        self.fine = _FineUNet(width, fine_levels, fine_skip)
        self.apply(glorot)

    def forward(self, batch: PairBatch, parts: bool = False) -> Any:
        """The generated images (B, 3, H, W); with ``parts`` also :class:`PG2Parts`.

        In eval mode in [-1, 1], in train mode not clipped. In the stage "coarse" the coarse image alone. A
        missing joint is a plane of -1.
        """
        frame = (int(batch.source_image.shape[-2]), int(batch.source_image.shape[-1]))
        source = resize(to_float(batch.source_image), self.size)
        pose = pose_planes(batch.target_keypoints, frame, self.size, self.radius)
        image: Tensor = self.coarse(torch.cat([source, pose], 1))
        if self.stage != "coarse":
            image = image + self.fine(torch.cat([image, source], 1))
        image = resize(image.float(), frame)
        image = image if self.training else image.clamp(-1, 1)
        if not parts:
            return image
        mask = limb_mask(batch.target_keypoints, *frame, self.radius)
        difference = (image - to_float(batch.target_image)).abs()
        return image, PG2Parts({"masked_l1": (difference * (1 + mask)).mean()})


# ---- Shared with DPIG.


def checked_size(size: Sequence[int], levels: int) -> tuple[int, int]:
    """(H, W) that halves ``levels`` - 1 times.

    Raises:
        UserError: it does not, or there are no levels.
    """
    if levels < 1:
        raise UserError(f"levels={levels}: impossible", "give one level or more")
    stride = 2 ** (levels - 1)
    if len(size) != 2 or any(side < 1 or side % stride for side in size):
        raise UserError(
            f"size={list(size)}: does not divide by {stride}", "choose another size, or fewer levels"
        )
    return int(size[0]), int(size[1])


def pose_planes(keypoints: Tensor, old: tuple[int, int], new: tuple[int, int], radius: float) -> Tensor:
    """Keypoints of pictures of ``old`` (H, W) -> (B, J, H, W) discs at ``new``, 1 inside and -1 outside."""
    return 2 * disc_maps(moved(keypoints, old, new), *new, radius, truncate=True) - 1


def glorot(module: nn.Module) -> None:
    """For ``Module.apply``: weights uniform after Glorot and Bengio, biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ReluConv(nn.Sequential):
    """Convolution and ReLU: (B, in, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2), nn.ReLU(inplace=True)
        )


class PlainResidual(nn.Module):
    """x + two 3x3 convolutions with ReLU, (B, C, H, W) -> the same; no norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ReluConv(channels, channels), ReluConv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.convs(x)
        return x + change


class Levels(nn.Module):
    """Residual levels of ``width``, 2 ``width``, ... channels, each at half the size of the one before."""

    def __init__(self, width: int, levels: int) -> None:
        super().__init__()
        self.widths = [width * (level + 1) for level in range(levels)]
        self.blocks = nn.ModuleList(PlainResidual(channels) for channels in self.widths)
        self.downs = nn.ModuleList(ReluConv(a, b, stride=2) for a, b in pairwise(self.widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, width, H, W) -> the maps of all levels, from fine to coarse."""
        maps = []
        for level, block in enumerate(self.blocks):
            x = block(self.downs[level - 1](x) if level else x)
            maps.append(x)
        return maps


class CodeUNet(nn.Module):
    """A U-Net whose lowest map passes through a code of a few numbers: (B, planes, H, W) -> (B, 3, H, W).

    Args:
        planes: of what it sees.
        size: (H, W) of it; the layers around the code hold to it.
        width, levels: see :class:`Levels`.
        code: numbers of the bottleneck.
    """

    def __init__(self, planes: int, size: tuple[int, int], width: int, levels: int, code: int) -> None:
        super().__init__()
        if min(width, code) < 1:
            raise UserError(f"width={width}, code={code}: impossible", "each is at least 1")
        self.low = (width, size[0] >> (levels - 1), size[1] >> (levels - 1))
        area = self.low[1] * self.low[2]
        self.first = ReluConv(planes, width)
        self.levels = Levels(width, levels)
        self.to_code = nn.Linear(self.levels.widths[-1] * area, code)
        self.from_code = nn.Linear(code, width * area)
        inputs = [width, *self.levels.widths[-2::-1]]  # of each step upwards, beside the skip
        joined = [a + b for a, b in zip(inputs, self.levels.widths[::-1], strict=True)]
        self.blocks = nn.ModuleList(PlainResidual(channels) for channels in joined)
        self.ups = nn.ModuleList(ReluConv(a, b, 1) for a, b in zip(joined, inputs[1:], strict=False))
        self.last = nn.Conv2d(joined[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skips = self.levels(self.first(x))
        x = self.from_code(self.to_code(skips[-1].flatten(1))).unflatten(1, self.low)
        for step, block in enumerate(self.blocks):
            x = block(torch.cat([x, skips[-1 - step]], 1))
            if step < len(self.ups):
                x = self.ups[step](F.interpolate(x, scale_factor=2.0))
        image: Tensor = self.last(x)
        return image


# ---- The second stage.


class _FineUNet(nn.Module):
    """Coarse image and source -> what the coarse image lacks: (B, 6, H, W) -> (B, 3, H, W)."""

    def __init__(self, width: int, levels: int, full_skip: bool) -> None:
        super().__init__()
        widths = [width * (level + 1) for level in range(levels)]
        self.first = ReluConv(6, width)
        inputs = [width, *widths[:-1]]
        self.blocks = nn.ModuleList(
            nn.Sequential(ReluConv(a, b), ReluConv(b, b)) for a, b in zip(inputs, widths, strict=True)
        )
        self.downs = nn.ModuleList(ReluConv(channels, channels, stride=2) for channels in widths[:-1])
        self.full_skip = full_skip
        joined = [widths[-1], *(width for _ in widths[1:])]
        for step, skip in enumerate(widths[::-1]):
            joined[step] += skip if full_skip or step < levels - 1 else 0
        self.ups = nn.ModuleList(
            nn.Sequential(ReluConv(channels, width), ReluConv(width, width)) for channels in joined
        )
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), []
        for level, block in enumerate(self.blocks):
            x = block(self.downs[level - 1](x) if level else x)
            skips.append(x)
        for step, up in enumerate(self.ups):
            finest = step == len(self.ups) - 1
            x = F.interpolate(x, scale_factor=2.0) if step else x
            x = up(x if finest and not self.full_skip else torch.cat([x, skips[-1 - step]], 1))
        difference: Tensor = self.last(x)
        return difference
