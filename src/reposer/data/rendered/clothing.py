"""Garments as round cones around the flesh: trunk, sleeves, coats, trousers, skirts, dresses, shoes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reposer.data.rendered.figure import (
    ARM_PROFILE,
    COAT,
    DRESS,
    FOREARM_PROFILE,
    JUMPSUIT,
    LEG,
    PANTS,
    SHIN_PROFILE,
    SHOE,
    SKIRT,
    SOCKS,
    THIGH_PROFILE,
    UPPER,
    Builder,
    Material,
    Patch,
    add_arm_flesh,
    add_leg_flesh,
    fabric_material,
)
from reposer.data.rendered.wardrobe import FABRIC, Color, Fabric

HIP_WIDTH, FEMALE_HIPS = 0.158, 0.010  # half width in meters at a height of 1.72 m, and what women add


def dress_up(builder: Builder) -> None:
    """All clothes, and the bare arms and legs that they leave."""
    who = builder.identity
    one_piece = {"dress": DRESS, "long-sleeved dress": DRESS, "jumpsuit": JUMPSUIT}.get(who.lower)
    fabric = who.lower_fabric if one_piece else who.upper_fabric
    label = one_piece or UPPER
    has_coat = who.coat != "none"
    if not has_coat:
        trunk = builder.paint(_trunk_material(builder, fabric, label))
        _trunk(builder, label, trunk, ease=0.006, hem=None if one_piece else -0.055)
    else:
        trunk = builder.paint(_coat_material(builder, fabric, label))
        hems = {"jacket": -0.05, "coat": -0.03, "long coat": -0.03}
        _trunk(builder, COAT, trunk, ease=0.022, hem=hems[who.coat])
        if who.coat != "jacket":
            _skirt(builder, COAT, trunk, length=0.24 if who.coat == "coat" else 0.43, flare=0.02, ease=0.024)
    bare_from = _sleeves(builder, fabric, label)
    for side in ("r", "l"):
        add_arm_flesh(builder, side, bare_from)
    _lower(builder)
    for side in ("r", "l"):
        _shoe(builder, side)


def _mark(builder: Builder, kind: str, side: int, color: Color) -> tuple[Patch, ...]:
    """Print, buttons or number of the trunk."""
    k, y = builder.k, float(builder.joint("chest")[1])
    if kind == "logo":
        return (Patch(side, 0.062 * k * side, y + 0.105 * k, 0.042 * k, 0.034 * k, color),)
    if kind == "band":
        return (Patch(side, 0.0, y + 0.05 * k, 1.0, 0.050 * k, color),)
    if kind == "buttons":
        return tuple(
            Patch(side, 0.0, y + dy * k, 0.012 * k, 0.012 * k, color) for dy in (-0.2, -0.1, 0.0, 0.1)
        )
    if kind == "picture":
        return (Patch(side, 0.0, y + 0.055 * k, 0.085 * k, 0.085 * k, color, ellipse=True),)
    return (
        Patch(side, -0.045 * k, y + 0.05 * k, 0.022 * k, 0.085 * k, color),
        Patch(side, 0.045 * k, y + 0.05 * k, 0.022 * k, 0.085 * k, color),
    )


def _trunk_material(builder: Builder, fabric: Fabric, label: int) -> Material:
    patches: tuple[Patch, ...] = ()
    if fabric.front:
        patches += _mark(builder, fabric.front, 1, FABRIC[fabric.mark])
    if fabric.back:
        patches += _mark(builder, fabric.back, -1, FABRIC[fabric.mark])
    return replace(fabric_material(fabric, builder), patches=patches)


def _coat_material(builder: Builder, inner: Fabric, inner_label: int) -> Material:
    """An open coat shows the garment below down its front; a closed one its seam."""
    who, k = builder.identity, builder.k
    material = _trunk_material(builder, replace(who.coat_fabric, front=None), COAT)
    neck = float(builder.joint("neck")[1])
    if not who.coat_open:
        dark = tuple(0.55 * v for v in material.color)
        seam = Patch(1, 0.0, neck - 0.5 * k, 0.007 * k, 0.6 * k, (dark[0], dark[1], dark[2]))
        return replace(material, patches=(*material.patches, seam))
    hem = builder.joint("r_thigh")[1] - 0.05 * k
    middle, half = (neck + hem) / 2, (neck - hem) / 2 + 0.06 * k
    inside = Patch(1, 0.0, float(middle), 0.058 * k, float(half), FABRIC[inner.color], label=inner_label)
    return replace(material, patches=(*material.patches, inside))


def _trunk(builder: Builder, label: int, material: int, ease: float, hem: float | None) -> None:
    """Hips to shoulders. ``hem`` is the height of the lower edge above the hip joints (None: a one-piece, no edge)."""
    k, f, girth = builder.k, builder.shape.female, builder.girth
    e = ease * k
    hip, waist, chest = (float(builder.joint(b)[1]) for b in ("r_thigh", "waist", "chest"))
    belly = max(0.0, builder.shape.build - 1.0) * 0.10 * k
    hips = (HIP_WIDTH + FEMALE_HIPS * f) * girth + e
    middle, ribs = (0.143 - 0.020 * f) * girth + e, (0.150 - 0.014 * f) * girth + e
    flat = (1.0, 1.0, 0.71)
    at_hip, at_waist = (0.0, hip + 0.02 * k, -0.004 * k), (0.0, waist + 0.035 * k, 0.004 * k + belly)
    at_ribs = (0.0, chest + 0.070 * k, 0.002 * k)
    if hem is not None:
        edge = (0.0, hip + hem * k, -0.004 * k)
        builder.add("pelvis", at_hip, edge, hips, hips * 1.03, label, material, (1, 1, 0.74), (-np.inf, 1.0))
    cut = (-np.inf, np.inf) if hem is None else (0.0, np.inf)
    builder.add(("pelvis", "waist"), at_hip, at_waist, hips, middle, label, material, flat, cut)
    builder.add(("waist", "chest"), at_waist, at_ribs, middle, ribs, label, material, flat)
    _shoulders(builder, label, material, e)


def _shoulders(builder: Builder, label: int, material: int, e: float) -> None:
    """Chest, the slope from the neck and the round of each shoulder."""
    k, f, girth = builder.k, builder.shape.female, builder.girth
    chest, neck = float(builder.joint("chest")[1]), float(builder.joint("neck")[1])
    shoulder = abs(float(builder.joint("l_arm")[0]))
    for sign, side in ((-1, "r"), (1, "l")):

        def at(x: float, y: float, z: float, sign: int = sign) -> tuple[float, float, float]:
            return sign * x, y, z

        low = at(0.052 * k, chest + 0.040 * k, 0.000)
        high = at(shoulder - 0.088 * k, neck - 0.096 * k, -0.006 * k)
        builder.add("chest", low, high, 0.096 * girth + e, 0.084 * girth + e, label, material)
        root = at(0.022 * k, neck - 0.010 * k, -0.016 * k)
        cap = at(shoulder - 0.022 * k, neck - 0.050 * k, -0.008 * k)
        builder.add("chest", root, cap, 0.050 * girth + e, 0.045 * girth + e, label, material)
        inner = at(shoulder - 0.050 * k, neck - 0.075 * k, -0.008 * k)
        arm = builder.joint(f"{side}_arm") + np.array((0.0, -0.060, 0.0)) * k
        builder.add(("chest", f"{side}_arm"), inner, arm, 0.058 * girth + e, 0.047 * girth + e, label, material)
        if f > 0.5:
            bust, above = at(0.062 * k, chest + 0.062 * k, 0.048 * k), at(0.058 * k, neck - 0.12 * k, 0.012 * k)
            builder.add("chest", bust, above, 0.066 * girth + e, 0.066 * girth + e, label, material)


def _sleeves(builder: Builder, fabric: Fabric, label: int) -> float:
    """Sleeves; returns from where the arm is bare (see add_arm_flesh)."""
    who = builder.identity
    if who.coat != "none":
        fabric, label, ease, long = who.coat_fabric, COAT, 0.020, True
    elif label == UPPER:
        ease, long = {
            "t-shirt": (0.011, False),
            "tank top": (0.0, False),
            "shirt": (0.009, True),
            "sweater": (0.014, True),
        }[who.upper]
        if who.upper == "tank top":
            return 0.0
    else:
        ease, long = 0.010, who.lower in ("long-sleeved dress", "jumpsuit")
    if fabric.pattern == "block":
        fabric = replace(fabric, color=fabric.second, pattern="plain")
    thin = 1.0 - 0.12 * who.shape.female
    for side in ("r", "l"):
        material = builder.paint(
            fabric_material(fabric, builder, folds=0.8, center=builder.joint(f"{side}_arm"))
        )
        if not long:
            builder.limb(
                f"{side}_arm",
                ARM_PROFILE,
                label,
                material,
                ease=ease,
                until=0.62,
                least=0.052,
                flat=True,
                scale=thin,
            )
            continue
        builder.limb(f"{side}_arm", ARM_PROFILE, label, material, ease=ease, scale=thin)
        builder.limb(
            f"{side}_forearm",
            FOREARM_PROFILE,
            label,
            material,
            ease=ease,
            least=0.034 + ease / 2,
            flat=True,
            scale=thin,
        )
    return 2.0 if long else 0.0


def _skirt(
    builder: Builder, label: int, material: int, length: float, flare: float, ease: float = 0.008
) -> None:
    """Round cones from the waist to the hem, one along each thigh and fillers between, so that a stride opens the cloth."""
    k, girth = builder.k, builder.girth
    hip, waist = builder.joint("r_thigh"), builder.joint("waist")
    top = np.array((0, waist[1] - 0.01 * k, 0.0))
    width = (0.088 + flare) * girth + ease * k
    bone = "thigh" if length < 0.44 else "shin"
    for side, sign in (("r", -1.0), ("l", 1.0)):
        for inward in (0.062, 0.020):
            hem = np.array((sign * inward * k, hip[1] - length * k, 0.004 * k))
            builder.add(("pelvis", f"{side}_{bone}"), top, hem, 0.125 * girth + ease * k, width + 0.35 * flare * k, label,
                        material, (1, 1, 0.86), (-0.2, 1.0))  # fmt: skip


def _lower(builder: Builder) -> None:
    who, k = builder.identity, builder.k
    fabric = who.lower_fabric
    if who.lower in ("trousers", "wide trousers", "shorts", "jumpsuit"):
        label = JUMPSUIT if who.lower == "jumpsuit" else PANTS
        _trousers(builder, fabric, label)
        if who.lower == "shorts":
            for side in ("r", "l"):
                add_leg_flesh(builder, side)
        return
    label = DRESS if "dress" in who.lower else SKIRT
    material = builder.paint(fabric_material(fabric, builder, folds=0.9))
    length = {"skirt": 0.34, "long skirt": 0.62, "dress": 0.40, "long-sleeved dress": 0.46}[who.lower]
    _skirt(builder, label, material, length, flare=0.045 if length < 0.6 else 0.03, ease=0.006)
    hip = builder.joint("r_thigh")
    if label == SKIRT:
        top = np.array((0, hip[1] + 0.02 * k, -0.004 * k))
        builder.add("pelvis", top, builder.joint("waist") * (0, 1, 1), (0.154 + 0.010 * builder.shape.female) * builder.girth,
                    0.125 * builder.girth, label, material, (1, 1, 0.70))  # fmt: skip
    for side in ("r", "l"):
        add_leg_flesh(builder, side)


def _trousers(builder: Builder, fabric: Fabric, label: int) -> None:
    who, k, girth = builder.identity, builder.k, builder.girth
    hip = builder.joint("r_thigh")
    seat = builder.paint(fabric_material(fabric, builder, folds=0.4))
    width = (HIP_WIDTH - 0.003 + FEMALE_HIPS * builder.shape.female) * girth
    builder.add("pelvis", np.array((0, hip[1] + 0.010 * k, -0.004 * k)), np.array((0, hip[1] + 0.12 * k, 0)), width,
                0.132 * girth, label, seat, (1, 1, 0.70))  # fmt: skip
    ease, least_knee, least_hem = {"trousers": (0.008, 0.062, 0.056), "wide trousers": (0.014, 0.080, 0.084),
                                   "shorts": (0.012, 0.080, 0.08), "jumpsuit": (0.010, 0.066, 0.058)}[who.lower]  # fmt: skip
    for side, sign in (("r", -1.0), ("l", 1.0)):
        material = builder.paint(
            fabric_material(fabric, builder, folds=1.0, center=builder.joint(f"{side}_thigh"))
        )
        seat_at = np.array((sign * 0.066 * k, hip[1] - 0.015 * k, -0.030 * k))
        builder.add(
            "pelvis",
            seat_at,
            seat_at + np.array((0, 0.05, 0.01)) * k,
            0.080 * girth,
            0.070 * girth,
            label,
            seat,
        )
        if who.lower == "shorts":
            builder.limb(
                f"{side}_thigh",
                THIGH_PROFILE,
                label,
                material,
                ease=ease,
                until=0.80,
                least=least_knee,
                flat=True,
            )
            continue
        builder.limb(f"{side}_thigh", THIGH_PROFILE, label, material, ease=ease, least=least_knee)
        builder.limb(
            f"{side}_shin", SHIN_PROFILE, label, material, ease=ease, until=0.97, least=least_hem, flat=True
        )


def _shoe(builder: Builder, side: str) -> None:
    who, k = builder.identity, builder.k
    bare = who.lower in ("shorts", "skirt", "long skirt", "dress", "long-sleeved dress")
    ankle, knee = builder.joint(f"{side}_foot"), builder.joint(f"{side}_shin")
    color = FABRIC[who.shoe_color]
    leather = builder.paint(Material(color, gloss=0.12 if who.shoes != "sneakers" else 0.04))
    sole_color = (
        FABRIC["white"] if who.shoes == "sneakers" and who.shoe_color != "white" else FABRIC["charcoal"]
    )
    sole = builder.paint(Material(sole_color))
    heel, ball, toe = (
        ankle + np.array(p) * k for p in ((0, -0.028, -0.038), (0, -0.034, 0.105), (0, -0.042, 0.168))
    )
    instep = ankle + np.array((0, -0.002, 0.018)) * k
    foot, label = f"{side}_foot", SHOE[side]
    builder.add(foot, heel, ball, 0.043 * k, 0.046 * k, label, leather, (0.9, 0.85, 1))
    builder.add(foot, ball, toe, 0.046 * k, 0.033 * k, label, leather, (0.95, 0.8, 1))
    builder.add(foot, instep, ball, 0.045 * k, 0.036 * k, label, leather)
    builder.add(
        foot,
        heel + np.array((0, -0.036, 0)) * k,
        toe + np.array((0, -0.020, 0.004)) * k,
        0.042 * k,
        0.040 * k,
        label,
        sole,
        (1, 0.33, 1),
    )
    if who.shoes == "boots":
        top = ankle + (knee - ankle) * 0.42
        builder.add(
            (f"{side}_shin", foot), top, instep, 0.058 * k, 0.052 * k, label, leather, clip=(0.0, np.inf)
        )
    elif bare and who.socks != "none":
        material = builder.paint(Material(FABRIC[who.socks], folds=0.2))
        top = ankle + (knee - ankle) * 0.30
        builder.add(
            (f"{side}_shin", foot), top, instep, 0.050 * k, 0.042 * k, SOCKS, material, clip=(0.0, np.inf)
        )
    elif bare:
        skin = builder.materials[0]
        material = builder.paint(Material(skin.color, gloss=0.05))
        builder.add(
            foot, ankle + np.array((0, 0.02, 0)) * k, instep, 0.036 * k, 0.038 * k, LEG[side], material
        )
