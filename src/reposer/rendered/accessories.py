"""Bags, scarves, hair, hats and glasses of rendered people, as round cones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from reposer.rendered.figure import GLASSES, HAIR_LABEL, HAT, SCARF, UPPER, Builder, Material
from reposer.rendered.wardrobe import FABRIC, HAIR

# ---- Bags and scarves as round cones.
#
# LIP has no bag: a bag is labeled upper-clothes, so that the mask holds all that moves with the person.

_Place = tuple[float, float, float]
_Piece = Callable[..., None]


def add_scarf(builder: Builder) -> None:
    """A ring around the neck and one hanging end."""
    who, k = builder.identity, builder.k
    if who.scarf == "none":
        return
    wool = builder.paint(Material(FABRIC[who.scarf], folds=0.9))
    neck = builder.joint("neck") + np.array((0, 0.028, 0.004)) * k
    turn = np.arange(6) * np.pi / 3
    ring = neck + np.stack((0.068 * np.sin(turn), 0.012 * np.cos(turn) - 0.012, 0.070 * np.cos(turn)), 1) * k
    for i in range(6):
        builder.add("chest", ring[i], ring[(i + 1) % 6], 0.042 * k, 0.042 * k, SCARF, wool)
    top = ring[0] + np.array((0.030, -0.030, 0.022)) * k
    low = top + np.array((0.012, -0.270, 0.030)) * k
    builder.add("chest", top, low, 0.040 * k, 0.046 * k, SCARF, wool, (1, 1, 0.5), (-np.inf, 1.0))


def add_bag(builder: Builder) -> None:
    """Backpack, shoulder bag with a strap across the trunk, or a bag in the hand."""
    who, k = builder.identity, builder.k
    if who.bag == "none":
        return
    red, green, blue = FABRIC[who.bag_color]
    cloth = builder.paint(Material((red, green, blue), gloss=0.05, folds=0.15))
    strap = builder.paint(Material((0.6 * red, 0.6 * green, 0.6 * blue)))

    def piece(bone: str, a: _Place, b: _Place, ra: float, rb: float, stretch: _Place | None = None) -> None:
        """Part of the bag; without a stretch a strap. Points in drawing meters (height 1.72 m)."""
        start, end = np.array(a) * k, np.array(b) * k
        material = strap if stretch is None else cloth
        form = (1.0, 1.0, 1.0) if stretch is None else stretch
        builder.add(bone, start, end, ra * k, rb * k, UPPER, material, form, carried=True)

    {"backpack": _backpack, "shoulder bag": _shoulder_bag, "handbag": _handbag}[who.bag](builder, piece)


def _level(builder: Builder, bone: str) -> float:
    """Height of a joint in drawing meters."""
    return float(builder.joint(bone)[1]) / builder.k


def _cloth_depth(builder: Builder) -> float:
    return 0.022 if builder.identity.coat != "none" else 0.006


def _backpack(builder: Builder, piece: _Piece) -> None:
    out, chest, neck = _cloth_depth(builder), _level(builder, "chest"), _level(builder, "neck")
    for x in (-0.055, 0.055):
        low, high = (x, chest - 0.10, -0.165 - out), (x, neck - 0.10, -0.150 - out)
        piece("chest", low, high, 0.085, 0.070, (1, 1, 0.9))
    pocket = (0, chest - 0.08, -0.215 - out), (0, chest + 0.01, -0.215 - out)
    piece("chest", *pocket, 0.075, 0.065, (1, 1, 0.6))
    for x in (-1, 1):
        strap = (
            (x * 0.085, neck - 0.030, -0.110),
            (x * 0.095, neck + 0.032, -0.010),
            (x * 0.100, neck - 0.100, 0.098 + out),
            (x * 0.120, neck - 0.260, 0.075 + out),
        )
        for a, b in pairwise(strap):
            piece("chest", a, b, 0.020, 0.020)


def _shoulder_bag(builder: Builder, piece: _Piece) -> None:
    s, out = builder.identity.bag_side, _cloth_depth(builder)
    chest, neck, hip = (_level(builder, bone) for bone in ("chest", "neck", "r_thigh"))
    x = s * (0.205 + out)
    piece("pelvis", (x, hip + 0.02, 0.01), (x, hip + 0.12, 0.01), 0.105, 0.090, (0.42, 1, 1.1))
    top = (-s * 0.085, neck + 0.035, -0.01)
    for z, ring in ((0.125 + out, 0.06), (-0.130 - out, -0.04)):
        middle = (s * 0.02, chest + 0.04, z)
        piece("chest", top, middle, 0.016, 0.016)
        piece("chest", middle, (x - s * 0.01, hip + 0.15, ring), 0.016, 0.016)


def _handbag(builder: Builder, piece: _Piece) -> None:
    s = builder.identity.bag_side
    bone = "l_bag" if s > 0 else "r_bag"
    x, y, z = (float(v) for v in builder.joint(bone) / builder.k)
    bag = x + s * 0.024
    piece(bone, (bag, y - 0.20, z), (bag, y - 0.13, z), 0.120, 0.105, (0.38, 1, 1.15))
    for side in (-1, 1):
        piece(bone, (x, y, z + side * 0.02), (bag, y - 0.10, z + side * 0.07), 0.008, 0.008)


# ---- Hair, hats and glasses as round cones.

_INF = np.inf


def add_hair(builder: Builder) -> None:
    """Hair by style; a hat that covers the skull leaves the part below it."""
    who, c, k = builder.identity, builder.head, builder.k
    if who.hair_style == "bald":
        return
    hair = builder.paint(
        Material(HAIR[who.hair], pattern="hair", gloss=0.10, folds=0.6, center=(c[0], c[1], c[2]))
    )

    def lock(
        a: tuple[float, ...],
        b: tuple[float, ...],
        ra: float,
        rb: float,
        stretch: tuple[float, ...] = (1, 1, 1),
        bones: str | tuple[str, str] = "head",
        clip: tuple[float, float] = (-_INF, _INF),
    ) -> None:
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

    def piece(
        a: tuple[float, ...],
        b: tuple[float, ...],
        ra: float,
        rb: float,
        stretch: tuple[float, ...] = (1, 1, 1),
        clip: tuple[float, float] = (-_INF, _INF),
    ) -> None:
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
