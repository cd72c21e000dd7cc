"""What covers hips, legs and feet: trousers, skirts (also of dresses and coats), shoes, socks."""

from __future__ import annotations

import numpy as np

from reposer.data.rendered.figure import (
    DRESS,
    JUMPSUIT,
    LEG,
    PANTS,
    SHOE,
    SKIRT,
    SOCKS,
    Builder,
    Material,
    fabric_material,
)
from reposer.data.rendered.flesh import SHIN_PROFILE, THIGH_PROFILE, add_leg
from reposer.data.rendered.wardrobe import FABRIC, SKIN

HIP_WIDTH, FEMALE_HIPS = 0.158, 0.010  # half width in meters at a height of 1.72 m, and what women add
SKIRT_LENGTHS = {
    "skirt": 0.34,
    "long skirt": 0.62,
    "dress": 0.40,
    "long-sleeved dress": 0.46,
}  # below the hip
# ease around the leg, least radius at the knee, least radius at the hem
TROUSER_CUTS = {
    "trousers": (0.008, 0.062, 0.056),
    "wide trousers": (0.014, 0.080, 0.084),
    "shorts": (0.012, 0.080, 0.080),
    "jumpsuit": (0.010, 0.066, 0.058),
}
BOOT_TOP = 0.44  # of the shin, from the ankle


def hip_width(builder: Builder) -> float:
    """Half width of the hips in meters."""
    return (HIP_WIDTH + FEMALE_HIPS * builder.shape.female) * builder.girth


def add_lower(builder: Builder) -> None:
    """Trousers, shorts, skirt, or the skirt of a dress, the legs that they leave bare, and the shoes."""
    who = builder.identity
    if who.lower in TROUSER_CUTS:
        _trousers(builder, JUMPSUIT if who.lower == "jumpsuit" else PANTS)
    else:
        label = SKIRT if "skirt" in who.lower else DRESS
        material = builder.paint(fabric_material(who.lower_fabric, builder, folds=0.9))
        length = SKIRT_LENGTHS[who.lower]
        add_skirt(builder, label, material, length, flare=0.045 if length < 0.6 else 0.03)
        if label == SKIRT:
            low = (0.0, builder.joint("r_thigh")[1] + 0.02 * builder.k, -0.004 * builder.k)
            high = builder.joint("waist") * (0, 1, 1)
            width = hip_width(builder) - 0.004 * builder.k
            builder.add("pelvis", low, high, width, 0.125 * builder.girth, label, material, (1, 1, 0.70))
    for side in ("r", "l"):
        if who.lower == "shorts" or who.lower not in TROUSER_CUTS:
            add_leg(builder, side, under_skirt=who.lower != "shorts")
        _shoe(builder, side)


def add_skirt(
    builder: Builder,
    label: int,
    material: int,
    length: float,
    flare: float,
    ease: float = 0.006,
    waist: float = 0.125,
) -> None:
    """Round cones from the waist to the hem, two along each thigh, so that a stride opens the cloth.

    ``length`` counts from the hip joints, ``flare`` widens the hem, ``waist`` is the radius at the top; all
    in meters.
    """
    k, girth = builder.k, builder.girth
    top = (0.0, builder.joint("waist")[1] - 0.01 * k, 0.0)
    width = (0.088 + 1.35 * flare) * girth + ease * k
    bone = "thigh" if length < 0.44 else "shin"
    for side, sign in (("r", -1.0), ("l", 1.0)):
        for outward in (0.062, 0.020):
            hem = (sign * outward * k, builder.joint("r_thigh")[1] - length * k, 0.004 * k)
            bones = "pelvis", f"{side}_{bone}"
            start = waist * girth + ease * k
            builder.add(bones, top, hem, start, width, label, material, (1, 1, 0.80), (-0.2, 1.0))


