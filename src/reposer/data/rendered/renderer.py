"""Photographs of rendered people with exact annotations: picture, LIP-20 parsing, mask, 18 visible joints.

`render_people` is the whole interface. Every image is computed by itself from its own arguments, so it does not depend on
the batch or on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from reposer.data.rendered.accessories import add_bag, add_glasses, add_hair, add_hat, add_scarf
from reposer.data.rendered.body import JOINT_BONES, JOINT_DEPTH, Pose, forward_kinematics
from reposer.data.rendered.cameras import Camera, background, expose, occluder
from reposer.data.rendered.clothing import dress_up
from reposer.data.rendered.figure import Builder, Figure, add_head
from reposer.data.rendered.raycast import TILE, Cones, Grid, Hits, cast
from reposer.data.rendered.shading import Light, Surfaces, albedo, light_up, surfaces_of
from reposer.data.rendered.wardrobe import Identity

Float = NDArray[np.float64]
Single = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RenderedPeople:
    """N rendered images with what is known about them."""

    images: NDArray[np.uint8]  # (N, H, W, 3) RGB
    parsing: NDArray[np.uint8]  # (N, H, W) LIP-20 labels, 0 where an occluder hides the person
    masks: NDArray[np.bool_]  # (N, H, W) parsing > 0
    keypoints: NDArray[
        np.float32
    ]  # (N, 18, 2) x, y; pixel centers have whole coordinates; NaN: hidden or outside
    pids: NDArray[np.int64]  # (N,)
    camids: NDArray[np.int64]  # (N,)
    poses: tuple[Pose, ...]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True)
class Posed:
    """A figure before a camera."""

    cones: Cones
    turns: Float  # (17, 3, 3) bone frame -> camera space
    places: Float  # (17, 3) joints in camera space
    joints: Float  # (18, 3) OpenPose joints in camera space


@lru_cache(maxsize=4096)
def figure_of(identity: Identity) -> tuple[Figure, Surfaces]:
    """The dressed body of a person and its materials."""
    builder = Builder(identity)
    add_head(builder)
    dress_up(builder)
    for add in (add_hair, add_hat, add_glasses, add_scarf, add_bag):
        add(builder)
    figure = builder.build()
    return figure, surfaces_of(figure)


def render_people(
    identities: Sequence[Identity],
    poses: Sequence[Pose],
    cameras: Sequence[Camera],
    size: tuple[int, int] = (128, 64),
    *,
    seeds: Sequence[Sequence[int]] | None = None,
    samples: int = 2,
    threads: int = 1,
) -> RenderedPeople:
    """Photograph N people.

    Args:
        identities, poses, cameras: N each; image n shows ``identities[n]`` in ``poses[n]`` seen by ``cameras[n]``.
        size: height and width in pixels.
        seeds: N tuples of non-negative integers for what a photograph leaves to chance (framing, place in the scene, exposure, noise,
            occluder); all zero by default.
        samples: samples a pixel along each axis, 1, 2 or 4.
        threads: images rendered at the same time; does not change them.

    Raises:
        ValueError: on unequal lengths or an impossible size or number of samples.
    """
    seeds = [(0,)] * len(identities) if seeds is None else seeds
    if not len(identities) == len(poses) == len(cameras) == len(seeds):
        raise ValueError("identities, poses, cameras and seeds must be equally many")
    if samples not in (1, 2, 4) or min(size) < 8:
        raise ValueError(f"samples {samples} must be 1, 2 or 4 and size {size} at least 8 x 8")
    jobs = list(zip(identities, poses, cameras, seeds, strict=True))
    if threads > 1 and len(jobs) > 1:
        with ThreadPoolExecutor(threads) as pool:
            results = list(pool.map(lambda job: _photograph(*job, size, samples), jobs))
    else:
        results = [_photograph(*job, size, samples) for job in jobs]
    height, width = size
    images = np.array([r[0] for r in results], np.uint8).reshape(-1, height, width, 3)
    parsing = np.array([r[1] for r in results], np.uint8).reshape(-1, height, width)
    return RenderedPeople(
        images=images,
        parsing=parsing,
        masks=parsing > 0,
        keypoints=np.array([r[2] for r in results], np.float32).reshape(-1, 18, 2),
        pids=np.array([p.pid for p in identities], np.int64),
        camids=np.array([c.camid for c in cameras], np.int64),
        poses=tuple(poses),
    )


def _photograph(
    identity: Identity, pose: Pose, camera: Camera, seed: Sequence[int], size: tuple[int, int], samples: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Single]:
    """One image, its parsing and key-points."""
    rng = np.random.default_rng([*seed, 1])
    figure, surfaces = figure_of(identity)
    posed = pose_figure(figure, pose, camera.pitch + rng.normal(0.0, 1.5), rng.normal(0.0, 1.2))
    grid = frame_person(figure, posed, camera, size, samples, rng)
    scene = background(camera, size, rng)
    hits = cast(posed.cones, grid)
    color, labels = _paint(figure, surfaces, posed, hits, grid, _light(camera, rng))
    person, cover, parsing, depth = _to_pixels(hits, color, labels, grid, size, samples)
    _contact_shadow(scene, figure, posed, grid, samples)
    person *= _crevices(depth)[..., None]
    picture = person + scene * (np.float32(1.0) - cover)[..., None]
    hidden = occluder(camera, size, rng)
    if hidden is not None:
        where, thing = hidden
        picture = np.where(where[..., None], thing, picture)
        parsing[where] = 0
        depth[where] = -np.inf
    keypoints = visible_joints(posed, grid, depth, samples)
    return expose(camera, picture.astype(np.float32), rng), parsing, keypoints


def pose_figure(figure: Figure, pose: Pose, pitch: float, roll: float = 0.0) -> Posed:
    """Bend the figure and look at it from ``pitch`` degrees above, the camera tilted by ``roll`` degrees."""
    turns, places = forward_kinematics(pose, figure.rest)
    (cp, sp), (cr, sr) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (pitch, roll))
    view = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    turns, places = view @ turns, places @ view.T

    def carry(bones: NDArray[np.int64], points: Float) -> Float:
        return np.einsum("pij,pj->pi", turns[bones], points - figure.rest[bones]) + places[bones]

    frame = turns[figure.bone_a]
    stretch = np.einsum("pij,pj,pkj->pik", frame, 1.0 / figure.stretch, frame)
    reach = (
        figure.radius.max(1)[:, None] * np.sqrt(np.einsum("pij,pj->pi", frame**2, figure.stretch**2))[:, :2]
    )
    cones = Cones(carry(figure.bone_a, figure.a), carry(figure.bone_b, figure.b), figure.radius[:, 0], figure.radius[:, 1],
                  stretch, figure.clip, reach)  # fmt: skip
    return Posed(cones, turns, places, carry(np.array(JOINT_BONES), figure.joints))


def frame_person(
    figure: Figure,
    posed: Posed,
    camera: Camera,
    size: tuple[int, int],
    samples: int,
    rng: np.random.Generator,
) -> Grid:
    """The crop a detector would draw: the person fills the height up to a margin, displaced a little."""
    height, width = size
    own = ~figure.carried
    ends = np.concatenate((posed.cones.a[own, :2], posed.cones.b[own, :2]))
    reach = np.tile(posed.cones.reach[own], (2, 1))
    low, high = (ends - reach).min(0), (ends + reach).max(0)
    scale = rng.uniform(*camera.fill) * height / (high[1] - low[1])
    scale = min(scale, 1.02 * width / (high[0] - low[0]))
    aspect = 1.0 + np.clip(rng.normal(0.0, 0.03), -0.07, 0.07)
    dx, dy = rng.normal(0.0, camera.shift, 2) * height
    middle = (low + high) / 2
    sx, sy = scale * aspect * samples, scale * samples
    columns, rows = (-(-n * samples // TILE) * TILE for n in (width, height))
    x0 = (width / 2 + dx) * samples - 0.5 - middle[0] * sx
    y0 = (height / 2 + dy) * samples - 0.5 + middle[1] * sy
    return Grid(rows, columns, sx, sy, x0, y0)


def _light(camera: Camera, rng: np.random.Generator) -> Light:
    azimuth = math.radians(camera.sun_azimuth + rng.normal(0, 20))
    sun = np.array([0.62 * math.sin(azimuth), 0.72, 0.62 * math.cos(azimuth)])
    sun /= np.sqrt((sun**2).sum())
    return Light(
        (sun[0], sun[1], sun[2]),
        camera.sun * rng.uniform(0.8, 1.2),
        camera.ambient,
        0.10 * (1 if sun[0] < 0 else -1),
    )


def _paint(
    figure: Figure, surfaces: Surfaces, posed: Posed, hits: Hits, grid: Grid, light: Light
) -> tuple[Single, NDArray[np.uint8]]:
    """Premultiplied color and cover (C, 64, 4), and label (C, 64), of every sample."""
    color = np.zeros((*hits.primitive.shape, 4), np.float32)
    label = np.zeros(hits.primitive.shape, np.uint8)
    cell, inner = np.nonzero(hits.primitive >= 0)
    who = hits.primitive[cell, inner]
    row, column = np.divmod(hits.cells[cell], grid.columns // TILE)
    sample_row, sample_column = np.divmod(inner, TILE)
    cones = posed.cones
    point = np.stack(
        (
            (column * TILE + sample_column - grid.x0) / grid.sx,
            (grid.y0 - row * TILE - sample_row) / grid.sy,
            -hits.depth[cell, inner].astype(np.float64),
        ),
        1,
    )
    M, bone = cones.stretch[who].astype(np.float32), figure.bone_a[who]
    axis = np.einsum("pij,pj->pi", cones.stretch, cones.b - cones.a).astype(np.float32)
    rr = (cones.radius_a - cones.radius_b).astype(np.float32)
    d2 = np.maximum((axis * axis).sum(1) - rr * rr, np.float32(1e-9))
    offset = np.einsum("vij,vj->vi", M, (point - cones.a[who]).astype(np.float32))
    along = (offset * axis[who]).sum(1) - (rr * cones.radius_a.astype(np.float32))[who]
    offset -= (
        np.clip(along / d2[who], 0.0, 1.0)[:, None] * axis[who]
    )  # from the sphere that touches the surface here
    normal = np.einsum("vij,vj->vi", M, offset)
    normal /= np.sqrt((normal * normal).sum(1, keepdims=True) + np.float32(1e-12))
    away = (point - posed.places[bone]).astype(np.float32)
    rest = (
        np.einsum("vji,vj->vi", posed.turns.astype(np.float32)[bone], away)
        + figure.rest.astype(np.float32)[bone]
    )
    material = figure.material[who]
    base, label[cell, inner] = albedo(surfaces, material, rest, figure.label[who])
    lit = light_up(base, normal, rest, light, surfaces.gloss[material], surfaces.folds[material])
    color[cell, inner, :3] = lit
    color[cell, inner, 3] = 1.0
    return color, label


def _to_pixels(
    hits: Hits, color: Single, label: NDArray[np.uint8], grid: Grid, size: tuple[int, int], samples: int
) -> tuple[Single, Single, NDArray[np.uint8], Single]:
    """Average the samples of each pixel: color (H, W, 3), cover (H, W), label by majority, nearest depth."""
    down, across, n = grid.rows // TILE, grid.columns // TILE, TILE // samples

    def place(values: NDArray[np.generic], fill: float) -> NDArray[np.generic]:
        full = np.full((down * across, n, n, *values.shape[3:]), fill, values.dtype)
        full[hits.cells] = values
        full = full.reshape(down, across, n, n, *values.shape[3:]).swapaxes(1, 2)
        return full.reshape(down * n, across * n, *values.shape[3:])[: size[0], : size[1]]

    split = (len(hits.cells), n, samples, n, samples)
    mean = place(color.reshape(*split, 4).mean((2, 4), dtype=np.float32), 0.0)
    votes = label.reshape(split).swapaxes(2, 3).reshape(len(hits.cells), n, n, samples * samples)
    nearest = place(hits.depth.reshape(split).min((2, 4)), np.inf)
    return mean[..., :3].copy(), mean[..., 3], place(_majority(votes), 0).copy(), nearest.copy()  # type: ignore[return-value]


def _majority(votes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The commonest label of each pixel's samples (last axis); of equally common ones the first sampled."""
    best, most = votes[..., 0], np.zeros(votes.shape[:-1], np.int8)
    for k in range(votes.shape[-1]):
        count = (votes == votes[..., k : k + 1]).sum(-1, dtype=np.int8)
        better = count > most
        best, most = np.where(better, votes[..., k], best), np.where(better, count, most)
    return best


