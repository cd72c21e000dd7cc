"""Places of texture: where in the source each pixel of the target's person comes from.

For each of them three places are tried, and the best counts (all in pixels):

1. its own part: a limb by the map that takes the target's limb to the source's, as in deformable GANs
   (Siarohin et al., CVPR 2018); a large head by one scale and shift, so that a face keeps its proportions, a
   small one by the rows of hair and face together; the torso by its height between shoulders and hips;
2. the same garment: its group of labels row by row, by height in the group and place between the row's ends;
3. the limb of the other side, mirrored.

A place counts if it lies in the frame, on the source's person, and on the same group of labels; on a large
head that shows its face in both, hair and face are one. All persons'
pixels are worked on at once, in one batch of tensors, and no result depends on the others. Label maps of real
people are rough, so groups are coarse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Groups of LIP-20's labels; a person's pixel without a known label belongs to the last
BACKGROUND, HAIR, FACE, UPPER, LOWER, ARMS, LEGS, SHOES, REST = range(9)
GROUPS = ("background", "hair", "face", "upper", "lower", "arms", "legs", "shoes", "rest")
NUM_GROUPS = len(GROUPS)
_GROUP_OF_LABEL = torch.tensor(
    [BACKGROUND, HAIR, HAIR, ARMS, FACE, UPPER, UPPER, UPPER, LEGS, LOWER]
    + [UPPER, UPPER, LOWER, FACE, ARMS, ARMS, LEGS, LEGS, SHOES, SHOES]
    + [REST] * 236
)

# joints of OpenPose-18 at the ends of limbs: of the arms, then of the legs
_STARTS, _ENDS = [2, 3, 5, 6, 8, 9, 11, 12], [3, 4, 6, 7, 9, 10, 12, 13]
_OTHER_SIDE = [2, 3, 0, 1, 6, 7, 4, 5]
_NECK, _SHOULDERS, _HIPS = 1, [2, 5], [8, 11]

# how far a pixel is to be trusted, by where it comes from; a row of arms may span both
OWN, ROW, MIRRORED, ARM_ROW = 1.0, 0.75, 0.5, 0.25
_ARM_REACH = 0.16  # of the torso's length: a garment's pixel so near to an arm's bone is a sleeve's
_SHORTEST = 3.0  # pixels: a limb below it has no direction
_MOST = 3.0  # the largest enlargement or shrinkage of a part
_TORSOS = 3.4  # of an adult's height
_LARGE = 40.0  # rows of a source's head from which on it is large
_CROP = 128  # rows of a picture, up to which no head counts as large: label maps of small crops err so far
_TAIL = 0.02  # of a head's pixels that lie above its upper end, and below its lower one
_CLOSER = 4 / 3  # a head that is too narrow is shown at most so much larger than its height asks for


# ---- What is known of a person.


@dataclass(frozen=True, slots=True)
class Bodies:
    """N people by their parts: everything that one of them tells alone. P: pixels on all their persons."""

    group: Tensor  # (N, H, W) int64
    joints: Tensor  # (N, J, 2) float32, NaN for a missing one
    torso: Tensor  # (N,) length of the torso in pixels, guessed from the mask's height where it is unknown
    at: Tensor  # (3, P) picture, y and x of the persons' pixels, in this order
    count: Tensor  # (N, 10, H) float32 pixels of each group in each row; the last plane is the head
    first: Tensor  # (N, 10, H) x of the first of them
    last: Tensor  # (N, 10, H) x of the last

    @classmethod
    def of(cls, parsing: Tensor, mask: Tensor, keypoints: Tensor) -> Bodies:
        number, height, width = mask.shape
        group = _GROUP_OF_LABEL.to(parsing.device).index_select(0, parsing.flatten().int()).view_as(parsing)
        group = torch.where(group == BACKGROUND, REST, group) * mask
        at = torch.stack(group.nonzero(as_tuple=True))
        picture, y, x = at
        own = group.flatten().index_select(0, (picture * height + y) * width + x)
        line = (picture * NUM_GROUPS + own) * height + y
        shape, x = (number, NUM_GROUPS, height), x.float()
        count = torch.bincount(line, minlength=number * NUM_GROUPS * height).view(shape).float()
        empty = torch.full((count.numel(),), float(width), device=x.device)
        first = empty.scatter_reduce(0, line, x, "amin").view(shape)
        last = (-empty).scatter_reduce(0, line, x, "amax").view(shape)
        head = slice(HAIR, FACE + 1)
        count = torch.cat([count, count[:, head].sum(1, keepdim=True)], 1)
        first = torch.cat([first, first[:, head].amin(1, keepdim=True)], 1)
        last = torch.cat([last, last[:, head].amax(1, keepdim=True)], 1)
        joints = keypoints.float()
        return cls(group, joints, _torso(joints, mask), at, count, *_smooth(first, last, count > 0))

    @property
    def pixels(self) -> Tensor:
        """(P,) places of the persons' pixels in (N, H, W), ascending."""
        picture, y, x = self.at
        height, width = self.group.shape[1:]
        places: Tensor = (picture * height + y) * width + x
        return places

    def repeat(self, times: int) -> Bodies:
        """Each person so many times in a row."""
        if times == 1:
            return self
        group, joints, torso, count, first, last = (
            field.repeat_interleave(times, 0)
            for field in (self.group, self.joints, self.torso, self.count, self.first, self.last)
        )
        return Bodies(group, joints, torso, torch.stack(group.nonzero(as_tuple=True)), count, first, last)

    def plane(self, number: int) -> Bodies:
        """With the rows of one group alone."""
        rows = (field[:, number : number + 1] for field in (self.count, self.first, self.last))
        return Bodies(self.group, self.joints, self.torso, self.at, *rows)


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


