"""A dressed person as round cones bound to bones, and the builder that flesh, garments and bags add to.

Lengths are written for a height of 1.72 m and scaled; points are in the rest pose (see body.py), so that a
surface point's rest position is also its texture coordinate and a pattern moves with the body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reposer.rendered.body import BONE, head_center, joint_rest_positions, rest_joints
from reposer.rendered.wardrobe import FABRIC, Color, Fabric, Identity

HAT, HAIR_LABEL, GLOVE, GLASSES, UPPER, DRESS, COAT, SOCKS, PANTS, JUMPSUIT, SCARF, SKIRT, FACE = range(1, 14)
# LIP-20, the person's left and right
ARM, LEG, SHOE = (
    {"l": 14, "r": 15},
    {"l": 16, "r": 17},
    {"l": 18, "r": 19},
)

Point = Sequence[float] | NDArray[np.float64]
Profile = Sequence[tuple[float, float]]  # (fraction of the bone, radius)


@dataclass(frozen=True, slots=True)
class Patch:
    """A mark on the front or back of the trunk: another color, perhaps another label."""

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
    rest: NDArray[np.float64]  # (19, 3) joints of the bones
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
        place: NDArray[np.float64] = self.rest[BONE[bone]]
        return place

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
        self,
        bones: str | tuple[str, str],
        a: Point,
        b: Point,
        ra: float,
        rb: float,
        label: int,
        material: int,
        stretch: Point = (1.0, 1.0, 1.0),
        clip: tuple[float, float] = (-np.inf, np.inf),
        carried: bool = False,
    ) -> None:
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
        self,
        bone: str,
        profile: Profile,
        label: int,
        material: int,
        ease: float = 0.0,
        until: float = 1.0,
        least: float = 0.0,
        flat: bool = False,
        stretch: Point = (1.0, 1.0, 1.0),
        scale: float = 1.0,
    ) -> None:
        """A chain of round cones along a limb bone, ``ease`` meters outside the flesh.

        Args:
            until: fraction of the bone where it ends; ``flat`` cuts it there, else it ends in a sphere.
            least: smallest radius in meters, for straight sleeves and trouser legs.
            scale: thickness of the flesh relative to the profile.
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
            identity=self.identity,
            rest=self.rest,
            joints=joint_rest_positions(self.shape, self.rest),
            bone_a=np.array(bone_a),
            bone_b=np.array(bone_b),
            a=np.array(a),
            b=np.array(b),
            radius=np.array(radius),
            stretch=np.array(stretch),
            clip=np.array(clip),
            label=np.array(label, np.uint8),
            material=np.array(material),
            materials=tuple(self.materials),
            carried=np.array(carried, bool),
        )


def fabric_material(
    fabric: Fabric, builder: Builder, folds: float = 0.5, center: Point = (0.0, 0.0, 0.0)
) -> Material:
    """A garment's material without the marks that only the trunk carries."""
    return Material(
        FABRIC[fabric.color],
        FABRIC[fabric.second],
        fabric.pattern,
        fabric.period * builder.k,
        0.02,
        folds,
        center=(float(center[0]), float(builder.joint("chest")[1]), float(center[2])),
    )
