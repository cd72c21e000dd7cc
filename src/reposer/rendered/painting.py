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

from reposer.rendered.figure import Figure, Patch
from reposer.rendered.poses import Posed
from reposer.rendered.raycast import TILE, Grid, Hits

# ---- The color of a surface point: patterns in body-fixed coordinates, the painted face, and light.
#
# Only additions, products, divisions and square roots touch the samples, so the result does not depend on how
# many are shaded together.

Single = NDArray[np.float32]

PATTERNS = ("plain", "stripes", "pinstripes", "checks", "block", "face", "hair")


@dataclass(frozen=True, slots=True)
class Surfaces:
    """The materials of one figure as arrays over its K materials, for indexing by sample."""

    color: Single  # (K, 3) linear light (sRGB squared)
    opaque: Single  # (K, 4) color and 1
    textured: NDArray[np.bool_]  # (K,) whether the color depends on the place
    second: Single  # (K, 3)
    pattern: NDArray[np.int8]  # (K,) index into PATTERNS
    period: Single  # (K,) meters
    gloss: Single  # (K,)
    folds: Single  # (K,)
    center: Single  # (K, 3)
    patches: tuple[tuple[int, Patch], ...]  # (material, patch)
    beards: tuple[int, ...]  # materials with a beard
    scale: float  # size of the figure relative to the drawing height


@dataclass(frozen=True, slots=True)
class Light:
    """Light in camera space: a sky, a sun or lamp, and a weak side light."""

    sun: tuple[float, float, float]  # unit vector towards it
    sun_strength: float
    ambient: float
    side: float = 0.08  # from the image's left if positive


def surfaces_of(figure: Figure) -> Surfaces:
    """Arrays of the figure's materials."""
    m = figure.materials
    color = np.array([x.color for x in m], np.float32) ** 2
    return Surfaces(
        color=color,
        opaque=np.concatenate((color, np.ones((len(m), 1), np.float32)), 1),
        textured=np.array([x.pattern not in ("plain", "hair") or bool(x.patches) for x in m]),
        second=np.array([x.second for x in m], np.float32) ** 2,
        pattern=np.array([PATTERNS.index(x.pattern) for x in m], np.int8),
        period=np.array([x.period for x in m], np.float32),
        gloss=np.array([x.gloss for x in m], np.float32),
        folds=np.array([x.folds for x in m], np.float32),
        center=np.array([x.center for x in m], np.float32),
        patches=tuple((i, p) for i, x in enumerate(m) for p in x.patches),
        beards=tuple(i for i, x in enumerate(m) if x.beard),
        scale=figure.identity.shape.k,
    )


def albedo(
    surfaces: Surfaces, material: NDArray[np.int64], rest: Single, label: NDArray[np.uint8]
) -> tuple[Single, NDArray[np.uint8]]:
    """Color (V, 3) and label (V,) of V surface points at rest positions ``rest`` (V, 3)."""
    color = surfaces.color[material]
    pattern = surfaces.pattern[material]
    local = rest - surfaces.center[material]
    patterned = np.flatnonzero((pattern > 0) & (pattern < PATTERNS.index("face")))
    if len(patterned):
        of = material[patterned]
        second = patterned[_second_color(pattern[patterned], local[patterned], surfaces.period[of])]
        color[second] = surfaces.second[material[second]]
    label = label.copy()
    for owner, patch in surfaces.patches:
        inside = np.flatnonzero(material == owner)
        inside = inside[_in_patch(patch, rest[inside], surfaces.center[owner])]
        color[inside] = np.array(patch.color, np.float32) ** 2
        if patch.label:
            label[inside] = patch.label
    face = np.flatnonzero(pattern == PATTERNS.index("face"))
    if len(face):
        beard = bool(surfaces.beards)
        color[face] = _face(
            color[face], surfaces.second[material[face]], local[face] / np.float32(surfaces.scale), beard
        )
    return color, label