def _crevices(depth: Single) -> Single:
    """Factor that darkens pixels with nearer surfaces around them (armpits, behind an arm, between the legs)."""
    near = np.where(np.isfinite(depth), depth, np.float32(1e3))
    step = max(1, round(depth.shape[0] / 56))
    padded = np.pad(near, step, mode="edge")
    height, width = depth.shape
    total = np.zeros_like(near)
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        other = padded[
            step + dy * step : step + dy * step + height, step + dx * step : step + dx * step + width
        ]
        gap = near - other
        total += np.where(
            (gap > 0.02) & (gap < 0.45), np.minimum(gap * np.float32(6.0), np.float32(1.0)), np.float32(0.0)
        )
    factor: Single = np.float32(1.0) - np.float32(0.085) * total
    return factor


def _contact_shadow(scene: Single, figure: Figure, posed: Posed, grid: Grid, samples: int) -> None:
    """Darken the ground around the feet, in place."""
    height, width = scene.shape[:2]
    feet = posed.joints[[10, 13]]
    x = (feet[:, 0] * grid.sx + grid.x0) / samples
    y = (grid.y0 - feet[:, 1] * grid.sy) / samples
    scale = grid.sy / samples
    u = (np.arange(width)[None, :] - x.mean()) / (0.5 * abs(x[0] - x[1]) + 0.26 * scale)
    v = (np.arange(height)[:, None] - y.max() - 0.05 * scale) / (0.5 * abs(y[0] - y[1]) + 0.10 * scale)
    dark = np.maximum(1.0 - u * u - v * v, 0.0).astype(np.float32)
    scene *= (np.float32(1.0) - np.float32(0.45) * dark)[..., None]


def visible_joints(posed: Posed, grid: Grid, depth: Single, samples: int) -> Single:
    """(18, 2) pixel coordinates of the joints that are inside the image and not hidden by another part."""
    x = ((posed.joints[:, 0] * grid.sx + grid.x0) + 0.5) / samples - 0.5
    y = ((grid.y0 - posed.joints[:, 1] * grid.sy) + 0.5) / samples - 0.5
    height, width = depth.shape
    column, row = np.rint(x).astype(int), np.rint(y).astype(int)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    surface = depth[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    seen = inside & (surface > -posed.joints[:, 2] - JOINT_DEPTH)
    return np.where(seen[:, None], np.stack((x, y), 1), np.nan).astype(np.float32)
