"""Parallel rays against round cones: which primitive is in front at every sample, and how far away.

A round cone is the convex hull of two spheres. Each has its own affine stretch (a 3x3 matrix applied to
camera space), so that trunks are wider than deep; in the stretched space the ray is still a straight line
and the cone is round. The quadratic is that of a cone of revolution tangent to both spheres, written for a
ray whose component along itself is removed.

Camera space (meters): x right, y up, z towards the viewer; all rays run along -z (a camera far away). Depth
grows away from the viewer. Work is done per tile of 8x8 samples, and only in tiles that a primitive's
outline can touch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TILE = 8

Float = NDArray[np.float64]
Single = NDArray[np.float32]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cones:
    """P round cones in camera space."""

    a: Float  # (P, 3) center of the first sphere
    b: Float  # (P, 3) center of the second
    radius_a: Float  # (P,) in the stretched space
    radius_b: Float  # (P,)
    stretch: Float  # (P, 3, 3) symmetric: camera space -> the space in which the cone is round
    clip: Float  # (P, 2) kept part of the axis, 0 at a and 1 at b, to cut flat hems; (-inf, inf) keeps all
    reach: Float  # (P, 2) the spheres' largest radii in camera space, for the bounding boxes


@dataclass(frozen=True, slots=True)
class Grid:
    """Samples of an image: sample (row, column) looks along x = (column - x0) / sx, y = (y0 - row) / sy."""

    rows: int  # multiple of TILE
    columns: int  # multiple of TILE
    sx: float  # samples a meter
    sy: float
    x0: float  # column of x = 0
    y0: float  # row of y = 0


@dataclass(frozen=True, slots=True)
class Hits:
    """What the rays of C tiles met first."""

    cells: Index  # (C,) tile number, row-major over the grid
    primitive: NDArray[np.int32]  # (C, 64) index into Cones, -1 where nothing was met
    depth: Single  # (C, 64) meters, inf where nothing was met


_CHUNK = 256  # tiles worked on at a time, so that the intermediate arrays stay in the cache
_ORIGIN = 4.0  # meters in front of the person from which depth is counted, so that it is positive
_LOW_BITS = 255  # of a depth's float32: they carry the primitive; what is lost is a fifth of a millimeter
MAX_CONES = _LOW_BITS + 1


def cast(cones: Cones, grid: Grid) -> Hits:
    """The nearest primitive of every sample in every tile that any primitive touches.

    Raises:
        ValueError: more than MAX_CONES primitives.
    """
    if len(cones.a) > MAX_CONES:
        raise ValueError(f"{len(cones.a)} cones, at most {MAX_CONES} fit")
    cell, owner = _touched_tiles(cones, grid)
    if not len(cell):
        return Hits(cell, np.empty((0, TILE**2), np.int32), np.empty((0, TILE**2), np.float32))
    numbers = _coefficients(cones, grid, cell, owner)
    keys = np.empty((len(cell), TILE**2), np.int32)
    is_cut = (np.abs(cones.clip).min(1) < np.inf)[owner]
    for pairs, cut in ((np.flatnonzero(~is_cut), False), (np.flatnonzero(is_cut), True)):
        for start in range(0, len(pairs), _CHUNK):
            part = pairs[start : start + _CHUNK]
            depth = _intersect(_Pairs(*numbers[:, part]), grid, cut)
            # Positive float32 order as their bits: one integer minimum finds the depth and its primitive.
            key = depth.reshape(TILE**2, -1).view(np.int32)
            key &= ~_LOW_BITS
            key |= owner[part].astype(np.int32)
            keys[part] = key.T
    starts = np.flatnonzero(np.concatenate(([True], cell[1:] != cell[:-1])))
    nearest = np.minimum.reduceat(keys, starts, axis=0)
    met = nearest < np.array(np.inf, np.float32).view(np.int32)
    primitive = np.where(met, nearest & _LOW_BITS, -1)
    nearest &= ~_LOW_BITS
    depth = nearest.view(np.float32)
    depth -= np.float32(_ORIGIN)
    return Hits(cell[starts], primitive.astype(np.int32), depth)


def _touched_tiles(cones: Cones, grid: Grid) -> tuple[Index, Index]:
    """Pairs (tile, primitive) whose outlines may meet, ordered by tile."""
    columns = np.stack((cones.a[:, 0], cones.b[:, 0]), 1) * grid.sx + grid.x0  # (P, 2)
    rows = grid.y0 - np.stack((cones.a[:, 1], cones.b[:, 1]), 1) * grid.sy
    wide, high = cones.reach * grid.sx, cones.reach * grid.sy
    across, down = grid.columns // TILE, grid.rows // TILE
    left = np.clip(np.floor((columns - wide).min(1) / TILE), 0, across).astype(np.int64)
    right = np.clip(np.floor((columns + wide).max(1) / TILE) + 1, 0, across).astype(np.int64)
    top = np.clip(np.floor((rows - high).min(1) / TILE), 0, down).astype(np.int64)
    bottom = np.clip(np.floor((rows + high).max(1) / TILE) + 1, 0, down).astype(np.int64)
    width = np.maximum(right - left, 0)
    count = width * np.maximum(bottom - top, 0)
    owner = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    tile_row, tile_column = np.divmod(within, np.maximum(width[owner], 1))
    tile_row, tile_column = tile_row + top[owner], tile_column + left[owner]
    keep = _near_outline(cones, grid, owner, tile_row, tile_column)
    cell, owner = (tile_row * across + tile_column)[keep], owner[keep]
    order = np.argsort(cell, kind="stable")
    return cell[order], owner[order]


def _near_outline(cones: Cones, grid: Grid, owner: Index, row: Index, column: Index) -> NDArray[np.bool_]:
    """Whether the tile's circle meets the capsule around the projected axis; drops the corners of boxes."""
    x = ((column + 0.5) * TILE - 0.5 - grid.x0) / grid.sx
    y = (grid.y0 - ((row + 0.5) * TILE - 0.5)) / grid.sy
    a, b = cones.a[owner, :2], cones.b[owner, :2]
    px, py = x - a[:, 0], y - a[:, 1]
    dx, dy = b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
    along = np.clip((px * dx + py * dy) / np.maximum(dx * dx + dy * dy, 1e-12), 0.0, 1.0)
    px, py = px - along * dx, py - along * dy
    limit = cones.reach.max(1)[owner] + 0.5 * TILE * np.hypot(1 / grid.sx, 1 / grid.sy)
    keep: NDArray[np.bool_] = px * px + py * py <= limit * limit
    return keep


