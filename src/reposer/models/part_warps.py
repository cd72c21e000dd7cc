"""Part warps: ten affine maps from the pixels of a target pose to those of a source, and where each counts.

Deformable GANs (Siarohin, Sangineto, Lathuiliere, Sebe: "Deformable GANs for Pose-based Human Image
Generation", CVPR 2018) cut a person into body, head and eight limbs. A map takes a pixel (x, y) of the target
to A (x, y) + b in the source; it follows from keypoints alone:

* limb: the target's limb onto the source's, along by their lengths, across by the torsos'; where the source
  lacks it, the limb of its other side;
* body: the affine map that fits shoulders and hips best; head: the same on nose, eyes, ears and shoulders.

Ours: a ridge draws the fitted maps towards a similarity, and the singular values of every map stay within a
third and three times the ratio of the torsos; both because a torso seen from the side has no width to divide
by. People without a shoulder or a hip are no exception: the fit uses the joints that both have, the neck
among them; fewer than two, or a limb below three pixels, and there is no such map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reposer.models.texture_places import (
    FACE,
    HAIR,
    LEGS,
    LOWER,
    SHOES,
    UPPER,
    Bodies,
    facing,
    fits,
    places_by_rows,
)
from reposer.structures import PairBatch

PARTS = (
    *("body", "head", "right_thigh", "left_thigh", "right_calf", "left_calf"),
    *("right_upper_arm", "left_upper_arm", "right_forearm", "left_forearm"),
)
BODY, HEAD = 0, 1
# joints of OpenPose-18
_STARTS, _ENDS = [8, 11, 9, 12, 2, 5, 3, 6], [9, 12, 10, 13, 3, 6, 4, 7]
_OTHER_SIDE = [1, 0, 3, 2, 5, 4, 7, 6]
_NECK, _SHOULDERS, _HIPS = 1, [2, 5], [8, 11]
_BODY_JOINTS = [_NECK, *_SHOULDERS, *_HIPS]
_HEAD_JOINTS = [0, 14, 15, 16, 17]

_SHORTEST = 3.0  # pixels: a limb below it has no direction
_MOST = 3.0  # enlargement or shrinkage beyond that of the torsos
_TORSO = 0.3  # of the image's height, where a person's own torso is unknown
_RIDGE = 0.02  # of the torso's length squared
_WIDTH, _HEAD_SIDE = 0.2, 0.4  # of the torso's length: half a limb's width, half the head's side
_BEFORE = 0.1  # of the limb's length: how far its rectangle begins before the first joint
_BEHIND = [0.1, 0.1, 0.5, 0.5, 0.1, 0.1, 0.5, 0.5]  # and ends behind the second, of what is before it


@dataclass(frozen=True, slots=True)
class PartWarps:
    """The maps of B pairs, part by part, and where in the target each counts."""

    matrix: Tensor  # (B, 10, 2, 2) float32
    offset: Tensor  # (B, 10, 2) float32, pixels
    known: Tensor  # (B, 10) bool; where False, matrix and offset are finite and mean nothing
    borrowed: Tensor  # (B, 10) bool: the map leads to the limb of the source's other side
    mask: Tensor  # (B, 10, H, W) bool, inside the target's part; False where the map is unknown

    def offset_at(self, level: int) -> Tensor:
        """(B, 10, 2) of maps of 1 / 2^level the size, whose pixels are the means of 2^level x 2^level."""
        shift = 0.5 - 0.5 ** (level + 1)
        identity = torch.eye(2, device=self.matrix.device)
        away = (self.matrix - identity).sum(-1)
        return torch.add(self.offset / 2**level, away, alpha=shift)

    def mask_at(self, level: int) -> Tensor:
        """(B, 10, h, w) the masks at 1 / 2^level the size, by the nearest pixel as TensorFlow takes it."""
        return self.mask[..., :: 2**level, :: 2**level]


@torch.no_grad()
def part_warps(source: Tensor, target: Tensor, height: int, width: int) -> PartWarps:
    """The maps from the target's pose to the source's, for images of (height, width).

    Args:
        source: (B, J, 2) keypoints x, y in pixels, not finite for a missing joint.
        target: (B, J, 2) the same.

    Returns:
        maps and masks, finite for any keypoints.
    """
    with torch.autocast(source.device.type, enabled=False):
        source, target = (
            torch.where(points.isfinite(), points, torch.nan).double() for points in (source, target)
        )
        lengths = torso_lengths(source, height), torso_lengths(target, height)
        limbs, starts, known, borrowed = _limb_maps(source, target, *lengths)
        parts = [
            (limbs, *starts, known),
            _body_map(source, target, *lengths),
            _head_map(source, target, *lengths),
        ]
        matrix, to, at, known = (
            torch.cat([body, head, limb], 1) for limb, body, head in zip(*parts, strict=True)
        )
        matrix = _clamped(matrix, (lengths[0] / lengths[1])[:, None])
        offset = to - (matrix @ at[..., None])[..., 0]
        mask = part_masks(target, height, width) & known[..., None, None]
        borrowed = F.pad(borrowed, (2, 0))
    return PartWarps(matrix.float(), offset.float(), known, borrowed, mask)


def torso_lengths(joints: Tensor, height: int) -> Tensor:
    """(B,) pixels: root mean square of the sides, shoulder to hip; else neck to hips; else guessed."""
    sides = (joints[:, _HIPS] - joints[:, _SHOULDERS]).square().sum(-1).nanmean(1).sqrt()
    spine = (joints[:, _NECK] - joints[:, _HIPS].nanmean(1)).norm(dim=-1)
    length = torch.where(sides.isnan(), spine, sides)
    return torch.where(length >= _SHORTEST, length, _TORSO * height)  # False for NaN


_Part = tuple[Tensor, Tensor, Tensor, Tensor]  # matrix (B, 1, 2, 2), fixed point in source and target, known


def _body_map(source: Tensor, target: Tensor, source_length: Tensor, target_length: Tensor) -> _Part:
    """Shoulders and hips; the neck too where one of them is missing."""
    both = _present(source)[:, _BODY_JOINTS] & _present(target)[:, _BODY_JOINTS]
    whole = both[:, 1:].all(1)
    both = torch.cat([both[:, :1] & ~whole[:, None], both[:, 1:]], 1)
    points = source[:, _BODY_JOINTS], target[:, _BODY_JOINTS]
    return _fitted(*points, both, source_length, target_length, both.sum(1) >= 2)


def _head_map(source: Tensor, target: Tensor, source_length: Tensor, target_length: Tensor) -> _Part:
    """Nose, eyes and ears that both have, and the shoulders."""
    joints = [*_HEAD_JOINTS, *_SHOULDERS]
    both = _present(source)[:, joints] & _present(target)[:, joints]
    known = both[:, : len(_HEAD_JOINTS)].any(1)
    return _fitted(source[:, joints], target[:, joints], both, source_length, target_length, known)


def _present(joints: Tensor) -> Tensor:
    return ~joints.isnan().any(-1)


def _fitted(
    source: Tensor, target: Tensor, both: Tensor, source_length: Tensor, target_length: Tensor, known: Tensor
) -> _Part:
    """The affine map of (B, P, 2) points by least squares, drawn towards the best similarity.

    A = B + (sum s t^T - B sum t t^T) (sum t t^T + r I)^-1 with s and t from the means and B the similarity:
    for equal poses the identity, exactly. One point alone: the torsos' ratio.
    """
    weight = both[..., None].double()
    count = weight.sum(1, keepdim=True).clamp_min(1)
    means, centered = [], []
    for points in (source, target):
        points = points.nan_to_num(0.0)
        mean = (points * weight).sum(1, keepdim=True) / count
        means.append(mean)
        centered.append((points - mean) * weight)
    s, t = centered
    square = t.square().sum((1, 2))
    real, turned = (t * s).sum((1, 2)), (t[..., 0] * s[..., 1] - t[..., 1] * s[..., 0]).sum(1)
    spread = square > 1e-6
    real = torch.where(spread, real / square.clamp_min(1e-6), source_length / target_length)
    turned = torch.where(spread, turned / square.clamp_min(1e-6), 0.0)
    similar = torch.stack([real, -turned, turned, real], -1).view(-1, 2, 2)
    mixed, own = s.transpose(1, 2) @ t, t.transpose(1, 2) @ t
    ridge = (_RIDGE * target_length.square())[:, None, None] * torch.eye(2, device=s.device, dtype=s.dtype)
    matrix = similar + (mixed - similar @ own) @ _inverse(own + ridge)
    return matrix[:, None], means[0], means[1], known[:, None]


def _inverse(matrix: Tensor) -> Tensor:
    """Of (..., 2, 2), closed."""
    (a, b), (c, d) = matrix[..., 0, :].unbind(-1), matrix[..., 1, :].unbind(-1)
    adjugate = torch.stack([d, -b, -c, a], -1).view(matrix.shape)
    return adjugate / (a * d - b * c)[..., None, None]


def _limb_maps(
    source: Tensor, target: Tensor, source_length: Tensor, target_length: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor, Tensor]:
    """(B, 8): matrices, first joints in source and target, which are known, which are of the other side."""
    start, vector = source[:, _STARTS], source[:, _ENDS] - source[:, _STARTS]
    there = vector.norm(dim=-1) >= _SHORTEST  # False for NaN
    borrowed = ~there & there[:, _OTHER_SIDE]
    start, vector = (
        torch.where(borrowed[..., None], own[:, _OTHER_SIDE], own).nan_to_num(0.0) for own in (start, vector)
    )
    at, wanted = target[:, _STARTS].nan_to_num(0.0), target[:, _ENDS] - target[:, _STARTS]
    length = wanted.norm(dim=-1)
    known = (there | borrowed) & (length >= _SHORTEST)
    along = (wanted / length[..., None]).nan_to_num(0.0, 0.0, 0.0)
    own_length = vector.norm(dim=-1)
    own_along = (vector / own_length[..., None]).nan_to_num(0.0, 0.0, 0.0)
    gain = torch.where(known, own_length / length, 1.0)[..., None, None]
    wide = (source_length / target_length)[:, None, None, None]
    matrix = gain * _outer(own_along, along) + wide * _outer(_turned(own_along), _turned(along))
    return matrix, (start, at), known, borrowed & known


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[..., :, None] * b[..., None, :]


def _turned(vectors: Tensor) -> Tensor:
    """Vectors (..., 2) turned by a quarter."""
    return torch.stack([-vectors[..., 1], vectors[..., 0]], -1)


def _clamped(matrix: Tensor, ratio: Tensor) -> Tensor:
    """(B, P, 2, 2) with singular values within a third and three times the ratio (B, 1), signs kept.

    A 2x2 matrix is a similarity plus a mirrored one, of sizes Q and R; its singular values are Q + R, Q - R.
    """
    (a, b), (c, d) = matrix[..., 0, :].unbind(-1), matrix[..., 1, :].unbind(-1)
    plain, mirrored = torch.stack([a + d, c - b], -1) / 2, torch.stack([a - d, c + b], -1) / 2
    q, r = plain.norm(dim=-1), mirrored.norm(dim=-1)
    large, small = q + r, q - r
    sign = torch.where(small < 0, -1.0, 1.0)
    low, high = ratio / _MOST, ratio * _MOST
    large, small = large.clamp(low, high), small.abs().clamp(low, high) * sign
    x = torch.tensor([1.0, 0.0], device=matrix.device, dtype=matrix.dtype)
    plain, mirrored = (
        torch.where((size > 1e-9)[..., None], part / size.clamp_min(1e-9)[..., None], x) * wanted[..., None]
        for part, size, wanted in ((plain, q, (large + small) / 2), (mirrored, r, (large - small) / 2))
    )
    (e, h), (f, g) = plain.unbind(-1), mirrored.unbind(-1)
    return torch.stack([e + f, g - h, g + h, e - f], -1).view(matrix.shape)


def part_masks(joints: Tensor, height: int, width: int) -> Tensor:
    """(B, 10, H, W) bool: everything for the body, a square for the head, a rectangle for each limb."""
    length = torso_lengths(joints, height)[:, None, None, None]
    x = torch.arange(width, device=joints.device, dtype=joints.dtype)
    y = torch.arange(height, device=joints.device, dtype=joints.dtype)[:, None]
    head = joints[:, _HEAD_JOINTS].nanmean(1)[..., None, None]  # (B, 2, 1, 1)
    square = torch.maximum((x - head[:, :1]).abs(), (y - head[:, 1:]).abs()) <= _HEAD_SIDE * length
    start, vector = joints[:, _STARTS], joints[:, _ENDS] - joints[:, _STARTS]
    long = vector.norm(dim=-1)[..., None, None]
    u = vector[..., None, None] / long[:, :, None]  # (B, 8, 2, 1, 1)
    dx, dy = x - start[..., :1, None], y - start[..., 1:, None]
    t, n = dx * u[:, :, 0] + dy * u[:, :, 1], dy * u[:, :, 0] - dx * u[:, :, 1]
    behind = torch.tensor(_BEHIND, device=joints.device, dtype=joints.dtype)[:, None, None]
    limbs = (
        (t >= -_BEFORE * long) & (t <= long + behind * (1 + _BEFORE) * long) & (n.abs() <= _WIDTH * length)
    )
    return torch.cat([torch.ones_like(square), square, limbs], 1)


# ---- Maps of features, warped.


def deformable_skip(maps: Tensor, warps: PartWarps, level: int, nearest: bool = False) -> Tensor:
    """Feature maps of the source, part by part where the target's parts are: the largest of all parts.

    At most pixels only the body's map counts, so the others are sampled in their masks alone.

    Args:
        maps: (B, C, h, w) at 1 / 2^level of the size that the warps were made for.
        warps: of the B pairs.
        nearest: take the nearest value, not a mean of four.

    Returns:
        (B, C, h, w) float32, at least 0: some part is absent at every pixel, and counts as 0.
    """
    batch, channels, height, width = maps.shape
    with torch.autocast(maps.device.type, enabled=False):
        flat = maps.float().permute(0, 2, 3, 1).reshape(-1, channels)
        mask = warps.mask_at(level)
        at, values = _warped(flat, mask[:, :HEAD], warps, level, BODY, nearest)
        out = torch.zeros_like(flat).index_copy(0, at, values.relu())
        at, values = _warped(flat, mask[:, HEAD:], warps, level, HEAD, nearest)
        out = out.scatter_reduce(0, at[:, None].expand(-1, channels), values, "amax")
        return out.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _warped(
    flat: Tensor, mask: Tensor, warps: PartWarps, level: int, first: int, nearest: bool
) -> tuple[Tensor, Tensor]:
    """Of the parts from ``first`` on: their pixels (n,) in the flat maps (B h w, C), and values (n, C).

    Every place is the weighted sum of four pixels; those outside count as 0.
    """
    height, width = mask.shape[2:]
    picture, part, y, x = mask.nonzero(as_tuple=True)
    own = picture * (height * width)
    matrix, offset = warps.matrix[picture, part + first], warps.offset_at(level)[picture, part + first]
    places = (matrix * torch.stack([x, y], -1)[:, None]).sum(-1) + offset
    if nearest:
        places = places.round()
    corner = places.floor()
    share = places - corner
    index, weight = [], []
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        column, row = corner[:, 0] + right, corner[:, 1] + down
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index.append(torch.where(inside, row * width + column, 0.0).long() + own)
        portion = (share[:, 0] if right else 1 - share[:, 0]) * (share[:, 1] if down else 1 - share[:, 1])
        weight.append(portion * inside)
    values = F.embedding_bag(
        torch.stack(index, 1), flat, mode="sum", per_sample_weights=torch.stack(weight, 1)
    )
    return own + y * width + x, values


# ---- The warps as a flow: what stands in for a body model where a network learns a flow.

VISIBLE, HIDDEN, BACKGROUND = range(3)
_FOREARMS = slice(8, 10)


class KeypointFlow(NamedTuple):
    """Where in the source each pixel of the target's person comes from, by keypoints."""

    flow: (
        Tensor  # (B, 2, H, W) float32 x, y in pixels, to be added to the pixel's own place; 0 off the person
    )
    visibility: Tensor  # (B, H, W) int64: VISIBLE in the source, HIDDEN, or BACKGROUND


