"""Texture transport: pixels of the source carried to where they belong in the target's pose; no learning.

:mod:`reposer.models.texture_places` says where each pixel comes from; here its color is taken, of several
sources the best, and what nothing could be carried to has the median color of its garment.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reposer.models.texture_places import (
    ARMS,
    BACKGROUND,
    FACE,
    LEGS,
    NUM_GROUPS,
    Bodies,
    facing,
    places_of,
)
from reposer.structures import Carried, PairBatch

_SKIN = [FACE, ARMS, LEGS]  # groups that lend each other their color
_FEWEST = 8  # pixels that tell a group's color
_BLUR_FROM = 1.5  # the source is blurred where it shrinks by more
_STEADY = 400.0  # variance of colors, in levels squared, by which a gain is drawn towards 1


NEEDS = (  # fields of a batch that are read, for the generators that begin with what was carried
    *("source_image", "source_parsing", "source_mask", "source_keypoints"),
    *("target_parsing", "target_mask", "target_keypoints", "more_sources", "carried"),
)


@torch.no_grad()
def transport(batch: PairBatch) -> Carried:
    """Carry the source's pixels, or those of several sources, to the target's person.

    Of the target, keypoints, parsing map and mask are read; without parsing maps (MISSING_LABEL) the masks
    serve as one group. With ``more_sources``, the best-placed pixel of all sources counts: of equal ones that
    of the view that faces most as the target does, then of the earlier; colors of further sources are fitted
    to the first's by gain and offset over the groups that both show.

    Args:
        batch: B pairs on any device, images uint8 or model float.

    Returns:
        B results, finite for any keypoints and maps.
    """
    with torch.autocast(batch.source_image.device.type, enabled=False):  # half floats cannot count pixels
        images, sources, known = _sources(batch)
        target = Bodies.of(batch.target_parsing, batch.target_mask, batch.target_keypoints)
        return _carry(images, sources, known, target)


def carried_to(batch: PairBatch) -> Carried:
    """What transport brings to the targets: the batch's own where it is there already."""
    return batch.carried if batch.carried is not None else transport(batch)


def with_carried(batch: PairBatch) -> PairBatch:
    """The batch with it, for several networks that look at it."""
    return replace(batch, carried=carried_to(batch))


# ---- Colors, in [0, 255].


def _sample(images: Tensor, source: Bodies, places: Tensor, picture: Tensor, shrink: Tensor) -> Tensor:
    """Colors (P, 3) of images (N, 3, H, W) at places, bilinear between the pixels on the source's person."""
    height, width = images.shape[2:]
    images = images.float()
    small = (shrink > _BLUR_FROM).nonzero()[:, 0]
    if len(small):
        images = images.clone()
        images[small] = F.avg_pool2d(images[small], 3, 1, 1, count_include_pad=False)
    outer = source.group == BACKGROUND
    weight = (~_grown(outer)).float() + 0.1 * (~outer) + 1e-3  # the edge of a mask is half background
    flat, weight = images.permute(0, 2, 3, 1).reshape(-1, 3), weight.flatten()
    x, y = places[:, 0].clamp(0, width - 1), places[:, 1].clamp(0, height - 1)
    left, top = x.floor().clamp_max(max(width - 2, 0)), y.floor().clamp_max(max(height - 2, 0))
    right, down = x - left, y - top
    corner = (top * width + left).long() + picture * (height * width)
    to_right, to_below = min(width - 1, 1), min(height - 1, 1) * width
    total, color = torch.zeros_like(x), places.new_zeros(len(places), 3)
    for step, share in (
        (0, (1 - right) * (1 - down)),
        (to_right, right * (1 - down)),
        (to_below, (1 - right) * down),
        (to_right + to_below, right * down),
    ):
        index = corner + step
        share = share * weight.index_select(0, index)
        total += share
        color.addcmul_(flat.index_select(0, index), share[:, None])
    return color / total.clamp_min(1e-6)[:, None]


def _grown(mask: Tensor) -> Tensor:
    """(N, H, W) bool masks with every pixel that touches them."""
    padded = F.pad(mask, (1, 1))
    wide = padded[..., :-2] | padded[..., 1:-1] | padded[..., 2:]
    padded = F.pad(wide, (0, 0, 1, 1))
    return padded[..., :-2, :] | padded[..., 1:-1, :] | padded[..., 2:, :]


