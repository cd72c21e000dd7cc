"""Texture transport: pixels of the source carried to where they belong in the target's pose; no learning.

For each pixel on the target's person, three places in the source are tried, the best counts (all in pixels):

1. its own part: a limb by the map that takes the target's limb to the source's, as in deformable GANs
   (Siarohin et al., CVPR 2018); the head by the rows of hair and face together; the torso by its height
   between shoulders and hips;
2. the same garment: its group of labels row by row, by height in the group and place between the row's ends;
3. the limb of the other side, mirrored.

A place counts if it lies in the frame, on the source's person, and on the same group of labels. Where none
does, the group's median color fills in. All persons' pixels are worked on at once, in one batch of tensors,
and no result depends on the others. Label maps of real people are rough, so groups are coarse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from reposer.structures import Carried, PairBatch

# Groups of LIP-20's labels; a person's pixel without a known label belongs to the last
BACKGROUND, HAIR, FACE, UPPER, LOWER, ARMS, LEGS, SHOES, REST = range(9)
GROUPS = ("background", "hair", "face", "upper", "lower", "arms", "legs", "shoes", "rest")
_COUNT = len(GROUPS)
_GROUP_OF_LABEL = torch.tensor(
    [BACKGROUND, HAIR, HAIR, ARMS, FACE, UPPER, UPPER, UPPER, LEGS, LOWER]
    + [UPPER, UPPER, LOWER, FACE, ARMS, ARMS, LEGS, LEGS, SHOES, SHOES]
    + [REST] * 236
)
_SKIN = [FACE, ARMS, LEGS]  # groups that lend each other their color

# joints of OpenPose-18 at the ends of limbs: of the arms, then of the legs
_STARTS, _ENDS = [2, 3, 5, 6, 8, 9, 11, 12], [3, 4, 6, 7, 9, 10, 12, 13]
_OTHER_SIDE = [2, 3, 0, 1, 6, 7, 4, 5]
_NECK, _SHOULDERS, _HIPS = 1, [2, 5], [8, 11]

# how far a pixel is to be trusted, by where it comes from; a row of arms may span both
OWN, ROW, MIRRORED, ARM_ROW = 1.0, 0.75, 0.5, 0.25
_ARM_REACH = 0.16  # of the torso's length: a garment's pixel so near to an arm's bone is a sleeve's
_SHORTEST = 3.0  # pixels: a limb below it has no direction
_MOST = 3.0  # the largest enlargement or shrinkage of a part
_FEWEST = 8  # pixels that tell a group's color
_TORSOS = 3.4  # of an adult's height
_BLUR_FROM = 1.5  # the source is blurred where it shrinks by more
_STEADY = 400.0  # variance of colors, in levels squared, by which a gain is drawn towards 1


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
        target = _Person.of(batch.target_parsing, batch.target_mask, batch.target_keypoints)
        return _carry(images, sources, known, target)


def with_carried(batch: PairBatch) -> PairBatch:
    """The batch with what transport brings to its targets."""
    return batch if batch.carried is not None else replace(batch, carried=transport(batch))


# ---- What is known of a person.


@dataclass(frozen=True, slots=True)
class _Person:
    """N people by their parts: everything that one of them tells alone. P: pixels on all their persons."""

    group: Tensor  # (N, H, W) int64
    joints: Tensor  # (N, J, 2) float32, NaN for a missing one
    torso: Tensor  # (N,) length of the torso in pixels, guessed from the mask's height where it is unknown
    pixels: Tensor  # (P,) places of the persons' pixels in (N, H, W), ascending
    count: Tensor  # (N, 10, H) float32 pixels of each group in each row; the last plane is the head
    first: Tensor  # (N, 10, H) x of the first of them
    last: Tensor  # (N, 10, H) x of the last

    @classmethod
    def of(cls, parsing: Tensor, mask: Tensor, keypoints: Tensor) -> _Person:
        number, height, width = mask.shape
        group = _GROUP_OF_LABEL.to(parsing.device).index_select(0, parsing.flatten().int()).view_as(parsing)
        group = torch.where(group == BACKGROUND, REST, group) * mask
        pixels = group.flatten().nonzero()[:, 0]
        picture, y, x = _unravel(pixels, height, width)
        line = (picture * _COUNT + group.flatten().index_select(0, pixels)) * height + y
        shape, x = (number, _COUNT, height), x.float()
        count = torch.bincount(line, minlength=number * _COUNT * height).view(shape).float()
        empty = torch.full((count.numel(),), float(width), device=x.device)
        first = empty.scatter_reduce(0, line, x, "amin").view(shape)
        last = (-empty).scatter_reduce(0, line, x, "amax").view(shape)
        head = slice(HAIR, FACE + 1)
        count = torch.cat([count, count[:, head].sum(1, keepdim=True)], 1)
        first = torch.cat([first, first[:, head].amin(1, keepdim=True)], 1)
        last = torch.cat([last, last[:, head].amax(1, keepdim=True)], 1)
        joints = keypoints.float()
        return cls(group, joints, _torso(joints, mask), pixels, count, *_smooth(first, last, count > 0))

    def repeat(self, times: int) -> _Person:
        """Each person so many times in a row."""
        if times == 1:
            return self
        group, joints, torso, count, first, last = (
            field.repeat_interleave(times, 0)
            for field in (self.group, self.joints, self.torso, self.count, self.first, self.last)
        )
        return _Person(group, joints, torso, group.flatten().nonzero()[:, 0], count, first, last)

    def plane(self, number: int) -> _Person:
        """With the rows of one group alone."""
        rows = (field[:, number : number + 1] for field in (self.count, self.first, self.last))
        return _Person(self.group, self.joints, self.torso, self.pixels, *rows)


def _unravel(pixels: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Picture, y and x of places in (N, H, W)."""
    picture = pixels // (height * width)
    within = pixels - picture * (height * width)
    y = within // width
    return picture, y, within - y * width


