"""What covers trunk and arms: shirts, dresses, coats and their sleeves, with prints and seams."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reposer.rendered.figure import (
    ARM,
    COAT,
    DRESS,
    FACE,
    GLOVE,
    JUMPSUIT,
    LEG,
    PANTS,
    SHOE,
    SKIRT,
    SOCKS,
    UPPER,
    Builder,
    Material,
    Patch,
    fabric_material,
)
from reposer.rendered.wardrobe import FABRIC, HAIR, SKIN, Color, Fabric

# ---- Bare parts of a person as round cones: head, neck, arms, hands, legs.

# (fraction of the bone, radius in meters at a height of 1.72 m)
ARM_PROFILE = ((0.0, 0.046), (0.35, 0.047), (0.8, 0.040), (1.0, 0.038))
FOREARM_PROFILE = ((0.0, 0.037), (0.25, 0.040), (0.6, 0.034), (1.0, 0.025))
THIGH_PROFILE = ((0.0, 0.072), (0.25, 0.079), (0.7, 0.064), (1.0, 0.052))
SHIN_PROFILE = ((0.0, 0.050), (0.27, 0.056), (0.6, 0.043), (1.0, 0.034))


def add_head(builder: Builder) -> None:
    """Skull, jaw, nose, ears and neck; the face is painted by painting.py."""
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


# ---- What covers hips, legs and feet: trousers, skirts (also of dresses and coats), shoes, socks.

HIP_WIDTH, FEMALE_HIPS = 0.158, 0.010  # half width in meters at a height of 1.72 m, and what women add
# below the hip
SKIRT_LENGTHS = {
    "skirt": 0.34,
    "long skirt": 0.62,
    "dress": 0.40,
    "long-sleeved dress": 0.46,
}
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
