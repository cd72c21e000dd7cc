"""Parallel rays against round cones: which primitive is in front at every sample, and how far away.

A round cone is the convex hull of two spheres. Each has its own affine stretch (a 3x3 matrix applied to camera space), so that
trunks are wider than deep; in the stretched space the ray is still a straight line and the cone is round. The quadratic is
that of a cone of revolution tangent to both spheres, written for a ray whose component along itself is removed.

Camera space (meters): x right, y up, z towards the viewer; all rays run along -z (a camera far away). Depth grows away from the
viewer. Work is done per tile of 8x8 samples, and only in tiles that a primitive's outline can touch.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    primitive: Index  # (C, 64) index into Cones, -1 where nothing was met
    depth: Single  # (C, 64) meters, inf where nothing was met


def cast(cones: Cones, grid: Grid) -> Hits:
    """The nearest primitive of every sample in every tile that any primitive touches."""
    cell, owner = _touched_tiles(cones, grid)
    if not len(cell):
        empty = np.empty((0, TILE * TILE))
        return Hits(cell, empty.astype(np.int64), empty.astype(np.float32))
    depth = _intersect(cones, grid, cell, owner)
    starts = np.flatnonzero(np.concatenate(([True], cell[1:] != cell[:-1])))
    counts = np.diff(np.concatenate((starts, [len(cell)])))
    nearest = np.minimum.reduceat(depth, starts, axis=0)
    is_nearest = depth == np.repeat(nearest, counts, axis=0)
    candidates = np.where(is_nearest, owner.astype(np.int32)[:, None], np.int32(-1))
    winner = np.maximum.reduceat(candidates, starts, axis=0).astype(np.int64)
    winner[~np.isfinite(nearest)] = -1
    return Hits(cell[starts], winner, nearest)


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
    """Whether the tile's circle meets the flat capsule around the projected axis; drops the corners of slanted boxes."""
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


def _intersect(cones: Cones, grid: Grid, cell: Index, owner: Index) -> Single:
    """(T, 64) depth at which each sample's ray enters the tile's primitive, inf where it passes by."""
    M = cones.stretch
    length = np.sqrt((M[:, :, 2] ** 2).sum(1))
    ray = -M[:, :, 2] / length[:, None]
    ex, ey = M[:, :, 0], M[:, :, 1]
    axis = np.einsum("pij,pj->pi", M, cones.b - cones.a)
    start = np.einsum("pij,pj->pi", M, cones.a)
    m0, m2 = (axis * axis).sum(1), (axis * ray).sum(1)
    rr = cones.radius_a - cones.radius_b
    d2 = m0 - rr * rr  # <= 0 where one sphere holds the other: then there is no cone between them
    k2 = d2 - m2 * m2
    k2 = np.where(np.abs(k2) < 1e-9, 1e-9, k2)
    x_along, y_along = (ex * ray).sum(1), (ey * ray).sum(1)
    ex_across, ey_across = ex - ray * x_along[:, None], ey - ray * y_along[:, None]

    across = grid.columns // TILE
    row, column = np.divmod(cell, across)
    x = (column * TILE - grid.x0) / grid.sx  # of the tile's first sample
    y = (grid.y0 - row * TILE) / grid.sy
    step_x = (np.arange(TILE) / grid.sx)[None, None, :]
    step_y = (-np.arange(TILE) / grid.sy)[None, :, None]
    from_a = ex[owner] * x[:, None] + ey[owner] * y[:, None] - start[owner]  # (T, 3)
    along_ray = (from_a * ray[owner]).sum(1)
    from_a = from_a - ray[owner] * along_ray[:, None]

    def spread(value: Float) -> Single:
        return value[owner].astype(np.float32)[:, None, None]

    def plane(constant: Float, in_x: Float, in_y: Float) -> Single:
        """constant + in_x * dx + in_y * dy on the tile's samples: (T, 8, 8)."""
        by_row = (constant[:, None, None] + in_y[:, None, None] * step_y).astype(np.float32)
        by_column = (in_x[:, None, None] * step_x).astype(np.float32)
        return by_row + by_column

    def dot(u: Float, v: Float) -> Float:
        return np.einsum("ti,ti->t", u, v)

    shift = plane(along_ray, x_along[owner], y_along[owner])
    g = plane(dot(axis[owner], from_a) - (rr * cones.radius_a)[owner],
              (axis * ex_across).sum(1)[owner], (axis * ey_across).sum(1)[owner])  # fmt: skip
    # inside_a = radius_a^2 - (distance of the ray from the first center)^2, a quadratic in (dx, dy)
    by_row = (
        (cones.radius_a[owner] ** 2 - dot(from_a, from_a))[:, None, None]
        - 2.0 * dot(from_a, ey_across[owner])[:, None, None] * step_y
        - dot(ey_across[owner], ey_across[owner])[:, None, None] * step_y**2
    )
    by_column = (
        -2.0 * dot(from_a, ex_across[owner])[:, None, None] * step_x
        - dot(ex_across[owner], ex_across[owner])[:, None, None] * step_x**2
    )
    mixed = (-2.0 * dot(ex_across[owner], ey_across[owner])[:, None, None] * step_x).astype(np.float32)
    inside_a = mixed * step_y.astype(np.float32)
    inside_a += by_row.astype(np.float32)
    inside_a += by_column.astype(np.float32)
    infinite = np.float32(np.inf)
    # The other sphere: |w - axis_across|^2 = |w|^2 - 2 w.axis + |axis_across|^2 with w.axis = g + rr radius_a
    inside_b = g * np.float32(2.0)
    inside_b += inside_a
    inside_b += spread(cones.radius_b**2 - cones.radius_a**2 + 2.0 * rr * cones.radius_a - m0 + m2 * m2)
    under = g * g
    under += spread(k2) * inside_a
    under *= spread(np.maximum(d2, 0.0))
    root = np.sqrt(np.maximum(under, 0.0))
    t = (spread(m2 / k2) * g) - spread(1.0 / k2) * root
    foot = t * spread(m2)
    foot += (
        g  # position along the axis times its length squared, of the sphere that touches the surface there
    )
    hit = (under > 0.0) & (foot > 0.0) & (foot < spread(d2))
    t = np.where(hit, t, infinite)
    near = np.where(inside_a > 0.0, -np.sqrt(np.maximum(inside_a, 0.0)), infinite)
    np.minimum(t, near, out=t)
    near = np.where(inside_b > 0.0, spread(m2) - np.sqrt(np.maximum(inside_b, 0.0)), infinite)
    np.minimum(t, near, out=t)
    _clip(t, g, cones, owner, m0, m2, rr)
    t -= shift
    t *= spread(1.0 / length)
    return t.reshape(len(t), TILE * TILE)


def _clip(t: Single, g: Single, cones: Cones, owner: Index, m0: Float, m2: Float, rr: Float) -> None:
    """Remove, in place, hits beyond the flat cuts; the open end shows what lies behind."""
    cut = np.flatnonzero(np.isfinite(cones.clip).any(1)[owner])
    if not len(cut):
        return
    who = owner[cut]
    offset, length2, slope, low, high = (
        v[who].astype(np.float32)[:, None, None]
        for v in (rr * cones.radius_a, m0, m2, cones.clip[:, 0] * m0, cones.clip[:, 1] * m0)
    )
    kept = t[cut]
    finite = np.isfinite(kept)
    position = g[cut] + offset + np.where(finite, kept, 0.0) * slope
    del length2
    t[cut] = np.where(finite & (position >= low) & (position <= high), kept, np.float32(np.inf))
