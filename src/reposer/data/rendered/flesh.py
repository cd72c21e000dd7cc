"""Bare parts of a person as round cones: head, neck, arms, hands, legs."""

from __future__ import annotations

import numpy as np

from reposer.data.rendered.figure import ARM, FACE, GLOVE, LEG, Builder, Material
from reposer.data.rendered.wardrobe import FABRIC, HAIR, SKIN

# (fraction of the bone, radius in meters at a height of 1.72 m)
ARM_PROFILE = ((0.0, 0.046), (0.35, 0.047), (0.8, 0.040), (1.0, 0.038))
FOREARM_PROFILE = ((0.0, 0.037), (0.25, 0.040), (0.6, 0.034), (1.0, 0.025))
THIGH_PROFILE = ((0.0, 0.072), (0.25, 0.079), (0.7, 0.064), (1.0, 0.052))
SHIN_PROFILE = ((0.0, 0.050), (0.27, 0.056), (0.6, 0.043), (1.0, 0.034))


def add_head(builder: Builder) -> None:
    """Skull, jaw, nose, ears and neck; the face is painted by shading.py."""
    k, c, who = builder.k, builder.head, builder.identity
    skin, center = SKIN[who.skin], (float(c[0]), float(c[1]), float(c[2]))
    painted = Material(skin, HAIR[who.hair], "face", gloss=0.06, center=center, beard=who.beard)
    face, plain = builder.paint(painted), builder.paint(Material(skin, gloss=0.05))
    slim = 1.0 - 0.05 * who.shape.female
    narrow = (0.86 * slim, 1.0, 1.0)

    def at(x: float, y: float, z: float) -> tuple[float, float, float]:
        return center[0] + x * k, center[1] + y * k, center[2] + z * k

    def piece(a: tuple[float, ...], b: tuple[float, ...], ra: float, rb: float, paint: int) -> None:
        stretch = narrow if ra > 0.05 else (0.5, 1.0, 1.0) if paint == plain else (1.0, 1.0, 1.0)
        builder.add("head", a, b, ra * k, rb * k, FACE, paint, stretch)

    piece(at(0, 0.030, -0.012), at(0, 0.020, 0.012), 0.089, 0.082, face)  # skull
    piece(at(0, 0.000, 0.012), at(0, -0.078, 0.036), 0.079, 0.040 * slim, face)  # jaw
    piece(at(0, 0.004, 0.086), at(0, -0.022, 0.096), 0.008, 0.013, face)  # nose
    for sign in (-1, 1):
        piece(at(sign * 0.073, 0.002, -0.006), at(sign * 0.070, -0.022, -0.002), 0.017, 0.012, plain)  # ear
    width = (0.058 - 0.010 * who.shape.female) * builder.girth
    low = builder.joint("neck") + np.array((0, -0.03, -0.004)) * k
    builder.add(("chest", "head"), low, at(0, -0.045, -0.012), width * 1.12, width * 0.95, FACE, plain)


def add_arm(builder: Builder, side: str, bare: str) -> None:
    """The hand, gloved or not; with ``bare`` "arm" also the arm above it, with "hand" no more."""
    who, sign = builder.identity, 1.0 if side == "l" else -1.0
    thin = 1.0 - 0.14 * who.shape.female
    skin = builder.paint(Material(SKIN[who.skin], gloss=0.05))
    if bare == "arm":
        builder.limb(f"{side}_arm", ARM_PROFILE, ARM[side], skin, scale=thin)
        builder.limb(f"{side}_forearm", FOREARM_PROFILE, ARM[side], skin, scale=thin)
    label, surface = ARM[side], skin
    if who.gloves != "none":
        label, surface = GLOVE, builder.paint(Material(FABRIC[who.gloves], folds=0.2))
    wrist, k = builder.joint(f"{side}_hand"), builder.k * (1.0 - 0.08 * who.shape.female)

    def at(inward: float, y: float, z: float) -> tuple[float, float, float]:
        return wrist[0] - sign * inward * k, wrist[1] + y * k, wrist[2] + z * k

    root, palm, fingers = at(0.0, -0.020, 0.004), at(0.004, -0.075, 0.010), at(0.014, -0.150, 0.022)
    bone, flat = f"{side}_hand", (0.66, 1.0, 1.0)
    builder.add(bone, root, palm, 0.030 * k, 0.043 * k, label, surface, flat)
    builder.add(bone, palm, fingers, 0.041 * k, 0.024 * k, label, surface, flat)
    builder.add(bone, root, at(0.010, -0.095, 0.052), 0.014 * k, 0.011 * k, label, surface)  # thumb


def add_leg(builder: Builder, side: str, under_skirt: bool) -> None:
    """Bare leg down to the ankle; under a skirt only from the middle of the thigh, so as not to pierce it."""
    skin = builder.paint(Material(SKIN[builder.identity.skin], gloss=0.05))
    profile = ((0.42, 0.072), *THIGH_PROFILE[2:]) if under_skirt else THIGH_PROFILE
    builder.limb(f"{side}_thigh", profile, LEG[side], skin)
    builder.limb(f"{side}_shin", SHIN_PROFILE, LEG[side], skin)
