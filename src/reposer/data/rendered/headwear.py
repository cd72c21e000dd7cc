"""Hair, hats and glasses as round cones."""

from __future__ import annotations

import numpy as np

from reposer.data.rendered.figure import GLASSES, HAIR_LABEL, HAT, Builder, Material
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
