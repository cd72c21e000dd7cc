"""The color of a surface point: patterns in body-fixed coordinates, the painted face, and light.

Only additions, products, divisions and square roots touch the samples, so the result does not depend on how
many are shaded together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reposer.data.rendered.figure import Figure, Patch

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
