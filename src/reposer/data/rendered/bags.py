"""Bags and scarves as round cones.

LIP has no bag: a bag is labeled upper-clothes, so that the mask holds all that moves with the person.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from reposer.data.rendered.figure import SCARF, UPPER, Builder, Material
from reposer.data.rendered.wardrobe import FABRIC

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
