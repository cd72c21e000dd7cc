"""Poses that surveillance cameras see: standing, walking, raised arms, bending, carrying, telephoning."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from reposer.data.rendered.body import BONE, BONES, Pose

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
