"""From ray hits to pixels: color before light, cover, labels, depth; then light on normals that are smooth
across cones.

Patterns are looked up at every sample, light is computed once a pixel. Normals are averaged with neighbors
of the same label at nearly the same depth, which melts the seams between the cones of one garment as cloth
would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from reposer.data.rendered.figure import Figure
from reposer.data.rendered.posing import Posed
from reposer.data.rendered.raycast import TILE, Grid, Hits
from reposer.data.rendered.shading import Light, Surfaces, albedo, light_level

Single = NDArray[np.float32]
Index = NDArray[np.int64]
_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Painted:
    """The person without background, before the camera's faults."""

    color: Single  # (H, W, 3) linear light times cover
    cover: Single  # (H, W) share of the pixel's samples on the person
    parsing: NDArray[np.uint8]  # (H, W) commonest label of the samples
    depth: Single  # (H, W) meters to the nearest surface, inf where there is none


@dataclass(frozen=True, slots=True)
class _Samples:
    """The hits ordered by sub-sample, then by pixel: K = samples^2, N pixels in the touched tiles."""

    primitive: NDArray[np.int32]  # (K, N)
    depth: Single  # (K, N)
    row: Index  # (N,) pixel
    column: Index  # (N,)
    per_side: int

    def points(self, sub: Index, pixel: Index, grid: Grid) -> NDArray[np.float64]:
        """Camera-space points (V, 3) of the samples (sub, pixel)."""
        down, right = np.divmod(sub, self.per_side)
        x = (self.column[pixel] * self.per_side + right - grid.x0) / grid.sx
        y = (grid.y0 - self.row[pixel] * self.per_side - down) / grid.sy
        return np.stack((x, y, -self.depth[sub, pixel].astype(np.float64)), 1)


