"""Photographs of rendered people with exact annotations: picture, LIP-20 parsing, mask, 18 visible joints.

Every image is computed by itself from its own arguments, so it does not depend on the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from reposer.data.rendered.bags import add_bag, add_scarf
from reposer.data.rendered.body import Pose
from reposer.data.rendered.cameras import Camera, background, expose, occluder
from reposer.data.rendered.clothing import dress_up
from reposer.data.rendered.figure import Builder, Figure
from reposer.data.rendered.flesh import add_head
from reposer.data.rendered.headwear import add_glasses, add_hair, add_hat
from reposer.data.rendered.painting import paint
from reposer.data.rendered.posing import Posed, frame_person, pose_figure, to_pixels, visible_joints
from reposer.data.rendered.raycast import Grid, cast
from reposer.data.rendered.shading import Light, Surfaces, surfaces_of
from reposer.data.rendered.wardrobe import Identity

Single = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RenderedPeople:
    """N rendered images with what is known about them."""

    images: NDArray[np.uint8]  # (N, H, W, 3) RGB
    parsing: NDArray[np.uint8]  # (N, H, W) LIP-20 labels, 0 where an occluder hides the person
    masks: NDArray[np.bool_]  # (N, H, W) parsing > 0
    keypoints: Single  # (N, 18, 2) x, y; pixel centers have whole coordinates; NaN: hidden or outside
    pids: NDArray[np.int64]  # (N,)
    camids: NDArray[np.int64]  # (N,)
    poses: tuple[Pose, ...]

    def __len__(self) -> int:
        return len(self.images)


@lru_cache(maxsize=512)
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
) -> RenderedPeople:
    """Photograph N people.

    Args:
        identities, poses, cameras: N each; image n shows ``identities[n]`` in ``poses[n]`` seen by
            ``cameras[n]``.
        size: height and width in pixels.
        seeds: N tuples of non-negative integers for what a photograph leaves to chance (framing, place in the
            scene, exposure, noise, occluder); all zero by default.
        samples: samples a pixel along each axis, 1, 2 or 4.

    Raises:
        ValueError: on unequal lengths or an impossible size or number of samples.
    """
    seeds = [(0,)] * len(identities) if seeds is None else seeds
    if not len(identities) == len(poses) == len(cameras) == len(seeds):
        raise ValueError("identities, poses, cameras and seeds must be equally many")
    if samples not in (1, 2, 4) or min(size) < 8:
        raise ValueError(f"samples {samples} must be 1, 2 or 4 and size {size} at least 8 x 8")
    results = [
        _photograph(identity, pose, camera, seed, size, samples)
        for identity, pose, camera, seed in zip(identities, poses, cameras, seeds, strict=True)
    ]
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
    person = paint(figure, surfaces, posed, hits, grid, _light(camera, rng), size, samples)
    _contact_shadow(scene, posed, grid, samples)
    scene *= (np.float32(1.0) - person.cover)[..., None]
    scene += person.color
    parsing, depth = person.parsing, person.depth
    hidden = occluder(camera, size, rng)
    if hidden is not None:
        where, thing = hidden
        scene = np.where(where[..., None], thing, scene)
        parsing[where] = 0
        depth[where] = -np.inf
    return expose(camera, scene, rng), parsing, visible_joints(posed, grid, depth, samples)


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


def _contact_shadow(scene: Single, posed: Posed, grid: Grid, samples: int) -> None:
    """Darken the ground around the feet, in place."""
    height, width = scene.shape[:2]
    x, y = to_pixels(posed.joints[[10, 13]], grid, samples).T
    scale = grid.sy / samples
    wide, high = 0.5 * abs(x[0] - x[1]) + 0.26 * scale, 0.5 * abs(y[0] - y[1]) + 0.10 * scale
    center = y.max() + 0.05 * scale
    top, bottom = (int(np.clip(edge, 0, height)) for edge in (center - high, center + high + 1))
    u = (np.arange(width)[None, :] - x.mean()) / wide
    v = (np.arange(top, bottom)[:, None] - center) / high
    dark = np.maximum(1.0 - u * u - v * v, 0.0).astype(np.float32)
    scene[top:bottom] *= (np.float32(1.0) - np.float32(0.45) * dark)[..., None]
