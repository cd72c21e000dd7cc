"""From ray hits to pixels: color before light, cover, labels, depth; then light on normals that are smooth across cones.

Patterns are looked up at every sample, light is computed once a pixel. Normals are averaged with neighbors of the same label
at nearly the same depth, which melts the seams between the cones of one garment as cloth would.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reposer.data.rendered.figure import Figure
from reposer.data.rendered.posing import Posed
from reposer.data.rendered.raycast import TILE, Grid, Hits
from reposer.data.rendered.shading import Light, Surfaces, albedo, light_level

Single = NDArray[np.float32]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Painted:
    """The person without background, before the camera's faults."""

    color: Single  # (H, W, 3) linear light times cover
    cover: Single  # (H, W) share of the pixel's samples on the person
    parsing: NDArray[np.uint8]  # (H, W) commonest label of the samples
    depth: Single  # (H, W) meters to the nearest surface, inf where there is none


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
    n, across = TILE // samples, grid.columns // TILE
    shape = (len(hits.cells), n, samples, n, samples)
    color, label = _sample_colors(figure, surfaces, posed, hits, grid)
    split = color.reshape(*shape, 4)
    mean = split[:, :, 0, :, 0].copy()
    for k in range(1, samples * samples):
        mean += split[:, :, k // samples, :, k % samples]
    mean *= np.float32(1.0 / samples**2)
    votes = [label.reshape(shape)[:, :, k // samples, :, k % samples] for k in range(samples * samples)]

    cell_row, cell_column = np.divmod(hits.cells, across)
    rows = (cell_row[:, None] * n + np.arange(n))[:, :, None]
    columns = (cell_column[:, None] * n + np.arange(n))[:, None, :]
    height, width = grid.rows // samples, grid.columns // samples
    place = (rows * width + columns).ravel()  # pixel of each (cell, row, column)

    def picture(values: NDArray[np.generic], fill: float) -> NDArray[np.generic]:
        full = np.full((height * width, *values.shape[3:]), fill, values.dtype)
        full[place] = values.reshape(-1, *values.shape[3:])
        return full.reshape(height, width, *values.shape[3:])[: size[0], : size[1]]

    by_pixel = hits.depth.reshape(shape).swapaxes(2, 3).reshape(-1, samples * samples)
    nearest = by_pixel.argmin(1)
    depth = by_pixel[np.arange(len(by_pixel)), nearest]
    seen = np.flatnonzero(np.isfinite(depth))
    who = hits.primitive.reshape(shape).swapaxes(2, 3).reshape(-1, samples * samples)[seen, nearest[seen]]
    sample_row = np.broadcast_to(rows, shape[:2] + (n,)).ravel()[seen] * samples + nearest[seen] // samples
    sample_column = (
        np.broadcast_to(columns, shape[:2] + (n,)).ravel()[seen] * samples + nearest[seen] % samples
    )
    point = _points(grid, sample_row, sample_column, depth[seen])
    features = np.zeros((len(depth), 6), np.float32)  # normal, crease, gloss, 1
    features[seen] = _features(figure, surfaces, posed, who, point)

    parsing = picture(_majority(votes), 0).astype(np.uint8)
    depth_map = picture(depth.reshape(mean.shape[:3]), np.inf).astype(np.float32)
    shade = picture(features.reshape(*mean.shape[:3], 6), 0.0).astype(np.float32)
    lit = picture(mean, 0.0).astype(np.float32)
    color_map = _light_pixels(lit, shade, depth_map, parsing, light)
    return Painted(color_map, lit[..., 3], parsing, depth_map)


def _points(grid: Grid, row: Index, column: Index, depth: Single) -> NDArray[np.float64]:
    """Camera-space points (V, 3) of samples."""
    x = (column - grid.x0) / grid.sx
    y = (grid.y0 - row) / grid.sy
    return np.stack((x, y, -depth.astype(np.float64)), 1)


def _rest(figure: Figure, posed: Posed, who: Index, point: NDArray[np.float64]) -> Single:
    """Where surface points lie in the rest pose: their texture coordinates (V, 3)."""
    bone = figure.bone_a[who]
    away = (point - posed.places[bone]).astype(np.float32)
    back = posed.turns.astype(np.float32)[bone]
    rest: Single = np.einsum("vji,vj->vi", back, away) + figure.rest.astype(np.float32)[bone]
    return rest


def _sample_colors(
    figure: Figure, surfaces: Surfaces, posed: Posed, hits: Hits, grid: Grid
) -> tuple[Single, NDArray[np.uint8]]:
    """Unlit color and 1 (C, 64, 4), and label (C, 64), of every sample that hit something; else 0."""
    color = np.zeros((hits.primitive.size, 4), np.float32)
    label = np.zeros(hits.primitive.size, np.uint8)
    place = np.flatnonzero(hits.primitive >= 0)
    who = hits.primitive.ravel()[place]
    material = figure.material[who]
    color[place] = surfaces.opaque[material]
    label[place] = figure.label[who]
    textured = np.flatnonzero(surfaces.textured[material])
    if len(textured):
        place, who, material = place[textured], who[textured], material[textured]
        cell_row, cell_column = np.divmod(hits.cells[place // TILE**2], grid.columns // TILE)
        row, column = np.divmod(place % TILE**2, TILE)
        point = _points(
            grid, cell_row * TILE + row, cell_column * TILE + column, hits.depth.ravel()[place]
        )
        color[place, :3], label[place] = albedo(
            surfaces, material, _rest(figure, posed, who, point), label[place]
        )
    return color, label


def _features(
    figure: Figure, surfaces: Surfaces, posed: Posed, who: Index, point: NDArray[np.float64]
) -> Single:
    """Normal, crease of the cloth, gloss and 1 (V, 6) at surface points."""
    cones = posed.cones
    axis = np.einsum("pij,pj->pi", cones.stretch, cones.b - cones.a)
    rr = cones.radius_a - cones.radius_b
    d2 = np.maximum((axis * axis).sum(1) - rr * rr, 1e-9)
    offset = np.einsum("vij,vj->vi", cones.stretch[who], point - cones.a[who])
    along = ((offset * axis[who]).sum(1) - (rr * cones.radius_a)[who]) / d2[who]
    offset -= np.clip(along, 0.0, 1.0)[:, None] * axis[who]  # from the sphere that touches the surface here
    normal = np.einsum("vij,vj->vi", cones.stretch[who], offset)
    normal /= np.sqrt((normal * normal).sum(1, keepdims=True) + 1e-12)
    x, y, z = _rest(figure, posed, who, point).T
    material = figure.material[who]
    first = _wave(5.3 * y + 3.1 * x - 2.0 * z)
    second = _wave(8.7 * y - 6.0 * x + 4.0 * z + 0.35 * first)
    features = np.empty((len(who), 6), np.float32)
    features[:, :3] = normal
    features[:, 3] = surfaces.folds[material] * first * second
    features[:, 4] = surfaces.gloss[material]
    features[:, 5] = 1.0
    return features


def _wave(t: Single) -> Single:
    """Triangle wave of period 1 in [-1, 1]."""
    wave: Single = np.float32(4.0) * np.abs(t - np.floor(t) - np.float32(0.5)) - np.float32(1.0)
    return wave


def _light_pixels(
    mean: Single, shade: Single, depth: Single, parsing: NDArray[np.uint8], light: Light
) -> Single:
    """Lit color (H, W, 3); works inside the person's box only."""
    color = np.zeros((*depth.shape, 3), np.float32)
    rows, columns = (np.flatnonzero((mean[..., 3] > 0).any(axis)) for axis in (1, 0))
    if not len(rows):
        return color
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    depth = np.where(np.isfinite(depth[box]), depth[box], np.float32(1e3))
    shade = _smooth(shade[box], depth, parsing[box], max(1, round(mean.shape[0] / 128)))
    normal = shade[..., :3] / (np.sqrt((shade[..., :3] ** 2).sum(-1, keepdims=True)) + np.float32(1e-6))
    level, shine = light_level(normal, shade[..., 3], shade[..., 4], light)
    level *= _crevices(depth, max(1, round(mean.shape[0] / 56)))
    color[box] = mean[box][..., :3] * level[..., None] + (shine * mean[box][..., 3])[..., None]
    return color


def _shifted(padded: NDArray[np.generic], step: int, dy: int, dx: int) -> NDArray[np.generic]:
    height, width = padded.shape[0] - 2 * step, padded.shape[1] - 2 * step
    return padded[step + dy : step + dy + height, step + dx : step + dx + width]


def _smooth(shade: Single, depth: Single, parsing: NDArray[np.uint8], step: int) -> Single:
    """Mean over a cross of neighbors with the same label at nearly the same depth, first along y, then along x."""
    reach = 2 * step
    depths = np.pad(depth, reach, mode="edge")
    labels = np.pad(parsing, reach, mode="edge")
    for vertical in (1, 0):
        values = np.pad(shade, ((reach, reach), (reach, reach), (0, 0)))
        total = shade.copy()
        for offset in (-2 * step, -step, step, 2 * step):
            dy, dx = (offset, 0) if vertical else (0, offset)
            same = _shifted(labels, reach, dy, dx) == parsing
            same &= np.abs(_shifted(depths, reach, dy, dx) - depth) < np.float32(0.06)
            total += _shifted(values, reach, dy, dx) * same[..., None]
        shade = total / np.maximum(total[..., 5:6], np.float32(1.0))
    return shade


def _crevices(depth: Single, step: int) -> Single:
    """Factor that darkens pixels with nearer surfaces around them: armpits, behind an arm, between the legs."""
    padded = np.pad(depth, step, mode="edge")
    total = np.zeros_like(depth)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        gap = depth - _shifted(padded, step, dy * step, dx * step)
        shadow = np.minimum(gap * np.float32(6.0), np.float32(1.0))
        total += np.where((gap > 0.03) & (gap < 0.45), shadow, np.float32(0.0))
    factor: Single = np.float32(1.0) - np.float32(0.07) * total
    return factor


def _majority(votes: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The commonest label of each pixel's samples; of equally common ones the first sampled."""
    best, most = votes[0], np.zeros(votes[0].shape, np.int8)
    for candidate in votes:
        count = np.zeros(best.shape, np.int8)
        for vote in votes:
            count += vote == candidate
        better = count > most
        best, most = np.where(better, candidate, best), np.where(better, count, most)
    return best