@torch.no_grad()
def keypoint_flow(batch: PairBatch) -> KeypointFlow:
    """The flow of the part warps on the target's person, smaller parts in front of larger ones.

    Off all limbs and the head the body's map serves upper garments and arms; other garments, and pixels whose
    keypoints are missing, go by the rows of their group of labels. A pixel is visible if it leads into the
    frame, onto the source's person and onto its own group; not through a borrowed limb, not, from torso or
    thigh, to where the source holds a forearm, and not on chest or head of a person who is turned around.

    Args:
        batch: B pairs; keypoints, parsing maps and masks of both are read.
    """
    with torch.autocast(batch.source_image.device.type, enabled=False):
        source = Bodies.of(batch.source_parsing, batch.source_mask, batch.source_keypoints)
        target = Bodies.of(batch.target_parsing, batch.target_mask, batch.target_keypoints)
        height, width = target.group.shape[1:]
        warps = part_warps(batch.source_keypoints, batch.target_keypoints, height, width)
        picture, y, x = target.at
        group = target.group.flatten().index_select(0, target.pixels)
        order = torch.arange(1, len(PARTS) + 1, device=x.device)
        top = (warps.mask[picture, :, y, x] * order).amax(1)  # 0: none
        below = torch.isin(group, torch.tensor([HAIR, FACE, LOWER, LEGS, SHOES], device=x.device))
        by_part = (top > 1 + BODY) | ((top == 1 + BODY) & ~below)
        part = (top - 1).clamp_min(0)
        xy = torch.stack([x, y], 1).float()
        places = (warps.matrix[picture, part] @ xy[..., None])[..., 0] + warps.offset[picture, part]
        places = torch.where(by_part[:, None], places, places_by_rows(source, target))
        forearms = part_masks(batch.source_keypoints.float(), height, width)[:, _FOREARMS].any(1)
        column, row = (
            places.round()[:, i].clamp(0, most - 1).long() for i, most in enumerate((width, height))
        )
        covered = forearms[picture, row, column] & (part <= HEAD + 2) & (part != HEAD)
        turned = (facing(source.joints) * facing(target.joints) < 0)[picture]
        turned = turned & torch.where(by_part, part <= HEAD, group <= UPPER)
        away = by_part & (warps.borrowed[picture, part] | covered)
        visible = fits(source, places, picture, group) & ~away & ~turned
        flow = torch.zeros(len(batch) * height * width, 2, device=x.device)
        flow = flow.index_copy(0, target.pixels, places - xy).view(-1, height, width, 2).permute(0, 3, 1, 2)
        seen = torch.full((len(flow) * height * width,), BACKGROUND, device=x.device)
        seen = seen.index_copy(0, target.pixels, torch.where(visible, VISIBLE, HIDDEN))
    return KeypointFlow(flow, seen.view(-1, height, width))