def _medians(images: Tensor, person: Bodies) -> tuple[Tensor, Tensor]:
    """Median color (N, 9, 3) of each group of uint8 images (N, 3, H, W), and its pixels (N, 9)."""
    number, pixels = len(images), person.pixels
    group = person.group.flatten().index_select(0, pixels)
    values = images.permute(0, 2, 3, 1).reshape(-1, 3).index_select(0, pixels).long()
    place = ((person.at[0] * NUM_GROUPS + group) * 3)[:, None] + torch.arange(3, device=values.device)
    histogram = torch.bincount((place * 256 + values).flatten(), minlength=number * NUM_GROUPS * 3 * 256)
    upto = histogram.int().view(number, NUM_GROUPS, 3, 256).cumsum(-1, dtype=torch.int32)
    number_of = upto[..., -1:]
    median = (2 * upto < number_of).sum(-1)
    return median.float(), number_of[:, :, 0, 0].float()


def _group_colors(medians: Tensor, counts: Tensor) -> Tensor:
    """(N, 9, 3) a color for every group: its own, else skin for skin, else the person's."""
    person = counts[..., None]
    mean = (medians * person).sum(1) / person.sum(1).clamp_min(1)
    mean = torch.where(person.sum(1) > 0, mean, 127.5)
    skin_weight = torch.where(counts >= _FEWEST, counts, 0.0)[:, _SKIN, None]
    skin = (medians[:, _SKIN] * skin_weight).sum(1) / skin_weight.sum(1).clamp_min(1)
    instead = mean[:, None].repeat(1, NUM_GROUPS, 1)
    instead[:, _SKIN] = torch.where(skin_weight.sum(1) > 0, skin, mean)[:, None]
    return torch.where((counts >= _FEWEST)[..., None], medians, instead)