def _second_color(kind: NDArray[np.int8], local: Single, period: Single) -> NDArray[np.bool_]:
    """Where a pattern shows its second color; ``around`` is the way around the body."""
    x, y, z = local.T
    around = z / (np.abs(x) + np.abs(z) + np.float32(1e-6))  # 1 in front, 0 at the sides, -1 behind
    around = np.where(x > 0, np.float32(1) - around, around - np.float32(1))  # -2 .. 2, 0 in front
    level = np.mod(y, period) < 0.45 * period
    upright = np.mod(around * np.float32(4.0), np.float32(1.0)) < 0.38
    stripes = (kind == 1) & level
    pins = (kind == 2) & upright
    checks = (kind == 3) & (level ^ upright)
    block: NDArray[np.bool_] = (kind == 4) & (y > 0.045)
    second: NDArray[np.bool_] = stripes | pins | checks | block
    return second


def _in_patch(patch: Patch, rest: Single, center: Single) -> NDArray[np.bool_]:
    x = (rest[:, 0] - np.float32(patch.x)) / np.float32(patch.half_width)
    y = (rest[:, 1] - np.float32(patch.y)) / np.float32(patch.half_height)
    outside = x * x + y * y if patch.ellipse else np.maximum(np.abs(x), np.abs(y))
    inside: NDArray[np.bool_] = (outside < 1.0) & ((rest[:, 2] - center[2]) * patch.side > 0)
    return inside


def _face(skin: Single, hair: Single, local: Single, beard: bool) -> Single:
    """Eyes, brows, mouth and beard on the front of the head; ``local`` is measured from the head's middle."""
    x, y, z = np.abs(local[:, 0]), local[:, 1], local[:, 2]
    front = z > 0.02
    color = skin.copy()
    if beard:
        grown = front & (y < -0.030) | (y < -0.005) & (x > 0.052) & (z > -0.02)
        color[grown] = 0.35 * skin[grown] + 0.65 * hair[grown]
    color[front & (x < 0.026) & (np.abs(y + 0.050) < 0.0075)] *= np.array((0.62, 0.30, 0.30), np.float32)
    color[front & (x < 0.018) & (np.abs(y + 0.029) < 0.004)] *= np.float32(0.6)  # shadow under the nose
    dx, dy = (x - 0.031) / 0.017, (y - 0.010) / 0.0105
    eye = front & (dx * dx + dy * dy < 1.0)
    color[eye] = np.array((0.55, 0.52, 0.50), np.float32)
    dx = (x - 0.031) / 0.0095
    color[front & (dx * dx + dy * dy < 1.0)] = np.array((0.012, 0.010, 0.010), np.float32)
    brow = front & (np.abs(x - 0.032) < 0.021) & (np.abs(y - 0.031) < 0.006)
    color[brow] = 0.25 * skin[brow] + 0.75 * np.minimum(hair[brow], 0.12)
    return color


def light_level(normal: Single, crease: Single, gloss: Single, light: Light) -> tuple[Single, Single]:
    """Brightness factor and shine (H, W) of surfaces with unit normals (3, H, W) in camera space."""
    x, y, z = normal[0], normal[1] + np.float32(0.16) * crease, normal[2]
    sun = x * np.float32(light.sun[0]) + y * np.float32(light.sun[1]) + z * np.float32(light.sun[2])
    np.maximum(sun, 0.0, out=sun)
    sky = np.float32(0.64) + np.float32(0.36) * y
    side = np.maximum(x if light.side < 0 else -x, 0.0)
    rim = np.float32(0.82) + np.float32(0.18) * z  # surfaces that turn away lose light
    level = np.float32(light.ambient) * sky + np.float32(light.sun_strength) * sun
    level += np.float32(abs(light.side)) * side
    level *= rim * (np.float32(1.0) + np.float32(0.06) * crease)
    shine = sun * sun
    shine *= shine
    shine *= shine * gloss * np.float32(light.sun_strength)
    return level, shine


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
