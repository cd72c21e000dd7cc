"""A dressed person as round cones: the builder that garments add to, and the flesh (head, neck, arms, legs).

Lengths are written for a height of 1.72 m and scaled; points are in the rest pose (see body.py), so that a surface point's rest
position is also its texture coordinate and a pattern moves with the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reposer.data.rendered.body import BONE, BONES, head_center, joint_rest_positions, rest_joints
from reposer.data.rendered.wardrobe import FABRIC, HAIR, SKIN, Color, Fabric, Identity

HAT, HAIR_LABEL, GLOVE, GLASSES, UPPER, DRESS, COAT, SOCKS, PANTS, JUMPSUIT, SCARF, SKIRT, FACE = range(1, 14)
ARM, LEG, SHOE = (
    {"l": 14, "r": 15},
    {"l": 16, "r": 17},
    {"l": 18, "r": 19},
)  # LIP-20, the person's left and right

Point = Sequence[float] | NDArray[np.float64]
Profile = Sequence[tuple[float, float]]  # (fraction of the bone, radius)

ARM_PROFILE = ((0.0, 0.046), (0.35, 0.047), (0.8, 0.040), (1.0, 0.038))
FOREARM_PROFILE = ((0.0, 0.037), (0.25, 0.040), (0.6, 0.034), (1.0, 0.025))
THIGH_PROFILE = ((0.0, 0.072), (0.25, 0.079), (0.7, 0.064), (1.0, 0.052))
SHIN_PROFILE = ((0.0, 0.050), (0.27, 0.056), (0.6, 0.043), (1.0, 0.034))


@dataclass(frozen=True, slots=True)
class Patch:
    """A mark on the front or back of the trunk: a rectangle or ellipse of another color, perhaps of another label."""

    side: int  # 1 front, -1 back
    x: float  # center, meters in the rest pose
    y: float
    half_width: float
    half_height: float
    color: Color
    ellipse: bool = False
    label: int = 0  # 0 keeps the garment's label


@dataclass(frozen=True, slots=True)
class Material:
    """How a surface looks; patterns are drawn from rest-pose coordinates."""

    color: Color
    second: Color = (0.0, 0.0, 0.0)
    pattern: str = "plain"  # Fabric's patterns, and "face", "hair"
    period: float = 0.1
    gloss: float = 0.0
    folds: float = 0.0  # strength of creases
    center: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the pattern: the limb's axis, the head's middle
    patches: tuple[Patch, ...] = ()
    beard: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """P round cones bound to bones, ready to be posed."""

    identity: Identity
    rest: NDArray[np.float64]  # (17, 3) joints of the bones
    joints: NDArray[np.float64]  # (18, 3) OpenPose joints in the rest pose
    bone_a: NDArray[np.int64]  # (P,) bone that carries the first sphere, the stretch and the texture
    bone_b: NDArray[np.int64]  # (P,)
    a: NDArray[np.float64]  # (P, 3) rest pose
    b: NDArray[np.float64]  # (P, 3)
    radius: NDArray[np.float64]  # (P, 2) along x
    stretch: NDArray[np.float64]  # (P, 3) semi-axes relative to the radius, in the frame of bone_a
    clip: NDArray[np.float64]  # (P, 2)
    label: NDArray[np.uint8]  # (P,) LIP-20
    material: NDArray[np.int64]  # (P,) index into materials
    materials: tuple[Material, ...]
    carried: NDArray[np.bool_]  # (P,) bags, which do not frame the crop


class Builder:
    """Collects the round cones of one person."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.shape = identity.shape
        self.k = identity.shape.k
        self.girth = self.k * (0.35 + 0.65 * identity.shape.build)
        self.rest = rest_joints(identity.shape)
        self.head = head_center(identity.shape, self.rest)
        self.materials: list[Material] = []
        self._rows: list[tuple[object, ...]] = []

    def joint(self, bone: str) -> NDArray[np.float64]:
        """(3,) rest position of a bone's joint."""
        return self.rest[BONE[bone]]

    def tip(self, bone: str) -> NDArray[np.float64]:
        """(3,) rest position of a limb bone's far end."""
        following = {"arm": "forearm", "forearm": "hand", "thigh": "shin", "shin": "foot"}
        side, name = bone.split("_")
        return self.joint(f"{side}_{following[name]}")

    def paint(self, material: Material) -> int:
        """Index of a new material."""
        self.materials.append(material)
        return len(self.materials) - 1

    def add(
        self, bones: str | tuple[str, str], a: Point, b: Point, ra: float, rb: float, label: int, material: int,
        stretch: Point = (1.0, 1.0, 1.0), clip: tuple[float, float] = (-np.inf, np.inf), carried: bool = False,
    ) -> None:  # fmt: skip
        """One round cone from ``a`` (on the first bone) to ``b`` (on the second), rest-pose meters."""
        first, second = (bones, bones) if isinstance(bones, str) else bones
        row = (
            BONE[first],
            BONE[second],
            np.asarray(a, float),
            np.asarray(b, float),
            (ra, rb),
            tuple(stretch),
            clip,
        )
        self._rows.append((*row, label, material, carried))

    def limb(
        self, bone: str, profile: Profile, label: int, material: int, ease: float = 0.0, until: float = 1.0,
        least: float = 0.0, flat: bool = False, stretch: Point = (1.0, 1.0, 1.0), scale: float = 1.0,
    ) -> None:  # fmt: skip
        """A chain of round cones along a limb bone, ``ease`` meters outside the flesh, cut at the fraction ``until``.

        ``least`` is the smallest radius (a straight sleeve or trouser leg); ``flat`` cuts the end, else it is a sphere.
        """
        start, end = self.joint(bone), self.tip(bone)
        stops = [f for f, _ in profile if f < until] + [until]
        radii = np.interp(stops, [f for f, _ in profile], [r for _, r in profile]) * self.girth * scale
        radii = np.maximum(radii + ease * self.k, least * self.k)
        points = [start + f * (end - start) for f in stops]
        for i in range(len(stops) - 1):
            cut = (-np.inf, 1.0) if flat and i == len(stops) - 2 else (-np.inf, np.inf)
            self.add(bone, points[i], points[i + 1], radii[i], radii[i + 1], label, material, stretch, cut)

    def build(self) -> Figure:
        """The arrays."""
        bone_a, bone_b, a, b, radius, stretch, clip, label, material, carried = zip(*self._rows, strict=True)
        return Figure(
            identity=self.identity, rest=self.rest, joints=joint_rest_positions(self.shape, self.rest),
            bone_a=np.array(bone_a), bone_b=np.array(bone_b), a=np.array(a), b=np.array(b), radius=np.array(radius),
            stretch=np.array(stretch), clip=np.array(clip), label=np.array(label, np.uint8),
            material=np.array(material), materials=tuple(self.materials), carried=np.array(carried, bool),
        )  # fmt: skip