def _row_tables(source: Bodies, target: Bodies) -> _Rows:
    """Of all planes: a row's y is the quantile of its share of the plane's pixels above it."""
    above = target.count.cumsum(-1)
    share = (above - target.count / 2) / above[..., -1:].clamp_min(1)
    row, y = _rows_at(source.count, share * source.count.sum(-1, keepdim=True))
    return y, *_across(source, target, row)


def _rows_at(count: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The rows (..., K) that hold the ``wanted``-th pixels, counted from above, and y within them."""
    upto = count.cumsum(-1)
    row = torch.searchsorted(upto, wanted).clamp_max(count.shape[-1] - 1)
    within = (wanted - upto.gather(-1, row)) / count.gather(-1, row).clamp_min(1) + 1  # 0 to 1
    return row, row + within - 0.5


def _across(source: Bodies, target: Bodies, row: Tensor) -> tuple[Tensor, Tensor]:
    """Gain and offset that take x between the ends of the target's rows to the source's at ``row``."""
    first, last = source.first.gather(-1, row), source.last.gather(-1, row)
    span = target.last - target.first
    gain = torch.where(span >= 1, (last - first) / span.clamp_min(1), 0.0)
    return gain, torch.where(span >= 1, first - gain * target.first, (first + last) / 2)


def _torso_tables(source: Bodies, target: Bodies, rows: _Rows) -> _Rows:
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


# ---- Large heads: one scale and shift, as tables of rows.


@dataclass(frozen=True, slots=True)
class _Heads:
    """Tables for hair and face of N people, and where they serve instead of rows."""

    tables: _Rows | None  # (N, H) each; none where no head is large
    large: Tensor  # (N,) bool
    one: Tensor  # (N,) bool: large, and both show a face: what is hair there may be face here

    @classmethod
    def of(cls, source: Bodies, target: Bodies, opposite: Tensor) -> _Heads:
        """``opposite`` (N,): source and target face different ways.

        The scale is that of the heights, less where the source's head is too narrow for it; the middles of
        the heads lie on each other, across those of the faces where both have one.
        """
        height = source.count.shape[-1]
        if height <= _CROP:
            return cls(None, torch.zeros_like(opposite), torch.zeros_like(opposite))
        (high, low, wide, x, face), (high_t, low_t, wide_t, x_t, face_t) = map(_head_extent, (source, target))
        large = (low - high >= _LARGE) & (low_t - high_t >= 1)
        scale = (low - high) / (low_t - high_t).clamp_min(1)
        scale = torch.minimum(scale, torch.maximum(wide / wide_t.clamp_min(1), scale / _CLOSER))
        scale = scale.clamp(1 / _MOST, _MOST)
        both = (face > 0) & (face_t > 0)
        plane = torch.where(both, FACE, NUM_GROUPS)[:, None]
        shift = (x.gather(1, plane) - scale[:, None] * x_t.gather(1, plane)).expand(-1, height)
        rows = torch.arange(height, device=scale.device)
        y = (high + low)[:, None] / 2 + scale[:, None] * (rows - (high_t + low_t)[:, None] / 2)
        return cls((y, scale[:, None].expand_as(y), shift), large, large & both & ~opposite)


def _head_extent(person: Bodies) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of heads the upper and the lower end and the mean width, x of the middles (N, 10) of all planes, and
    the face's pixels; (N,) else.
    """
    head = person.count[:, NUM_GROUPS]
    total = person.count.sum(-1)
    ends = total[:, NUM_GROUPS:] * torch.tensor([_TAIL, 1 - _TAIL], device=head.device)
    high, low = _rows_at(head, ends)[1].unbind(-1)
    width = (person.last - person.first)[:, NUM_GROUPS] + 1
    middle = (person.first + person.last) / 2
    return (
        high,
        low,
        (width * head).sum(-1) / total[:, NUM_GROUPS].clamp_min(1),
        (middle * person.count).sum(-1) / total.clamp_min(1),
        total[:, FACE],
    )


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


def _limbs(source: Bodies, target: Bodies, picture: Tensor, xy: Tensor, group: Tensor) -> _Limbs:
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
    line = _planes(table.permute(2, 1, 0), half)  # (7, 4, P)
    x, y = xy.T.contiguous()
    t = torch.addcmul(torch.addcmul(line[2], line[0], x), line[1], y)  # (4, P) along the limb
    n = torch.addcmul(torch.addcmul(line[5], line[3], x), line[4], y)  # across
    beyond = t - torch.minimum(t.clamp_min(0), line[6])
    square, nearest = torch.addcmul(beyond * beyond, n, n).min(0)
    of_leg = (group == LOWER) | (group == LEGS) | (group == SHOES)
    reach = _ARM_REACH * target.torso
    near = square < (reach * reach).index_select(0, picture)
    serves = torch.where(group == UPPER, near, (of_arm | of_leg) & square.isfinite())

    own, own_known = _limb_maps(source, target, frames, lengths, list(range(8)), 1.0)
    other, other_known = _limb_maps(source, target, frames, lengths, _OTHER_SIDE, -1.0)
    which = half * 4 + nearest
    maps = _planes(torch.cat([own, other], 2).view(-1, 4, 3).permute(2, 1, 0), which)  # (3, 4, P)
    places = torch.addcmul(torch.addcmul(maps[2], maps[0], x), maps[1], y).T  # (P, 4)
    return _Limbs(
        serves,
        places[:, :2],
        (known & own_known).flatten().index_select(0, which),
        places[:, 2:],
        (known & other_known).flatten().index_select(0, which) & serves,
    )


def _planes(table: Tensor, index: Tensor) -> Tensor:
    """(A, B, M) -> (A, B, P): plane by plane, which leaves each in one piece of memory."""
    rows = [row.index_select(0, index) for row in table.flatten(0, 1).contiguous()]
    return torch.stack(rows).view(*table.shape[:2], -1)


def _turned(vectors: Tensor) -> Tensor:
    """Vectors (..., 2) turned by a quarter."""
    return torch.stack([-vectors[..., 1], vectors[..., 0]], -1)


def _limb_maps(
    source: Bodies, target: Bodies, frames: Tensor, lengths: Tensor, order: list[int], side: float
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


def places_of(source: Bodies, target: Bodies) -> tuple[Tensor, Tensor]:
    """Places (P, 2) x, y in the source of the target persons' pixels, and how far they are to be trusted."""
    height = target.group.shape[1]
    picture, y, x = target.at
    group = target.group.flatten().index_select(0, target.pixels)
    xy = torch.stack([x, y], 1).float()
    rows = _row_tables(source, target)
    part = [table.clone() for table in rows]
    for table, upper in zip(part, _torso_tables(source, target, rows), strict=True):
        table[:, HAIR] = table[:, FACE] = table[:, NUM_GROUPS]
        table[:, UPPER] = upper
    opposite = facing(source.joints) * facing(target.joints) < 0
    heads = _Heads.of(source, target, opposite)
    if heads.tables is not None:
        for table, head in zip(part, heads.tables, strict=True):
            for plane in (HAIR, FACE):
                table[:, plane] = torch.where(heads.large[:, None], head, table[:, plane])
    line = (picture * (NUM_GROUPS + 1) + group) * height + y
    limbs = _limbs(source, target, picture, xy, group)
    places = torch.where(limbs.serves[:, None], limbs.places, _by_rows(part, line, xy))
    behind = opposite.index_select(0, picture) & (group <= UPPER)  # a chest is no back
    seen = torch.where(behind, MIRRORED, OWN)
    of_head = (group == HAIR) | (group == FACE)
    one = of_head & heads.one.index_select(0, picture)
    validity = (fits(source, places, picture, group, one) & (limbs.usable | ~limbs.serves)) * seen
    left = (validity < OWN).nonzero()[:, 0]  # pixels for which the other places may be better
    stretched = of_head & heads.large.index_select(0, picture)  # rows would tear a face that is seen so well
    picture, group, seen, stretched = (x.index_select(0, left) for x in (picture, group, seen, stretched))
    by_row = torch.where(group == ARMS, ARM_ROW, seen.clamp_max(ROW)) * ~stretched
    garment = _by_rows(rows, line.index_select(0, left), xy.index_select(0, left))
    mirrored, usable = limbs.mirrored.index_select(0, left), limbs.mirror_usable.index_select(0, left)
    best, value = places.index_select(0, left), validity.index_select(0, left)
    for others, worth in (
        (garment, fits(source, garment, picture, group) * by_row),
        (mirrored, (fits(source, mirrored, picture, group) & usable) * MIRRORED),
    ):
        better = worth > value
        best = torch.where(better[:, None], others, best)
        value = torch.where(better, worth, value)
    return places.index_copy(0, left, best), validity.index_copy(0, left, value)


def places_by_rows(source: Bodies, target: Bodies) -> Tensor:
    """Places (P, 2) x, y in the source of the target persons' pixels by the rows of their groups alone."""
    picture, y, x = target.at
    group = target.group.flatten().index_select(0, target.pixels)
    line = (picture * (NUM_GROUPS + 1) + group) * target.group.shape[1] + y
    return _by_rows(_row_tables(source, target), line, torch.stack([x, y], 1).float())


def _by_rows(tables: _Rows | list[Tensor], line: Tensor, xy: Tensor) -> Tensor:
    """(P, 2) places of pixels by their lines of the row tables."""
    y, gain, offset = torch.stack([table.flatten() for table in tables], 1).index_select(0, line).unbind(1)
    return torch.stack([gain * xy[:, 0] + offset, y], 1)


def fits(
    source: Bodies, places: Tensor, picture: Tensor, group: Tensor, one_head: Tensor | None = None
) -> Tensor:
    """(P,) whether the places lie in the frame and on the pixel's own group in the source.

    Hair and face count as one for the pixels ``one_head`` (P,).
    """
    height, width = source.group.shape[1:]
    x, y = places.round().unbind(1)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long() + picture * (height * width)
    found = source.group.flatten().index_select(0, index)
    same = found == group
    if one_head is not None:
        same |= one_head & ((found == HAIR) | (found == FACE))
    return inside & same


def facing(joints: Tensor) -> Tensor:
    """(N,) x from the left to the right shoulder, negative for a front; NaN when one is missing."""
    return joints[:, _SHOULDERS[0], 0] - joints[:, _SHOULDERS[1], 0]