def _trousers(builder: Builder, label: int) -> None:
    who, k, girth = builder.identity, builder.k, builder.girth
    hip = float(builder.joint("r_thigh")[1])
    seat = builder.paint(fabric_material(who.lower_fabric, builder, folds=0.4))
    low, high = (0.0, hip + 0.010 * k, -0.004 * k), (0.0, hip + 0.055 * k, -0.002 * k)
    width = hip_width(builder) - 0.003 * girth
    builder.add("pelvis", low, high, width, width - 0.010 * girth, label, seat, (1, 1, 0.70))
    ease, knee, hem = TROUSER_CUTS[who.lower]
    for side, sign in (("r", -1.0), ("l", 1.0)):
        axis = builder.joint(f"{side}_thigh")
        cloth = builder.paint(fabric_material(who.lower_fabric, builder, folds=1.0, center=axis))
        low, high = (
            (sign * 0.066 * k, hip - 0.015 * k, -0.030 * k),
            (sign * 0.066 * k, hip + 0.035 * k, -0.020 * k),
        )
        builder.add("pelvis", low, high, 0.076 * girth, 0.070 * girth, label, seat)
        thigh, shin = f"{side}_thigh", f"{side}_shin"
        if who.lower == "shorts":
            builder.limb(thigh, THIGH_PROFILE, label, cloth, ease=ease, until=0.80, least=knee, flat=True)
            continue
        builder.limb(thigh, THIGH_PROFILE, label, cloth, ease=ease, least=knee)
        end = 1.08 - BOOT_TOP if _tucked(builder) else 0.97
        builder.limb(shin, SHIN_PROFILE, label, cloth, ease=ease, until=end, least=hem, flat=True)


def _tucked(builder: Builder) -> bool:
    """Whether narrow trousers end inside boots."""
    return builder.identity.shoes == "boots" and builder.identity.lower == "trousers"


def _shoe(builder: Builder, side: str) -> None:
    who, k = builder.identity, builder.k
    ankle = builder.joint(f"{side}_foot")
    white_sole = who.shoes == "sneakers" and who.shoe_color != "white"
    leather = builder.paint(Material(FABRIC[who.shoe_color], gloss=0.04 if who.shoes == "sneakers" else 0.12))
    sole = builder.paint(Material(FABRIC["white" if white_sole else "charcoal"]))
    foot, label = f"{side}_foot", SHOE[side]

    def at(y: float, z: float) -> tuple[float, float, float]:
        return ankle[0], ankle[1] + y * k, ankle[2] + z * k

    heel, ball, toe, instep = at(-0.028, -0.038), at(-0.034, 0.105), at(-0.042, 0.168), at(-0.002, 0.018)
    builder.add(foot, heel, ball, 0.043 * k, 0.046 * k, label, leather, (0.9, 0.85, 1))
    builder.add(foot, ball, toe, 0.046 * k, 0.033 * k, label, leather, (0.95, 0.8, 1))
    builder.add(foot, instep, ball, 0.045 * k, 0.036 * k, label, leather)
    builder.add(foot, at(-0.064, -0.038), at(-0.062, 0.172), 0.042 * k, 0.040 * k, label, sole, (1, 0.33, 1))
    _ankle(builder, side, instep, leather)


def _ankle(builder: Builder, side: str, instep: tuple[float, float, float], leather: int) -> None:
    """Boot, sock or bare ankle, where no trouser leg hides it."""
    who, k = builder.identity, builder.k
    ankle, knee = builder.joint(f"{side}_foot"), builder.joint(f"{side}_shin")
    bones, open_top = (f"{side}_shin", f"{side}_foot"), (0.0, np.inf)
    bare = who.lower == "shorts" or who.lower not in TROUSER_CUTS
    if who.shoes == "boots" and (bare or _tucked(builder)):
        top, wide = ankle + (knee - ankle) * BOOT_TOP, 0.067 * builder.girth
        builder.add(bones, top, instep, wide, 0.052 * k, SHOE[side], leather, clip=open_top)
    elif bare and who.socks != "none":
        knit = builder.paint(Material(FABRIC[who.socks], folds=0.2))
        top = ankle + (knee - ankle) * 0.30
        builder.add(bones, top, instep, 0.050 * builder.girth, 0.042 * k, SOCKS, knit, clip=open_top)
    elif bare:
        skin = builder.paint(Material(SKIN[who.skin], gloss=0.05))
        above = ankle + (knee - ankle) * 0.05
        builder.add(f"{side}_foot", above, instep, 0.036 * k, 0.038 * k, LEG[side], skin)
