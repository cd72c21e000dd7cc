"""Poses that surveillance cameras see: standing, walking, raised arms, bending, carrying, telephoning."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reposer.rendered.body import (
    BONE,
    BONES,
    JOINT_BONES,
    JOINT_DEPTH,
    JOINT_NORMALS,
    Pose,
    forward_kinematics,
)
from reposer.rendered.cameras import Camera
from reposer.rendered.figure import Figure
from reposer.rendered.raycast import TILE, Cones, Grid

Angles = NDArray[np.float64]


def _bend(angles: Angles, bone: str, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> None:
    """Add degrees to a bone. Forward is +x for the trunk, -x for arms and thighs; +x folds a knee."""
    angles[BONE[bone]] += (x, y, z)


def _relaxed(rng: np.random.Generator) -> Angles:
    """Standing with hanging arms: small differences everywhere, so that no two images agree."""
    angles = rng.normal(0.0, 1.5, (len(BONES), 3))
    angles[:, 1] *= 0.6
    for side, sign in (("r", -1.0), ("l", 1.0)):
        _bend(angles, f"{side}_arm", x=rng.uniform(-4, 8), z=sign * rng.uniform(6, 13))
        _bend(angles, f"{side}_forearm", x=-rng.uniform(6, 26), z=-sign * rng.uniform(0, 5))
        _bend(angles, f"{side}_thigh", z=sign * rng.uniform(0.5, 5.5))
        _bend(angles, f"{side}_foot", y=sign * rng.uniform(3, 16))
    _bend(angles, "head", x=rng.normal(3, 6), y=rng.normal(0, 14))
    return angles


def _stand(rng: np.random.Generator) -> Angles:
    angles = _relaxed(rng)
    if rng.random() < 0.5:  # weight on one leg: the other knee is a little bent
        side = rng.choice(["r", "l"])
        lean = rng.uniform(6, 18)
        _bend(angles, f"{side}_thigh", x=-lean * 0.8)
        _bend(angles, f"{side}_shin", x=lean * 1.5)
        _bend(angles, f"{side}_foot", x=-lean * 0.7)
        _bend(angles, "pelvis", z=2.5 if side == "r" else -2.5)
        _bend(angles, "waist", z=-2.5 if side == "r" else 2.5)
    return angles


def _walk(rng: np.random.Generator) -> Angles:
    """One phase of the gait cycle: hip and knee roughly follow the sagittal curves of Winter, chapter 5."""
    angles = _relaxed(rng)
    phase, stride = rng.uniform(0, 2 * math.pi), rng.uniform(0.7, 1.15)
    swing = rng.uniform(0.5, 1.2) * stride
    for side, sign, shift in (("r", -1.0, 0.0), ("l", 1.0, math.pi)):
        p = phase + shift  # 0: heel strike in front, pi: toe-off behind
        hip = 6.0 + 23.0 * stride * math.cos(p)
        knee = 6.0 + 9.0 * max(0.0, math.sin(p)) + 52.0 * stride * max(0.0, math.sin(p - 3.55)) ** 1.3
        _bend(angles, f"{side}_thigh", x=-hip, z=-sign * 2.0)
        _bend(angles, f"{side}_shin", x=knee)
        _bend(angles, f"{side}_foot", x=-8.0 * math.cos(p) + 16.0 * max(0.0, math.sin(p - 2.4)), y=-sign * 5)
        back = math.cos(p)  # the arm swings against its leg
        _bend(angles, f"{side}_arm", x=20.0 * swing * back + 2.0)
        _bend(angles, f"{side}_forearm", x=-10.0 - 10.0 * swing * max(0.0, -back))
    _bend(angles, "pelvis", x=2.0, y=4.0 * math.cos(phase))
    _bend(angles, "chest", x=1.5, y=-8.0 * math.cos(phase))
    _bend(angles, "neck", y=4.0 * math.cos(phase))
    return angles


def _raise_arm(rng: np.random.Generator, angles: Angles, side: str) -> None:
    sign = -1.0 if side == "r" else 1.0
    _bend(angles, f"{side}_arm", x=-rng.uniform(60, 165), z=sign * rng.uniform(0, 35))
    _bend(angles, f"{side}_forearm", x=-rng.uniform(0, 70))


def _arms_up(rng: np.random.Generator) -> Angles:
    angles = _stand(rng)
    sides = ["r", "l"] if rng.random() < 0.35 else [str(rng.choice(["r", "l"]))]
    for side in sides:
        _raise_arm(rng, angles, side)
    return angles


def _bending(rng: np.random.Generator) -> Angles:
    angles = _stand(rng)
    depth = rng.uniform(18, 62)
    _bend(angles, "pelvis", x=depth * 0.5)
    _bend(angles, "waist", x=depth * 0.25)
    _bend(angles, "chest", x=depth * 0.25)
    _bend(angles, "neck", x=-depth * 0.2)
    knees = rng.uniform(0, 30)
    for side in ("r", "l"):
        _bend(angles, f"{side}_thigh", x=-depth * 0.5 - knees * 0.6)
        _bend(angles, f"{side}_shin", x=knees * 1.1)
        _bend(angles, f"{side}_foot", x=-knees * 0.5)
        _bend(angles, f"{side}_arm", x=-depth * rng.uniform(0.6, 1.0))
        _bend(angles, f"{side}_forearm", x=-rng.uniform(0, 35))
    return angles


def _carry(rng: np.random.Generator) -> Angles:
    """Both hands in front of the belly, as around a box or a tablet."""
    angles = _walk(rng) if rng.random() < 0.5 else _stand(rng)
    for side, sign in (("r", -1.0), ("l", 1.0)):
        angles[BONE[f"{side}_arm"]] = (
            -rng.uniform(8, 32),
            -sign * rng.uniform(15, 35),
            sign * rng.uniform(4, 12),
        )
        angles[BONE[f"{side}_forearm"]] = (-rng.uniform(65, 100), 0.0, -sign * rng.uniform(5, 22))
    return angles


def _phone(rng: np.random.Generator) -> Angles:
    """One hand at the ear, or before the face with the head bowed."""
    angles = _walk(rng) if rng.random() < 0.5 else _stand(rng)
    side, sign = [("r", -1.0), ("l", 1.0)][int(rng.integers(2))]
    if rng.random() < 0.5:
        angles[BONE[f"{side}_arm"]] = (-rng.uniform(40, 60), -sign * 20.0, sign * rng.uniform(20, 35))
        angles[BONE[f"{side}_forearm"]] = (-rng.uniform(128, 142), 0.0, 0.0)
    else:
        angles[BONE[f"{side}_arm"]] = (-rng.uniform(25, 40), -sign * 25.0, sign * 6.0)
        angles[BONE[f"{side}_forearm"]] = (-rng.uniform(88, 108), 0.0, -sign * 8.0)
        _bend(angles, "head", x=rng.uniform(12, 24))
    return angles


ACTIONS: dict[str, tuple[float, Callable[[np.random.Generator], Angles]]] = {
    "walk": (0.52, _walk),
    "stand": (0.22, _stand),
    "carry": (0.08, _carry),
    "phone": (0.07, _phone),
    "arms_up": (0.06, _arms_up),
    "bend": (0.05, _bending),
}


def sample_pose(rng: np.random.Generator, action: str | None = None, yaw: float | None = None) -> Pose:
    """A pose drawn from ``rng``; ``action`` (a key of ACTIONS) and ``yaw`` (degrees) can be fixed."""
    drawn = str(rng.choice(list(ACTIONS), p=[share for share, _ in ACTIONS.values()]))
    turned = float(rng.uniform(-180, 180))
    action = drawn if action is None else action
    return Pose(action, turned if yaw is None else yaw, ACTIONS[action][1](rng))


# ---- A figure before a camera: bent, turned, framed like a detector's crop, with its visible joints.

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
