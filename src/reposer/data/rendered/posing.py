"""A figure before a camera: bent, turned, framed like a detector's crop, with its visible joints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reposer.data.rendered.body import JOINT_BONES, JOINT_DEPTH, JOINT_NORMALS, Pose, forward_kinematics
from reposer.data.rendered.cameras import Camera
from reposer.data.rendered.figure import Figure
from reposer.data.rendered.raycast import TILE, Cones, Grid

Float = NDArray[np.float64]
Single = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Posed:
    """A figure before a camera, in camera space (see raycast.py)."""

    cones: Cones
    turns: Float  # (19, 3, 3) bone frame -> camera space
    places: Float  # (19, 3) joints of the bones
    joints: Float  # (18, 3) OpenPose joints
    facing: Float  # (18,) towards the viewer: 1, away: -1; 0 for joints inside the body


def pose_figure(figure: Figure, pose: Pose, pitch: float, roll: float = 0.0) -> Posed:
    """Bend the figure and look at it from ``pitch`` degrees above, the camera tilted by ``roll`` degrees."""
    turns, places = forward_kinematics(pose, figure.rest)
    (cp, sp), (cr, sr) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (pitch, roll))
    tilt = np.array([[1.0, 0.0, 0.0], [0.0, cp, -sp], [0.0, sp, cp]])
    view = np.array([[cr, -sr, 0.0], [sr, cr, 0.0], [0.0, 0.0, 1.0]]) @ tilt
    turns, places = view @ turns, places @ view.T

    def carry(bones: NDArray[np.int64], points: Float) -> Float:
        away = points - figure.rest[bones]
        carried: Float = np.einsum("pij,pj->pi", turns[bones], away) + places[bones]
        return carried

    frame = turns[figure.bone_a]
    stretch = np.einsum("pij,pj,pkj->pik", frame, 1.0 / figure.stretch, frame)
    outline = np.sqrt(np.einsum("pij,pj->pi", frame**2, figure.stretch**2))[:, :2]
    cones = Cones(
        a=carry(figure.bone_a, figure.a),
        b=carry(figure.bone_b, figure.b),
        radius_a=figure.radius[:, 0],
        radius_b=figure.radius[:, 1],
        stretch=stretch,
        clip=figure.clip,
        reach=figure.radius.max(1)[:, None] * outline,
    )
    bones = np.array(JOINT_BONES)
    facing = (turns[bones][:, 2] * JOINT_NORMALS).sum(1)
    return Posed(cones, turns, places, carry(bones, figure.joints), facing)


def frame_person(
    figure: Figure,
    posed: Posed,
    camera: Camera,
    size: tuple[int, int],
    samples: int,
    rng: np.random.Generator,
) -> Grid:
    """The crop a detector would draw: the person fills the height up to a margin, a little displaced.

    Bags do not count, and wide poses are shrunk to the width.
    """
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


def to_pixels(points: Float, grid: Grid, samples: int) -> Float:
    """Camera-space points (N, 3) -> pixel coordinates (N, 2) x, y; pixel centers have whole coordinates."""
    x = (points[:, 0] * grid.sx + grid.x0 + 0.5) / samples - 0.5
    y = (grid.y0 - points[:, 1] * grid.sy + 0.5) / samples - 0.5
    return np.stack((x, y), 1)


def visible_joints(posed: Posed, grid: Grid, depth: Single, samples: int) -> Single:
    """(18, 2) pixel coordinates of the joints; NaN outside the image and where another part is in front.

    ``depth`` (H, W) is the nearest surface of each pixel, -inf where an occluder covers it. A joint lies
    inside the
    body: it counts as seen while the surface before it is no farther than JOINT_DEPTH. Face joints must not
    look away.
    """
    height, width = depth.shape
    points = to_pixels(posed.joints, grid, samples)
    column, row = np.rint(points).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    surface = depth[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    seen = inside & (surface > -posed.joints[:, 2] - JOINT_DEPTH) & (posed.facing > -0.1)
    return np.where(seen[:, None], points, np.nan).astype(np.float32)