class _Pairs(NamedTuple):
    """The numbers of T (tile, primitive) pairs, each (T,) float32; see _intersect."""

    shift: Single
    shift_x: Single
    shift_y: Single
    g: Single
    g_x: Single
    g_y: Single
    inside: Single
    inside_x: Single
    inside_y: Single
    xx: Single
    yy: Single
    xy: Single
    other: Single
    m2: Single
    d2: Single
    solid: Single
    k2: Single
    slope: Single
    inverse: Single
    scale: Single
    offset: Single
    low: Single
    high: Single


def _coefficients(cones: Cones, grid: Grid, cell: Index, owner: Index) -> Single:
    """The rows of _Pairs (23, T), with values and slopes at each tile's first sample.

    With M the stretch, the ray through (x, y) is M(x, y, 0) + t r. ``across`` means without the component
    along r.
    """
    M = cones.stretch
    length = np.sqrt((M[:, :, 2] ** 2).sum(1))
    ray = -M[:, :, 2] / length[:, None]
    axis = np.einsum("pij,pj->pi", M, cones.b - cones.a)
    start = np.einsum("pij,pj->pi", M, cones.a)

    def dot(u: Float, v: Float) -> Float:
        product: Float = np.einsum("pi,pi->p", u, v)
        return product

    shift_x, shift_y, back = dot(M[:, :, 0], ray), dot(M[:, :, 1], ray), dot(start, ray)
    x_across, y_across = M[:, :, 0] - ray * shift_x[:, None], M[:, :, 1] - ray * shift_y[:, None]
    from_a = start - ray * back[:, None]
    m0, m2, rr = dot(axis, axis), dot(axis, ray), cones.radius_a - cones.radius_b
    d2 = m0 - rr * rr  # <= 0 where one sphere holds the other: then there is no cone between them
    k2 = d2 - m2 * m2
    k2 = np.where(np.abs(k2) < 1e-9, 1e-9, k2)
    solid, offset = np.maximum(d2, 0.0), rr * cones.radius_a
    g_x, g_y = dot(axis, x_across), dot(axis, y_across)
    xx, yy, xy = dot(x_across, x_across), dot(y_across, y_across), 2.0 * dot(x_across, y_across)
    other = cones.radius_b**2 - cones.radius_a**2 + 2.0 * offset - m0 + m2 * m2
    same = (xx, yy, xy, other, m2, d2, solid, k2 * solid, m2 / k2, 1.0 / k2, 1.0 / length, offset,
            cones.clip[:, 0] * m0, cones.clip[:, 1] * m0)  # fmt: skip
    by_place = (shift_x, shift_y, -back - _ORIGIN * length, g_x, g_y, -dot(axis, from_a) - offset, xx, yy, xy,
                2.0 * dot(x_across, from_a), 2.0 * dot(y_across, from_a),
                cones.radius_a**2 - dot(from_a, from_a))  # fmt: skip
    shift_x, shift_y, shift, g_x, g_y, g, xx, yy, xy, to_x, to_y, inside = np.array(by_place)[:, owner]
    row, column = np.divmod(cell, grid.columns // TILE)
    x = (column * TILE - grid.x0) / grid.sx
    y = (grid.y0 - row * TILE) / grid.sy
    numbers = np.empty((len(_Pairs._fields), len(owner)), np.float32)
    numbers[0:3] = shift + shift_x * x + shift_y * y, shift_x, shift_y
    numbers[3:6] = g + g_x * x + g_y * y, g_x, g_y
    numbers[6] = inside - (xx * x + xy * y - to_x) * x - (yy * y - to_y) * y
    numbers[7] = 2.0 * xx * x + xy * y - to_x
    numbers[8] = 2.0 * yy * y + xy * x - to_y
    numbers[9:] = np.array(same, np.float32)[:, owner]
    return numbers


def _intersect(c: _Pairs, grid: Grid, cut: bool) -> Single:
    """(8, 8, T) depth plus _ORIGIN where each sample's ray enters the tile's primitive, inf where it passes
    by.

    g is the foot on the axis (times its length squared, from where the first sphere touches the cone) for t
    = 0; inside_a and inside_b are radius squared minus the squared distance of the ray from each center.
    The cone's discriminant is then d2 (g^2 + k2 inside_a). Square roots of negative numbers are NaN: the
    ray passes by.
    """
    dx = (np.arange(TILE, dtype=np.float32) / np.float32(grid.sx))[None, :, None]
    dy = (-np.arange(TILE, dtype=np.float32) / np.float32(grid.sy))[:, None, None]
    infinite = np.float32(np.inf)
    g = (c.g + c.g_y * dy) + c.g_x * dx
    inside_a = (c.inside - (c.inside_y + c.yy * dy) * dy) - (c.inside_x + c.xx * dx) * dx
    inside_a -= (c.xy * dx) * dy
    inside_b = g + g
    inside_b += inside_a
    inside_b += c.other
    root = g * g
    root *= c.solid
    t = c.k2 * inside_a
    root += t
    with np.errstate(invalid="ignore"):
        np.sqrt(root, out=root)
        np.sqrt(inside_a, out=inside_a)
        np.sqrt(inside_b, out=inside_b)
    root *= c.inverse
    np.multiply(g, c.slope, out=t)
    t -= root
    foot = np.multiply(t, c.m2, out=root)
    foot += g
    beside = ~((foot > 0.0) & (foot < c.d2))  # also where t is NaN
    np.copyto(t, infinite, where=beside)
    np.negative(inside_a, out=inside_a)
    np.fmin(t, inside_a, out=t)
    np.subtract(c.m2, inside_b, out=inside_b)
    np.fmin(t, inside_b, out=t)
    if cut:  # hits beyond the flat cuts vanish; the open end shows what lies behind
        with np.errstate(invalid="ignore"):  # inf * 0
            position = t * c.m2
        position += g
        position += c.offset
        np.copyto(t, infinite, where=(position < c.low) | (position > c.high))
    t -= (c.shift + c.shift_y * dy) + c.shift_x * dx
    t *= c.scale
    return t