def _torso(joints: Tensor, mask: Tensor) -> Tensor:
    """(N,) from the neck to the middle of the hips; where that is unknown a share of the mask's height."""
    length = (joints[:, _NECK] - joints[:, _HIPS].mean(1)).norm(dim=-1)
    rows = mask.any(-1).sum(-1).float()
    guess = torch.where(rows > 0, rows, float(mask.shape[-2])) / _TORSOS
    return torch.where(length > 1, length, guess)  # False for NaN


def _smooth(first: Tensor, last: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of rows as means over each row and its two neighbors, of those that are there."""
    weight = there.float()
    total = _over_three(weight).clamp_min(1)
    return _over_three(first * weight) / total, _over_three(last * weight) / total


def _over_three(x: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1))
    return padded[..., :-2] + x + padded[..., 2:]


# ---- Places by rows: tables of y in the source, and of gain and offset of x, for each row of the target.

_Rows = tuple[Tensor, Tensor, Tensor]  # (N, G, H) each


def _row_tables(source: _Person, target: _Person) -> _Rows:
    """Of all planes: a row's y is the quantile of its share of the plane's pixels above it."""
    above = target.count.cumsum(-1)
    share = (above - target.count / 2) / above[..., -1:].clamp_min(1)
    upto = source.count.cumsum(-1)
    wanted = share * upto[..., -1:]
    row = torch.searchsorted(upto, wanted).clamp_max(source.count.shape[-1] - 1)
    within = (wanted - upto.gather(-1, row)) / source.count.gather(-1, row).clamp_min(1) + 1  # 0 to 1
    return row + within - 0.5, *_across(source, target, row)


def _across(source: _Person, target: _Person, row: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset that take x between the ends of the target's rows to the source's at ``row``."""
    first, last = source.first.gather(-1, row), source.last.gather(-1, row)
    span = target.last - target.first
    gain = torch.where(span >= 1, (last - first) / span.clamp_min(1), 0.0)
    return gain, torch.where(span >= 1, first - gain * target.first, (first + last) / 2)


def _torso_tables(source: _Person, target: _Person, rows: _Rows) -> _Rows:
    """(N, H) each, of the upper garment, by height between shoulders and hips where both have all four."""
    height = source.count.shape[-1]
    tops, bottoms = (
        torch.stack([person.joints[:, pair, 1].mean(1) for person in (source, target)])
        for pair in (_SHOULDERS, _HIPS)
    )  # (2, N)
    lengths = bottoms - tops
    usable = (lengths > _SHORTEST).all(0)  # False for NaN
    ratio = (lengths[0] / lengths[1]).nan_to_num(1.0, 1.0, 1.0).clamp(1 / _MOST, _MOST)
    start = (tops[0] - ratio * tops[1]).nan_to_num(0.0)
    y = start[:, None] + ratio[:, None] * torch.arange(height, device=ratio.device)
    near = _nearest_row(source.count[:, UPPER] > 0)
    row = near.gather(-1, y.round().clamp(0, height - 1).long())
    y = torch.where((y - row).abs() <= 0.5, y, row.float())
    gain, offset = _across(source.plane(UPPER), target.plane(UPPER), row[:, None])
    y, gain, offset = (
        torch.where(usable[:, None], ours, table[:, UPPER])
        for ours, table in zip((y, gain[:, 0], offset[:, 0]), rows, strict=True)
    )
    return y, gain, offset


def _nearest_row(there: Tensor) -> Tensor:
    """(N, H) the nearest row that is there, the upper of two; the row itself where none is."""
    height = there.shape[-1]
    rows = torch.arange(height, device=there.device).expand_as(there)
    above = torch.where(there, rows, -height).cummax(-1).values
    below = torch.where(there, rows, 2 * height).flip(-1).cummin(-1).values.flip(-1)
    near = torch.where(rows - above <= below - rows, above, below)
    return torch.where(there.any(-1, keepdim=True), near, rows)


# ---- Places by limbs.


@dataclass(frozen=True, slots=True)
class _Limbs:
    """Of P pixels: whether a limb serves them, and where it comes from."""

    serves: Tensor  # (P,)
    places: Tensor  # (P, 2)
    usable: Tensor  # (P,) the source has it
    mirrored: Tensor  # (P, 2) by the other side's
    mirror_usable: Tensor  # (P,)


def _limbs(source: _Person, target: _Person, picture: Tensor, xy: Tensor, group: Tensor) -> _Limbs:
    starts, vectors = target.joints[:, _STARTS], target.joints[:, _ENDS] - target.joints[:, _STARTS]
    lengths = vectors.norm(dim=-1)  # (N, 8)
    known = lengths >= _SHORTEST  # False for NaN
    along = (vectors / lengths[..., None]).nan_to_num(0.0, 0.0, 0.0)
    frames = torch.stack([along, _turned(along)], 2)  # (N, 8, 2, 2)
    frames = torch.cat([frames, -(frames @ starts.nan_to_num(0.0)[..., None])], -1)  # columns x, y, 1
    length = torch.where(known, lengths, -torch.inf)  # of a limb that is none, everything is far away

    of_arm = (group == UPPER) | (group == ARMS)
    half = picture * 2 + (~of_arm)
    table = torch.cat([frames.flatten(2), length[..., None]], -1).view(-1, 4, 7)  # four limbs of arms or legs
    line = table.index_select(0, half)  # (P, 4, 7)
    x, y = xy[:, :1], xy[:, 1:]
    t = torch.addcmul(torch.addcmul(line[..., 2], line[..., 0], x), line[..., 1], y)  # (P, 4) along
    n = torch.addcmul(torch.addcmul(line[..., 5], line[..., 3], x), line[..., 4], y)  # across
    beyond = t - torch.minimum(t.clamp_min(0), line[..., 6])
    square, nearest = torch.addcmul(beyond.square(), n, n).min(1)
    of_leg = (group == LOWER) | (group == LEGS) | (group == SHOES)
    near = square < (_ARM_REACH * target.torso).square().index_select(0, picture)
    serves = torch.where(group == UPPER, near, (of_arm | of_leg) & square.isfinite())

    own, own_known = _limb_maps(source, target, frames, lengths, list(range(8)), 1.0)
    other, other_known = _limb_maps(source, target, frames, lengths, _OTHER_SIDE, -1.0)
    which = half * 4 + nearest
    maps = torch.cat([own, other], 2).view(-1, 4, 3).index_select(0, which)  # (P, 4, 3)
    places = torch.addcmul(torch.addcmul(maps[..., 2], maps[..., 0], x), maps[..., 1], y)
    return _Limbs(
        serves,
        places[:, :2],
        (known & own_known).flatten().index_select(0, which),
        places[:, 2:],
        (known & other_known).flatten().index_select(0, which) & serves,
    )


def _turned(vectors: Tensor) -> Tensor:
    """Vectors (..., 2) turned by a quarter."""
    return torch.stack([-vectors[..., 1], vectors[..., 0]], -1)


def _limb_maps(
    source: _Person, target: _Person, frames: Tensor, lengths: Tensor, order: list[int], side: float
) -> tuple[Tensor, Tensor]:
    """Maps (N, 8, 2, 3) of the target's limbs to the source's in this order, and which are known (N, 8).

    Along the limb by the limbs' lengths, across by the torsos': an arm that points at the viewer is as thick.
    """
    starts = source.joints[:, _STARTS][:, order]
    vectors = source.joints[:, _ENDS][:, order] - starts
    own = vectors.norm(dim=-1)
    along = (vectors / own[..., None]).nan_to_num(0.0, 0.0, 0.0)
    gain = (own / lengths).nan_to_num(1.0, 1.0, 1.0).clamp(1 / _MOST, _MOST)
    wide = (source.torso / target.torso).clamp(1 / _MOST, _MOST)[:, None, None]
    out = torch.stack([along * gain[..., None], _turned(along) * (side * wide)], -1)
    maps = out @ frames
    maps[..., 2] += starts.nan_to_num(0.0)
    return maps, own >= _SHORTEST


# ---- Of one source: where each pixel comes from.


def _places(source: _Person, target: _Person) -> tuple[Tensor, Tensor]:
    """Places (P, 2) x, y in the source of the target persons' pixels, and how far they are to be trusted."""
    height, width = target.group.shape[1:]
    picture, y, x = _unravel(target.pixels, height, width)
    group = target.group.flatten().index_select(0, target.pixels)
    xy = torch.stack([x, y], 1).float()
    rows = _row_tables(source, target)
    part = [table.clone() for table in rows]
    for table, upper in zip(part, _torso_tables(source, target, rows), strict=True):
        table[:, HAIR] = table[:, FACE] = table[:, _COUNT]
        table[:, UPPER] = upper
    line = (picture * (_COUNT + 1) + group) * height + y
    limbs = _limbs(source, target, picture, xy, group)
    own = torch.where(limbs.serves[:, None], limbs.places, _by_rows(part, line, xy))
    garment = _by_rows(rows, line, xy)
    opposite = _facing(source.joints) * _facing(target.joints) < 0
    seen = torch.where(
        opposite.index_select(0, picture) & (group <= UPPER), MIRRORED, OWN
    )  # a chest is no back
    by_row = torch.where(group == ARMS, ARM_ROW, seen.clamp_max(ROW))
    tries = (
        (own, (_fits(source, own, picture, group) & (limbs.usable | ~limbs.serves)) * seen),
        (garment, _fits(source, garment, picture, group) * by_row),
        (limbs.mirrored, (_fits(source, limbs.mirrored, picture, group) & limbs.mirror_usable) * MIRRORED),
    )
    places, validity = tries[0]
    for others, value in tries[1:]:
        better = value > validity
        places = torch.where(better[:, None], others, places)
        validity = torch.where(better, value, validity)
    return places, validity


def _by_rows(tables: _Rows | list[Tensor], line: Tensor, xy: Tensor) -> Tensor:
    """(P, 2) places of pixels by their lines of the row tables."""
    y, gain, offset = torch.stack([table.flatten() for table in tables], 1).index_select(0, line).unbind(1)
    return torch.stack([gain * xy[:, 0] + offset, y], 1)


def _fits(source: _Person, places: Tensor, picture: Tensor, group: Tensor) -> Tensor:
    """(P,) whether the places lie in the frame and on the pixel's own group in the source."""
    height, width = source.group.shape[1:]
    x, y = places.round().unbind(1)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long() + picture * (height * width)
    return inside & (source.group.flatten().index_select(0, index) == group)


def _facing(joints: Tensor) -> Tensor:
    """(N,) x from the left to the right shoulder, negative for a front; NaN when one is missing."""
    return joints[:, _SHOULDERS[0], 0] - joints[:, _SHOULDERS[1], 0]


# ---- Colors, in [0, 255].


def _sample(images: Tensor, source: _Person, places: Tensor, picture: Tensor, shrink: Tensor) -> Tensor:
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


def _medians(images: Tensor, person: _Person) -> tuple[Tensor, Tensor]:
    """Median color (N, 9, 3) of each group of uint8 images (N, 3, H, W), and its pixels (N, 9)."""
    number, _, height, width = images.shape
    picture, _, _ = _unravel(person.pixels, height, width)
    group = person.group.flatten().index_select(0, person.pixels)
    values = images.permute(0, 2, 3, 1).reshape(-1, 3).index_select(0, person.pixels).long()
    place = ((picture * _COUNT + group) * 3)[:, None] + torch.arange(3, device=values.device)
    histogram = torch.bincount((place * 256 + values).flatten(), minlength=number * _COUNT * 3 * 256)
    upto = histogram.int().view(number, _COUNT, 3, 256).cumsum(-1, dtype=torch.int32)
    pixels = upto[..., -1:]
    median = (2 * upto < pixels).sum(-1)
    return median.float(), pixels[:, :, 0, 0].float()


def _group_colors(medians: Tensor, counts: Tensor) -> Tensor:
    """(N, 9, 3) a color for every group: its own, else skin for skin, else the person's."""
    person = counts[..., None]
    mean = (medians * person).sum(1) / person.sum(1).clamp_min(1)
    mean = torch.where(person.sum(1) > 0, mean, 127.5)
    skin_weight = torch.where(counts >= _FEWEST, counts, 0.0)[:, _SKIN, None]
    skin = (medians[:, _SKIN] * skin_weight).sum(1) / skin_weight.sum(1).clamp_min(1)
    instead = mean[:, None].repeat(1, _COUNT, 1)
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
    """The background (N, 3, H, W) without the person (N, H, W): between what is left and right in each row.

    Rows that show none take the mean color of the others.
    """
    solid = _grown(person)  # masks are a pixel too small
    width = images.shape[-1]
    x = torch.arange(width, device=images.device).expand_as(solid)
    left = torch.where(solid, -1, x).cummax(-1).values
    right = torch.where(solid, width, x).flip(-1).cummin(-1).values.flip(-1)
    has_left, has_right = left >= 0, right < width
    share = torch.where(has_right, (x - left) / (right - left).clamp_min(1), 0.0)
    share = torch.where(has_left, share, 1.0)[:, None]
    left, right = left.clamp_min(0)[:, None], right.clamp_max(width - 1)[:, None]
    images = images.float()
    start, end = (images.gather(-1, place.expand_as(images)) for place in (left, right))
    filled = torch.lerp(start, end, share)
    there = (has_left | has_right)[:, None]
    number = there.sum((2, 3), keepdim=True)
    mean = torch.where(number > 0, (filled * there).sum((2, 3), keepdim=True) / number.clamp_min(1), 127.5)
    return torch.where(solid[:, None], torch.where(there, filled, mean), images)


# ---- Everything together.


def _sources(batch: PairBatch) -> tuple[Tensor, _Person, Tensor]:
    """Images (B K, 3, H, W) uint8 of all views, the people on them, and which views are there (B, K)."""
    image = _as_uint8(batch.source_image)
    fields = (batch.source_parsing, batch.source_mask, batch.source_keypoints)
    more = batch.more_sources
    if more is None:
        return image, _Person.of(*fields), torch.ones(len(batch), 1, dtype=torch.bool, device=image.device)
    joined = [
        torch.cat([one[:, None], others], 1).flatten(0, 1)
        for one, others in zip(
            (image, *fields), (_as_uint8(more.image), more.parsing, more.mask, more.keypoints), strict=True
        )
    ]
    first = torch.ones(len(batch), 1, dtype=torch.bool, device=image.device)
    return joined[0], _Person.of(*joined[1:]), torch.cat([first, more.known], 1)


def _as_uint8(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image
    return ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _carry(images: Tensor, sources: _Person, known: Tensor, target: _Person) -> Carried:
    pairs, views = known.shape
    height, width = target.group.shape[1:]
    repeated = target.repeat(views)
    picture, _, _ = _unravel(repeated.pixels, height, width)
    places, validity = _places(sources, repeated)
    shrink = sources.torso / repeated.torso
    colors = _sample(images, sources, places, picture, shrink)
    medians, counts = _medians(images, sources)
    validity = validity * known.flatten().index_select(0, picture)
    view = torch.zeros_like(target.pixels)
    if views > 1:
        gain, offset = _fitted(medians.view(pairs, views, -1, 3), counts.view(pairs, views, -1))
        gain, offset = (fit.flatten(0, 1).index_select(0, picture) for fit in (gain, offset))
        colors = torch.addcmul(offset, colors, gain)
        # the same pixels of all views side by side: (P, views) of the targets' pixels
        at = repeated.pixels % (height * width) + picture // views * (height * width)
        order = torch.argsort(at, stable=True)
        places, colors = (x[order].view(-1, views, x.shape[1]) for x in (places, colors))
        validity = validity[order].view(-1, views)
        turn = _turn(sources.joints.view(pairs, views, -1, 2), target.joints).flatten()
        rank = validity - turn[picture[order]].view(-1, views) * (validity > 0)
        view = rank.argmax(1)
        lines = torch.arange(len(view), device=view.device)
        places, validity, colors = places[lines, view], validity[lines, view], colors[lines, view]
    picture, y, x = _unravel(target.pixels, height, width)
    group = target.group.flatten().index_select(0, target.pixels)
    first = slice(None, None, views)
    plain = (
        _group_colors(medians[first], counts[first]).flatten(0, 1).index_select(0, picture * _COUNT + group)
    )
    there = validity > 0
    own = torch.stack([x, y], 1).float()
    behind = _behind(images[first], sources.group[first] > 0)

    def picture_of(person: Tensor) -> Tensor:
        """The background with these colors (P, 3) on the person, in [-1, 1]."""
        canvas = behind.permute(0, 2, 3, 1).reshape(-1, 3)
        canvas = canvas.index_copy(0, target.pixels, person.clamp(0, 255)) / 127.5 - 1
        return canvas.view(pairs, height, width, 3).permute(0, 3, 1, 2)

    grid = torch.cartesian_prod(
        torch.arange(height, device=own.device), torch.arange(width, device=own.device)
    ).flip(1)
    coordinates = (
        grid.float().repeat(pairs, 1).index_copy(0, target.pixels, torch.where(there[:, None], places, own))
    )
    flat = torch.zeros(pairs * height * width, device=own.device)
    return Carried(
        image=picture_of(torch.where(there[:, None], colors, plain)),
        validity=flat.index_copy(0, target.pixels, validity).view(pairs, 1, height, width),
        colors=picture_of(plain),
        coordinates=coordinates.view(pairs, height, width, 2),
        view=flat.long().index_copy(0, target.pixels, view * there).view(pairs, height, width),
    )


def _turn(joints: Tensor, target: Tensor) -> Tensor:
    """(B, K) what a view's pixels are worth less, by its orientation against the target's, then its place.

    Less than a tenth of the step from one validity to the next.
    """
    views = joints.shape[1]
    spans = torch.stack([_facing(one) for one in (*joints.unbind(1), target)], 1)  # (B, K + 1)
    size = spans.abs().nan_to_num(0.0).amax(1, keepdim=True).clamp_min(1)
    apart = ((spans[:, :-1] - spans[:, -1:]) / size).abs().nan_to_num(1.0)
    return apart * 0.01 + torch.arange(views, device=apart.device) * 1e-4
