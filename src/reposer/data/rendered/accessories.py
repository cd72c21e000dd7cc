"""Hair, hats, glasses, scarves and bags as round cones."""

from __future__ import annotations

import numpy as np

from reposer.data.rendered.figure import GLASSES, HAIR_LABEL, HAT, SCARF, UPPER, Builder, Material
from reposer.data.rendered.wardrobe import FABRIC, HAIR

_INF = np.inf


def add_hair(builder: Builder) -> None:
    """Hair by style; a hat that covers the skull leaves the part below it."""
    who, c, k = builder.identity, builder.head, builder.k
    if who.hair_style == "bald":
        return
    hair = builder.paint(
        Material(HAIR[who.hair], pattern="hair", gloss=0.10, folds=0.6, center=(c[0], c[1], c[2]))
    )

    def lock(a: tuple[float, ...], b: tuple[float, ...], ra: float, rb: float, stretch: tuple[float, ...] = (1, 1, 1),
             bones: str | tuple[str, str] = "head", clip: tuple[float, float] = (-_INF, _INF)) -> None:  # fmt: skip
        builder.add(
            bones, c + np.array(a) * k, c + np.array(b) * k, ra * k, rb * k, HAIR_LABEL, hair, stretch, clip
        )

    thick = {
        "crop": 0.094,
        "short": 0.099,
        "curly": 0.122,
        "bob": 0.104,
        "long": 0.102,
        "ponytail": 0.097,
        "bun": 0.097,
    }
    covered, out = who.hat != "none", 0.014 if who.coat != "none" else 0.0
    r = min(thick[who.hair_style], 0.095) if covered else thick[who.hair_style]
    lock((0, 0.040, -0.022), (0, 0.046, -0.004), r, r - 0.004, (0.90, 1, 1))  # skull cap
    lock((0, 0.000, -0.042), (0, -0.050, -0.046), r - 0.018, 0.062, (0.98, 1, 0.85))  # back of the head
    if who.hair_style in ("short", "bob", "long") and not covered:
        lock((-0.036, 0.092, 0.052), (0.040, 0.098, 0.046), 0.030, 0.034)  # fringe
    if who.hair_style == "curly" and not covered:
        lock((-0.058, 0.010, -0.030), (0.058, 0.010, -0.030), 0.078, 0.078)
    if who.hair_style in ("bob", "long"):
        low = -0.085 if who.hair_style == "bob" else -0.130
        for sign in (-1, 1):
            lock((sign * 0.066, 0.030, -0.006), (sign * 0.074, low, -0.004), 0.036, 0.034, (0.75, 1, 1.25))
    if who.hair_style == "bob":
        lock(
            (0, -0.02 if covered else 0.0, -0.040),
            (0, -0.085, -0.050),
            0.080 if covered else 0.092,
            0.084,
            (1.0, 1, 0.75),
            clip=(-_INF, 1.35),
        )
    if who.hair_style == "long":
        lock(
            (0, -0.02 if covered else 0.0, -0.045),
            (0, -0.150, -0.070 - out),
            0.080 if covered else 0.094,
            0.098,
            (1.0, 1, 0.62),
            ("head", "chest"),
        )
        lock((0, -0.150, -0.070 - out), (0, -0.300, -0.092 - out), 0.098, 0.066, (1.0, 1, 0.55), "chest")
    if who.hair_style == "ponytail":
        lock((0, 0.040, -0.115), (0, -0.050, -0.150), 0.034, 0.042)
        lock((0, -0.050, -0.150), (0, -0.210, -0.130), 0.042, 0.018)
    if who.hair_style == "bun":
        high = 0.0 if covered else 0.085
        lock((0, high, -0.100), (0, high + 0.015, -0.105), 0.048, 0.046)


def add_hat(builder: Builder) -> None:
    """Cap with visor, beanie, or hat with a brim."""
    who, c, k = builder.identity, builder.head, builder.k
    if who.hat == "none":
        return
    cloth = builder.paint(Material(FABRIC[who.hat_color], folds=0.25))
    wide = 0.114

    def piece(a: tuple[float, ...], b: tuple[float, ...], ra: float, rb: float, stretch: tuple[float, ...] = (1, 1, 1),
              clip: tuple[float, float] = (-_INF, _INF)) -> None:  # fmt: skip
        builder.add(
            "head", c + np.array(a) * k, c + np.array(b) * k, ra * k, rb * k, HAT, cloth, stretch, clip
        )

    low = 0.030 if who.hat == "beanie" else 0.042
    piece((0, low, -0.014), (0, low + 0.040, -0.014), wide, wide - 0.008, (0.92, 1, 1), (0.0, _INF))
    if who.hat == "beanie":
        piece(
            (0, low + 0.012, -0.008),
            (0, low + 0.030, -0.008),
            wide + 0.005,
            wide + 0.003,
            (0.92, 1, 1),
            (-0.6, 1.6),
        )
        piece((0, 0.150, -0.015), (0, 0.165, -0.015), 0.030, 0.026)
    if who.hat == "cap":
        piece((0, 0.048, 0.075), (0, 0.040, 0.130), 0.080, 0.062, (1, 0.16, 1))
    if who.hat == "brim":
        piece((0, 0.046, -0.008), (0, 0.045, 0.0), 0.185, 0.180, (1, 0.07, 1))