def _by_sub_sample(hits: Hits, grid: Grid, samples: int) -> _Samples:
    n, cells = TILE // samples, len(hits.cells)

    def order(values: NDArray[_Number]) -> NDArray[_Number]:
        split = values.reshape(cells, n, samples, n, samples).transpose(2, 4, 0, 1, 3)
        return split.reshape(samples**2, cells * n * n)

    row, column = np.divmod(hits.cells, grid.columns // TILE)
    rows, columns = np.zeros((2, cells, n, n), np.int64)
    rows += (row[:, None] * n + np.arange(n))[:, :, None]
    columns += (column[:, None] * n + np.arange(n))[:, None, :]
    return _Samples(order(hits.primitive), order(hits.depth), rows.ravel(), columns.ravel(), samples)


def paint(
    figure: Figure,
    surfaces: Surfaces,
    posed: Posed,
    hits: Hits,
    grid: Grid,
    light: Light,
    size: tuple[int, int],
    samples: int,
) -> Painted:
    """Shade what the rays hit."""
    s = _by_sub_sample(hits, grid, samples)
    color, label = _sample_colors(figure, surfaces, posed, s, grid)
    nearest, depth_of = np.zeros(len(s.row), np.int64), s.depth[0].copy()
    for k in range(1, len(s.depth)):
        nearest[s.depth[k] < depth_of] = k
        np.minimum(depth_of, s.depth[k], out=depth_of)
    pixel = np.flatnonzero((depth_of < np.inf) & (s.row < size[0]) & (s.column < size[1]))
    sub, place = nearest[pixel], s.row[pixel] * size[1] + s.column[pixel]
    parsing = np.zeros(size, np.uint8)
    parsing.ravel()[place] = _majority(label[:, pixel])
    depth = np.full(size, np.inf, np.float32)
    depth.ravel()[place] = depth_of[pixel]
    total = color[0]
    for part in color[1:]:
        total += part
    mean = np.zeros((4, size[0] * size[1]), np.float32)
    mean[:, place] = (total[pixel] * np.float32(1.0 / samples**2)).T
    detail = np.zeros((5, size[0] * size[1]), np.float32)  # normal, crease, gloss
    who = s.primitive[sub, pixel]
    detail[:, place] = _details(figure, surfaces, posed, who, s.points(sub, pixel, grid))
    planes = mean.reshape(4, *size)
    lit = _light_pixels(planes, detail.reshape(5, *size), depth, parsing, light)
    return Painted(lit, planes[3], parsing, depth)


def _rest(figure: Figure, posed: Posed, who: NDArray[np.int32], point: NDArray[np.float64]) -> Single:
    """Where surface points lie in the rest pose: their texture coordinates (V, 3)."""
    bone = figure.bone_a[who]
    away = (point - posed.places[bone]).astype(np.float32)
    back = posed.turns.astype(np.float32)[bone]
    rest: Single = np.einsum("vji,vj->vi", back, away) + figure.rest.astype(np.float32)[bone]
    return rest


def _sample_colors(
    figure: Figure, surfaces: Surfaces, posed: Posed, s: _Samples, grid: Grid
) -> tuple[Single, NDArray[np.uint8]]:
    """Unlit color and 1 (K, N, 4), and label (K, N), of every sample that hit something; else 0."""
    count = s.primitive.shape[1]
    who = s.primitive.ravel()
    material = np.append(figure.material, len(surfaces.opaque))[who]  # a primitive of -1 finds the last entry
    label = np.append(figure.label, np.uint8(0))[who]
    color = np.concatenate((surfaces.opaque, np.zeros((1, 4), np.float32)))[material]
    place = np.flatnonzero(np.append(surfaces.textured, False)[material])
    if len(place):
        material, who = material[place], who[place]
        sub, pixel = np.divmod(place, count)
        rest = _rest(figure, posed, who, s.points(sub, pixel, grid))
        color[place, :3], label[place] = albedo(surfaces, material, rest, label[place])
    return color.reshape(-1, count, 4), label.reshape(-1, count)


def _details(
    figure: Figure, surfaces: Surfaces, posed: Posed, who: NDArray[np.int32], point: NDArray[np.float64]
) -> Single:
    """Normal, crease of the cloth and gloss (5, V) at surface points."""
    cones = posed.cones
    axis = np.einsum("pij,pj->pi", cones.stretch, cones.b - cones.a)
    rr = cones.radius_a - cones.radius_b
    d2 = np.maximum((axis * axis).sum(1) - rr * rr, 1e-9)
    along_a = (rr * cones.radius_a / d2).astype(np.float32)[who]
    along_axis = (axis / d2[:, None]).astype(np.float32)[who]
    stretch = cones.stretch.astype(np.float32)[who]
    offset = np.einsum("vij,vj->vi", stretch, (point - cones.a[who]).astype(np.float32))
    along = np.einsum("vi,vi->v", offset, along_axis) - along_a
    np.minimum(np.maximum(along, 0.0), 1.0, out=along)
    offset -= along[:, None] * axis.astype(np.float32)[who]  # from the sphere that touches the surface here
    normal = np.einsum("vij,vj->iv", stretch, offset)
    normal /= np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + np.float32(1e-9)
    x, y, z = _rest(figure, posed, who, point).T
    material = figure.material[who]
    first = _wave(5.3 * y + 3.1 * x - 2.0 * z)
    second = _wave(8.7 * y - 6.0 * x + 4.0 * z + 0.35 * first)
    details = np.empty((5, len(who)), np.float32)
    details[:3] = normal
    details[3] = surfaces.folds[material] * first * second
    details[4] = surfaces.gloss[material]
    return details


def _wave(t: Single) -> Single:
    """Triangle wave of period 1 in [-1, 1]."""
    wave: Single = np.float32(4.0) * np.abs(t - np.floor(t) - np.float32(0.5)) - np.float32(1.0)
    return wave


def _light_pixels(
    mean: Single, detail: Single, depth: Single, parsing: NDArray[np.uint8], light: Light
) -> Single:
    """Lit color (H, W, 3); works inside the person's box only."""
    color = np.zeros((*depth.shape, 3), np.float32)
    rows, columns = (np.flatnonzero((mean[3] > 0).any(axis)) for axis in (1, 0))
    if not len(rows):
        return color
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    near = np.minimum(depth[box], np.float32(1e3))
    normal = _smooth(detail[(slice(0, 3), *box)], near, parsing[box], max(1, round(depth.shape[0] / 128)))
    level, shine = light_level(normal, detail[(3, *box)], detail[(4, *box)], light)
    level *= _crevices(near, max(1, round(depth.shape[0] / 56)))
    shine *= mean[(3, *box)]
    for channel in range(3):
        color[(*box, channel)] = mean[(channel, *box)] * level + shine
    return color


def _padded(values: NDArray[_Number], width: int, fill: float) -> NDArray[_Number]:
    """A frame of ``fill`` around the last two axes."""
    height, length = values.shape[-2:]
    full = np.full((*values.shape[:-2], height + 2 * width, length + 2 * width), fill, values.dtype)
    full[..., width : width + height, width : width + length] = values
    return full


def _smooth(normal: Single, depth: Single, parsing: NDArray[np.uint8], step: int) -> Single:
    """Unit normals (3, h, w), averaged over neighbors of the same label at nearly the same depth."""
    reach, (height, width) = 2 * step, depth.shape
    depths, labels = _padded(depth, reach, 1e3), _padded(parsing, reach, 0)
    for vertical in (True, False):
        values, total = _padded(normal, reach, 0.0), normal.copy()
        for offset in (-2 * step, -step, step, 2 * step):
            top, left = (reach + offset, reach) if vertical else (reach, reach + offset)
            there = slice(top, top + height), slice(left, left + width)
            same = (labels[there] == parsing) & (np.abs(depths[there] - depth) < np.float32(0.06))
            total += values[(slice(None), *there)] * same
        normal = total
    normal /= np.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2) + np.float32(1e-6)
    return normal


def _crevices(depth: Single, step: int) -> Single:
    """Factor that darkens pixels with nearer surfaces around them: armpits, between the legs."""
    (height, width), around = depth.shape, _padded(depth, step, 1e3)
    total = np.zeros_like(depth)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
        top, left = step + dy * step, step + dx * step
        gap = depth - around[top : top + height, left : left + width]
        near = (gap > np.float32(0.03)) & (gap < np.float32(0.45))
        total += np.minimum(gap * np.float32(6.0), np.float32(1.0)) * near
    factor: Single = np.float32(1.0) - np.float32(0.13) * total
    return factor


def _majority(votes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The commonest label (N,) of each pixel's samples (K, N); of equally common ones the first sampled."""
    best: NDArray[np.uint8] = votes[0].copy()
    mixed = np.flatnonzero((votes != best).any(0))
    votes = votes[:, mixed]
    winner, most = votes[0], np.zeros(len(mixed), np.int8)
    for candidate in votes:
        count = (votes == candidate).sum(0, dtype=np.int8)
        better = count > most
        winner, most = np.where(better, candidate, winner), np.where(better, count, most)
    best[mixed] = winner
    return best
