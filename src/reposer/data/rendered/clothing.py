"""What covers trunk and arms: shirts, dresses, coats and their sleeves, with prints and seams."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reposer.data.rendered.figure import (
    ARM,
    COAT,
    DRESS,
    JUMPSUIT,
    UPPER,
    Builder,
    Material,
    Patch,
    fabric_material,
)
from reposer.data.rendered.flesh import ARM_PROFILE, FOREARM_PROFILE, add_arm
from reposer.data.rendered.lowerwear import add_lower, add_skirt, hip_width
from reposer.data.rendered.wardrobe import FABRIC, SKIN, Color, Fabric

COAT_EASE = 0.022  # meters between a coat and the body
COAT_LENGTHS = {"coat": 0.24, "long coat": 0.43}  # below the hip joints


def dress_up(builder: Builder) -> None:
    """All clothes, and the bare arms and legs that they leave."""
    who = builder.identity
    one_piece = {"dress": DRESS, "long-sleeved dress": DRESS, "jumpsuit": JUMPSUIT}.get(who.lower)
    fabric, label = (who.lower_fabric, one_piece) if one_piece else (who.upper_fabric, UPPER)
    if who.coat == "none":
        cloth = builder.paint(_trunk_material(builder, fabric))
        _trunk(builder, label, cloth, ease=0.006, hem=None if one_piece else -0.055)
    else:
        cloth = builder.paint(_coat_material(builder, fabric, label))
        _trunk(builder, COAT, cloth, ease=COAT_EASE, hem=-0.05 if who.coat == "jacket" else -0.09)
        if who.coat in COAT_LENGTHS:
            add_skirt(builder, COAT, cloth, COAT_LENGTHS[who.coat], 0.02, ease=COAT_EASE + 0.004, waist=0.150)
    bare = _sleeves(builder, fabric, label)
    for side in ("r", "l"):
        add_arm(builder, side, bare)
    add_lower(builder)


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


def _trunk_material(builder: Builder, fabric: Fabric) -> Material:
    patches: tuple[Patch, ...] = ()
    if fabric.front:
        patches += _mark(builder, fabric.front, 1, FABRIC[fabric.mark])
    if fabric.back:
        patches += _mark(builder, fabric.back, -1, FABRIC[fabric.mark])
    return replace(fabric_material(fabric, builder), patches=patches)


def _coat_material(builder: Builder, inner: Fabric, inner_label: int) -> Material:
    """An open coat shows the garment below down its front; a closed one its seam."""
    who, k = builder.identity, builder.k
    material = _trunk_material(builder, replace(who.coat_fabric, front=None))
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
    """Hips to shoulders. ``hem``: the lower edge's height above the hip joints (None: a one-piece)."""
    k, f, girth = builder.k, builder.shape.female, builder.girth
    e = ease * k
    hip, waist, chest = (float(builder.joint(b)[1]) for b in ("r_thigh", "waist", "chest"))
    belly = max(0.0, builder.shape.build - 1.0) * 0.10 * k
    hips = hip_width(builder) + e
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
    shoulder, behind = abs(float(builder.joint("l_arm")[0])), float(builder.joint("neck")[2])
    collar = (0.0, neck - 0.050 * k, behind - 0.010 * k), (0.0, neck + 0.004 * k, behind - 0.014 * k)
    builder.add("chest", *collar, 0.066 * girth + e, 0.054 * girth + 0.5 * e, label, material)
    bare = builder.paint(Material(SKIN[builder.identity.skin], gloss=0.05))
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
        bones = "chest", f"{side}_arm"
        if label == UPPER and builder.identity.upper == "tank top":
            builder.add(bones, inner, arm, 0.050 * girth, 0.046 * girth, ARM[side], bare)
        else:
            builder.add(bones, inner, arm, 0.054 * girth + e, 0.047 * girth + e, label, material)
        if f > 0.5:
            bust, above = (
                at(0.062 * k, chest + 0.062 * k, 0.048 * k),
                at(0.058 * k, neck - 0.12 * k, 0.012 * k),
            )
            builder.add("chest", bust, above, 0.066 * girth + e, 0.066 * girth + e, label, material)


def _sleeves(builder: Builder, fabric: Fabric, label: int) -> str:
    """Sleeves; returns what they leave bare, "arm" or "hand"."""
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
            return "arm"
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
    return "hand" if long else "arm"