def _fitted(medians: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset (B, K, 3) that take each view's colors to the first's; medians (B, K, 9, 3).

    Weighted least squares over the groups that both show, the gain drawn towards 1.
    """
    weight = torch.minimum(counts, counts[:, :1]) * ((counts >= _FEWEST) & (counts[:, :1] >= _FEWEST))
    weight = (weight / weight.sum(-1, keepdim=True).clamp_min(1))[..., None]  # (B, K, 9, 1)
    there, here = (weight * medians).sum(2), (weight * medians[:, :1]).sum(2)  # (B, K, 3) means
    x, y = medians - there[:, :, None], medians[:, :1] - here[:, :, None]
    covariance, variance = (weight * x * y).sum(2), (weight * x.square()).sum(2)
    gain = ((covariance + _STEADY) / (variance + _STEADY)).clamp(0.5, 2.0)
    known = weight.sum((2, 3))[..., None] > 0
    return torch.where(known, gain, 1.0), torch.where(known, here - gain * there, 0.0)


def _behind(images: Tensor, person: Tensor) -> Tensor:
    """The background (N H W, 3) without the person (N, H, W): between what is left and right in each row.

    Rows that show none take the mean color of the others.
    """
    solid = _grown(person)  # masks are a pixel too small
    number, height, width = solid.shape
    columns = torch.arange(width, device=images.device, dtype=torch.int32)
    left = _running_maximum(torch.where(solid, -1, columns))
    right = width - 1 - _running_maximum(torch.where(solid, -1, width - 1 - columns).flip(-1)).flip(-1)
    picture, y, x = solid.nonzero(as_tuple=True)
    hidden = (picture * height + y) * width + x
    left, right = (end.flatten().index_select(0, hidden) for end in (left, right))
    has_left, has_right = left >= 0, right < width
    share = torch.where(has_right, (x - left) / (right - left).clamp_min(1), 0.0)
    share = torch.where(has_left, share, 1.0)[:, None]
    canvas = images.permute(0, 2, 3, 1).reshape(-1, 3).float()
    row = (picture * height + y) * width
    start, end = (canvas.index_select(0, row + at) for at in (left.clamp_min(0), right.clamp_max(width - 1)))
    free = (~solid).flatten(1).float()
    mean = (canvas.view(number, -1, 3) * free[..., None]).sum(1) / free.sum(1).clamp_min(1)[:, None]
    mean = torch.where(free.any(1)[:, None], mean, 127.5).index_select(0, picture)
    filled = torch.where((has_left | has_right)[:, None], torch.lerp(start, end, share), mean)
    return canvas.index_copy(0, hidden, filled)


def _running_maximum(x: Tensor) -> Tensor:
    """Along the last axis of (N, H, W); by doubled steps, since ``cummax`` goes pixel by pixel."""
    step = 1
    while step < x.shape[-1]:
        x = torch.maximum(x, F.pad(x[..., :-step], (step, 0), value=-1))
        step *= 2
    return x


# ---- Everything together.


def _sources(batch: PairBatch) -> tuple[Tensor, Bodies, Tensor]:
    """Images (B K, 3, H, W) uint8 of all views, the people on them, and which views are there (B, K)."""
    image = _as_uint8(batch.source_image)
    fields = (batch.source_parsing, batch.source_mask, batch.source_keypoints)
    more = batch.more_sources
    if more is None:
        return image, Bodies.of(*fields), torch.ones(len(batch), 1, dtype=torch.bool, device=image.device)
    joined = [
        torch.cat([one[:, None], others], 1).flatten(0, 1)
        for one, others in zip(
            (image, *fields), (_as_uint8(more.image), more.parsing, more.mask, more.keypoints), strict=True
        )
    ]
    first = torch.ones(len(batch), 1, dtype=torch.bool, device=image.device)
    return joined[0], Bodies.of(*joined[1:]), torch.cat([first, more.known], 1)


def _as_uint8(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    return ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _carry(images: Tensor, sources: Bodies, known: Tensor, target: Bodies) -> Carried:
    pairs, views = known.shape
    height, width = target.group.shape[1:]
    repeated = target.repeat(views)
    source = repeated.at[0]  # (P K,) which of the source images
    places, validity = places_of(sources, repeated)
    validity = validity * known.flatten().index_select(0, source)
    picture, pixels = target.at[0], target.pixels
    view = torch.zeros_like(pixels)
    if views > 1:
        order = _side_by_side(picture, pairs, views)
        turn = _turn(sources.joints.view(pairs, views, -1, 2), target.joints).flatten()
        cost = turn.index_select(0, source)
        rank = (validity - cost * (validity > 0)).index_select(0, order.flatten()).view_as(order)
        view = rank.argmax(1)
        chosen = order.gather(1, view[:, None])[:, 0]
        source, places, validity = (part.index_select(0, chosen) for part in (source, places, validity))
    medians, counts = _medians(images, sources)
    first = slice(None, None, views)
    group = target.group.flatten().index_select(0, pixels)
    plain = _group_colors(medians[first], counts[first]).flatten(0, 1)
    plain = plain.index_select(0, picture * NUM_GROUPS + group)  # (P, 3)
    there = (validity > 0).nonzero()[:, 0]
    source, carried = source.index_select(0, there), places.index_select(0, there)
    shrink = sources.torso / repeated.torso
    colors = _sample(images, sources, carried, source, shrink)
    if views > 1:
        gain, offset = _fitted(medians.view(pairs, views, -1, 3), counts.view(pairs, views, -1))
        gain, offset = (fit.flatten(0, 1).index_select(0, source) for fit in (gain, offset))
        colors = torch.addcmul(offset, colors, gain)
    behind = _behind(images[first], sources.group[first] > 0)

    def picture_of(person: Tensor) -> Tensor:
        """The background with these colors (P, 3) on the person, in [-1, 1]."""
        canvas = behind.index_copy(0, pixels, person.clamp(0, 255)).div_(127.5).sub_(1)
        return canvas.view(pairs, height, width, 3).permute(0, 3, 1, 2)

    at = pixels.index_select(0, there)
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    grid = torch.cartesian_prod(rows, columns).flip(1).float().repeat(pairs, 1)
    flat = torch.zeros(pairs * height * width, device=images.device)
    return Carried(
        image=picture_of(plain.index_copy(0, there, colors)),
        validity=flat.index_copy(0, pixels, validity).view(pairs, 1, height, width),
        colors=picture_of(plain),
        coordinates=grid.index_copy_(0, at, carried).view(pairs, height, width, 2),
        view=flat.long().index_copy_(0, at, view.index_select(0, there)).view(pairs, height, width),
    )


def _side_by_side(picture: Tensor, pairs: int, views: int) -> Tensor:
    """(P, K) where a target pixel stands among those of all views, which come pair by pair, view by view."""
    count = torch.bincount(picture, minlength=pairs)
    before = (count.cumsum(0) - count).index_select(0, picture)  # pixels of earlier pairs
    within = torch.arange(len(picture), device=picture.device) - before
    step = torch.arange(views, device=picture.device) * count.index_select(0, picture)[:, None]
    return (views * before + within)[:, None] + step


def _turn(joints: Tensor, target: Tensor) -> Tensor:
    """(B, K) what a view's pixels are worth less, by its orientation against the target's, then its place.

    Less than a tenth of the step from one validity to the next.
    """
    views = joints.shape[1]
    spans = torch.stack([facing(one) for one in (*joints.unbind(1), target)], 1)  # (B, K + 1)
    size = spans.abs().nan_to_num(0.0).amax(1, keepdim=True).clamp_min(1)
    apart = ((spans[:, :-1] - spans[:, -1:]) / size).abs().nan_to_num(1.0)
    return apart * 0.01 + torch.arange(views, device=apart.device) * 1e-4