def add_glasses(builder: Builder) -> None:
    """Dark lenses, bridge and temples."""
    if not builder.identity.glasses:
        return
    c, k = builder.head, builder.k
    dark = builder.paint(Material((0.06, 0.06, 0.07), gloss=0.30))
    for sign in (-1, 1):
        lens = c + np.array((sign * 0.032, 0.010, 0.084)) * k
        builder.add(
            "head",
            lens,
            lens + np.array((sign * 0.006, 0, -0.002)) * k,
            0.024 * k,
            0.022 * k,
            GLASSES,
            dark,
            (1, 0.85, 0.45),
        )
        builder.add(
            "head",
            c + np.array((sign * 0.062, 0.016, 0.070)) * k,
            c + np.array((sign * 0.078, 0.012, -0.01)) * k,
            0.006 * k,
            0.005 * k,
            GLASSES,
            dark,
        )
    builder.add(
        "head",
        c + np.array((-0.02, 0.014, 0.092)) * k,
        c + np.array((0.02, 0.014, 0.092)) * k,
        0.006 * k,
        0.006 * k,
        GLASSES,
        dark,
    )


def add_scarf(builder: Builder) -> None:
    """A ring around the neck and one hanging end."""
    who, k = builder.identity, builder.k
    if who.scarf == "none":
        return
    wool = builder.paint(Material(FABRIC[who.scarf], folds=0.9))
    neck = builder.joint("neck") + np.array((0, 0.028, 0.004)) * k
    ring = [
        neck + np.array((0.068 * np.sin(t), 0.012 * np.cos(t) - 0.012, 0.070 * np.cos(t))) * k
        for t in np.arange(6) * np.pi / 3
    ]
    for i in range(6):
        builder.add("chest", ring[i], ring[(i + 1) % 6], 0.042 * k, 0.042 * k, SCARF, wool)
    front = ring[0] + np.array((0.030, -0.03, 0.022)) * k
    builder.add(
        "chest",
        front,
        front + np.array((0.012, -0.27, 0.030)) * k,
        0.040 * k,
        0.046 * k,
        SCARF,
        wool,
        (1, 1, 0.5),
        (-_INF, 1.0),
    )


def add_bag(builder: Builder) -> None:
    """Backpack, shoulder bag with a strap across the trunk, or a bag in the hand.

    LIP has no bag: a bag is labeled upper-clothes, so that the mask holds all that moves with the person.
    """
    who, k = builder.identity, builder.k
    if who.bag == "none":
        return
    color = FABRIC[who.bag_color]
    cloth = builder.paint(Material(color, gloss=0.05, folds=0.15))
    strap = builder.paint(Material((color[0] * 0.6, color[1] * 0.6, color[2] * 0.6)))
    out = 0.022 * k if who.coat != "none" else 0.006 * k
    chest, neck, hip = builder.joint("chest"), builder.joint("neck"), builder.joint("r_thigh")

    def piece(bones: str, a: np.ndarray, b: np.ndarray, ra: float, rb: float, material: int, stretch: tuple[float, ...] = (1, 1, 1),
              clip: tuple[float, float] = (-_INF, _INF)) -> None:  # fmt: skip
        builder.add(bones, a, b, ra * k, rb * k, UPPER, material, stretch, clip, carried=True)

    if who.bag == "backpack":
        for x in (-0.055, 0.055):
            low, high = (
                np.array((x * k, chest[1] - 0.10 * k, -0.165 * k - out)),
                np.array((x * k, neck[1] - 0.10 * k, -0.150 * k - out)),
            )
            piece("chest", low, high, 0.085, 0.070, cloth, (1, 1, 0.9))
        pocket = np.array((0, chest[1] - 0.08 * k, -0.215 * k - out))
        piece("chest", pocket, pocket + np.array((0, 0.09, 0)) * k, 0.075, 0.065, strap, (1, 1, 0.6))
        for x in (-1, 1):
            points = [np.array(p) * k + np.array((0, neck[1], 0)) for p in
                      ((x * 0.085, -0.03, -0.11), (x * 0.095, 0.035, -0.01), (x * 0.100, -0.10, 0.098), (x * 0.120, -0.26, 0.075))]  # fmt: skip
            for a, b in zip(points, points[1:], strict=False):
                lift = np.array((0, 0, out)) if a[2] > -0.02 * k else 0.0
                piece("chest", a + lift, b + np.array((0, 0, out)), 0.022, 0.022, strap, (1, 1, 0.8))
    elif who.bag == "shoulder bag":
        s = who.bag_side
        side = np.array((s * (0.205 * k + out), hip[1] + 0.02 * k, 0.01 * k))
        piece("pelvis", side, side + np.array((0, 0.10, 0)) * k, 0.105, 0.090, cloth, (0.42, 1, 1.1))
        top = np.array((-s * 0.085 * k, neck[1] + 0.035 * k, -0.01 * k))
        for z in (0.125 * k + out, -0.130 * k - out):
            middle = np.array((s * 0.02 * k, chest[1] + 0.04 * k, z))
            piece("chest", top, middle, 0.016, 0.016, strap)
            piece(
                "chest",
                middle,
                side + np.array((-s * 0.01, 0.13, np.sign(z) * 0.05)) * k,
                0.016,
                0.016,
                strap,
            )
    else:
        side = "l" if who.bag_side > 0 else "r"
        hand = builder.joint(f"{side}_hand") + np.array((0.012 * who.bag_side, -0.10, 0.014)) * k
        body = hand + np.array((0.024 * who.bag_side, -0.20, 0)) * k
        piece(f"{side}_hand", body, body + np.array((0, 0.07, 0)) * k, 0.120, 0.105, cloth, (0.38, 1, 1.15))
        piece(
            f"{side}_hand",
            hand + np.array((0, 0, 0.02)) * k,
            body + np.array((0, 0.10, 0.07)) * k,
            0.008,
            0.008,
            strap,
        )
        piece(
            f"{side}_hand",
            hand + np.array((0, 0, -0.02)) * k,
            body + np.array((0, 0.10, -0.07)) * k,
            0.008,
            0.008,
            strap,
        )