def fabric_material(
    fabric: Fabric, builder: Builder, folds: float = 0.5, center: Point = (0.0, 0.0, 0.0)
) -> Material:
    """A garment's material without the marks that only the trunk carries."""
    return Material(
        FABRIC[fabric.color], FABRIC[fabric.second], fabric.pattern, fabric.period * builder.k, 0.02, folds,
        center=(float(center[0]), float(builder.joint("chest")[1]), float(center[2])),
    )  # fmt: skip


def add_head(builder: Builder) -> None:
    """Skull, jaw, nose, ears and neck; the face is painted by shading.py."""
    k, c, who = builder.k, builder.head, builder.identity
    skin = SKIN[who.skin]
    face = builder.paint(
        Material(skin, HAIR[who.hair], "face", gloss=0.06, center=(c[0], c[1], c[2]), beard=who.beard)
    )
    plain = builder.paint(Material(skin, gloss=0.05))
    slim = 1.0 - 0.05 * who.shape.female
    add = builder.add
    add(
        "head",
        c + np.array((0, 0.030, -0.012)) * k,
        c + np.array((0, 0.020, 0.012)) * k,
        0.089 * k,
        0.082 * k,
        FACE,
        face,
        (0.86 * slim, 1, 1),
    )
    add(
        "head",
        c + np.array((0, 0.000, 0.012)) * k,
        c + np.array((0, -0.078, 0.036)) * k,
        0.079 * k,
        0.040 * k * slim,
        FACE,
        face,
        (0.86 * slim, 1, 1),
    )
    add(
        "head",
        c + np.array((0, 0.004, 0.086)) * k,
        c + np.array((0, -0.022, 0.096)) * k,
        0.008 * k,
        0.013 * k,
        FACE,
        face,
    )
    for sign in (-1, 1):
        add(
            "head",
            c + np.array((sign * 0.073, 0.002, -0.006)) * k,
            c + np.array((sign * 0.070, -0.022, -0.002)) * k,
            0.017 * k,
            0.012 * k,
            FACE,
            plain,
            (0.5, 1, 1),
        )
    width = (0.058 - 0.010 * who.shape.female) * builder.girth
    neck = builder.joint("neck")
    add(
        ("chest", "head"),
        neck + np.array((0, -0.03, -0.004)) * k,
        c + np.array((0, -0.045, -0.012)) * k,
        width * 1.12,
        width * 0.95,
        FACE,
        plain,
    )


