"""Stitching: the generated person over a real background, the donor's or the source's with its person
painted out.

SAN's paper speaks of "seamlessly stitching foreground and background" and gives no method; this one is ours.
The person is cut out by the target mask with a soft border outside it; the holes that people leave in a
background are filled by pull-push (Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4.2) and a
little diffusion.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from reposer.errors import known
from reposer.structures import PairBatch

BACKGROUNDS = ("generated", "donor", "source")
ROWS_PER_FEATHER_PIXEL = 128  # the border grows with the image: one step of it for each 128 rows
DIFFUSION_STEPS = 8  # 3x3 averages inside the hole; they take away the squares of the pyramid


def stitch(
    generated: Tensor,
    batch: PairBatch,
    background: str,
    person: Tensor | None = None,
    *,
    feather: int | None = None,
) -> Tensor:
    """Put the generated people on the wanted background.

    Pixels of the person are the generated ones, pixels more than ``feather`` away from it are the
    background's, both exactly. Two cases have no answer and keep the whole generated picture: an empty
    target mask (the result would be the donor's own photograph under the source's name) and a person who
    fills the background image (nothing to paint the hole with).

    Args:
        generated: (B, 3, H, W) uint8.
        batch: the pairs, on the same device; images uint8.
        background: "generated" (the picture as it is), "donor" (the target image's) or "source".
        person: (B, H, W) bool, where the generated people are; None: on the target's mask.
        feather: width of the soft border in pixels; None: 1 for every 128 rows, at least 1.

    Returns:
        (B, 3, H, W) uint8.

    Raises:
        UserError: no such background.
    """
    if check_background(background) == "generated":
        return generated
    if feather is None:
        feather = max(1, round(generated.shape[-2] / ROWS_PER_FEATHER_PIXEL))
    donor = background == "donor"
    image = batch.target_image if donor else batch.source_image
    behind = batch.target_mask if donor else batch.source_mask
    placed = batch.target_mask if person is None else person
    # The border of a person is mixed with the background and masks are a little tight: the hole is wider.
    hole = _over_neighbors(torch.maximum, behind[:, None].float(), feather) > 0
    plate = paint_out(image, hole[:, 0])
    alpha = feathered(placed, feather)
    usable = placed.flatten(1).any(1) & ~hole.flatten(1).all(1)
    alpha = torch.where(usable[:, None, None, None], alpha, torch.ones_like(alpha))
    mixed = torch.lerp(plate.float(), generated.float(), alpha)
    return mixed.round_().clamp_(0, 255).to(torch.uint8)


def check_background(background: str) -> str:
    """``background`` itself if it is one of BACKGROUNDS.

    Raises:
        UserError: it is not.
    """
    return known("background", background, BACKGROUNDS)


def feathered(mask: Tensor, width: int) -> Tensor:
    """Opacity of a cut-out: 1 on the mask, elsewhere the part of the square around a pixel that is mask.

    Beside a straight edge it is 1/3 (``width`` 1) to 1/2, and 0 beyond ``width`` pixels. A longer ramp would
    show more of what the generator painted around the person: a halo on another background.

    Args:
        mask: (B, H, W) bool.
        width: half the side of the square, in pixels; 0 gives a hard edge.

    Returns:
        (B, 1, H, W) float32.
    """
    solid = mask[:, None].float()
    share = _over_neighbors(torch.add, solid, width) / _neighbor_count(solid, width)
    return torch.maximum(solid, share)


def paint_out(image: Tensor, hole: Tensor) -> Tensor:
    """Fill holes from what surrounds them; pixels outside the holes stay bit for bit.

    Args:
        image: (B, 3, H, W) uint8.
        hole: (B, H, W) bool, True where the pixels are to be replaced; must leave some pixel of each image
            (gray fills an image of which nothing is known).

    Returns:
        (B, 3, H, W) uint8.
    """
    known = (~hole[:, None]).float()
    filled = _pull_push(image.float() - 127.5, known)
    count = _neighbor_count(known, 1)
    for _ in range(DIFFUSION_STEPS):
        filled = torch.lerp(_over_neighbors(torch.add, filled, 1).div_(count), filled, known)
    painted = filled.add_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return torch.where(hole[:, None], painted, image)


def _pull_push(values: Tensor, weight: Tensor) -> Tensor:
    """Pull: average known pixels into ever smaller images. Push: fill the unknown of each from the next
    smaller.

    values (B, C, H, W), arbitrary where unknown; weight (B, 1, H, W) in [0, 1], how far a pixel is known.
    """
    if weight.shape[-2] == weight.shape[-1] == 1:
        return values * weight
    share = _halve(weight)
    mean = _halve(values * weight) / share.clamp_min(1e-12)
    # A coarse pixel that saw one known pixel is as good as one that saw four (weights saturate, section
    # 3.4.2).
    coarse = _pull_push(mean, (4 * share).clamp_max(1.0))
    size = weight.shape[-2:]
    return torch.lerp(F.interpolate(coarse, size, mode="bilinear", align_corners=False), values, weight)


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def _over_neighbors(combine: Callable[..., Tensor], x: Tensor, radius: int) -> Tensor:
    """torch.add or torch.maximum over squares of 2 radius + 1 pixels, cut at the border; x is (B, C, H, W).

    By shifted slices along each axis: ten times as fast on a CPU as avg_pool2d and max_pool2d.
    """
    for axis in (-2, -1):
        total = x.clone()
        for shift in range(1, min(radius, x.shape[axis] - 1) + 1):
            rest = x.shape[axis] - shift
            for here, there in ((shift, 0), (0, shift)):
                view = total.narrow(axis, here, rest)
                combine(view, x.narrow(axis, there, rest), out=view)
        x = total
    return x


def _neighbor_count(x: Tensor, radius: int) -> Tensor:
    """(1, 1, H, W) pixels in each square of ``_over_neighbors``."""
    return _over_neighbors(torch.add, torch.ones_like(x[:1, :1]), radius)