def add_arm_flesh(builder: Builder, side: str, from_fraction: float) -> None:
    """Bare arm and hand; ``from_fraction`` 0 bares the whole arm, 1 the forearm, 2 the hand only."""
    who, sign = builder.identity, 1.0 if side == "l" else -1.0
    thin = 1.0 - 0.14 * who.shape.female
    axis = builder.joint(f"{side}_arm")
    skin = builder.paint(Material(SKIN[who.skin], gloss=0.05, center=(axis[0], axis[1], axis[2])))
    if from_fraction < 1.0:
        builder.limb(f"{side}_arm", ARM_PROFILE, ARM[side], skin, scale=thin)
    if from_fraction < 2.0:
        builder.limb(f"{side}_forearm", FOREARM_PROFILE, ARM[side], skin, scale=thin)
    label, hand = ARM[side], skin
    if who.gloves != "none":
        label, hand = GLOVE, builder.paint(Material(FABRIC[who.gloves], folds=0.2))
    wrist, k = builder.joint(f"{side}_hand"), builder.k * (1.0 - 0.08 * who.shape.female)
    at = wrist + np.array((0.0, -0.02, 0.004)) * k
    palm = wrist + np.array((-sign * 0.004, -0.075, 0.010)) * k
    fingers = wrist + np.array((-sign * 0.014, -0.150, 0.022)) * k
    thumb = wrist + np.array((-sign * 0.010, -0.095, 0.052)) * k
    builder.add(f"{side}_hand", at, palm, 0.030 * k, 0.043 * k, label, hand, (0.66, 1, 1))
    builder.add(f"{side}_hand", palm, fingers, 0.041 * k, 0.024 * k, label, hand, (0.66, 1, 1))
    builder.add(f"{side}_hand", at, thumb, 0.014 * k, 0.011 * k, label, hand)


def add_leg_flesh(builder: Builder, side: str) -> None:
    """Bare leg from hip to ankle."""
    axis = builder.joint(f"{side}_thigh")
    skin = builder.paint(
        Material(SKIN[builder.identity.skin], gloss=0.05, center=(axis[0], axis[1], axis[2]))
    )
    builder.limb(f"{side}_thigh", THIGH_PROFILE, LEG[side], skin)
    builder.limb(f"{side}_shin", SHIN_PROFILE, LEG[side], skin)


__all__ = [
    "BONES",
    "Builder",
    "Figure",
    "Material",
    "Patch",
    "add_arm_flesh",
    "add_head",
    "add_leg_flesh",
    "fabric_material",
]
