"""Planted people for donor and filter tests: what they wear, how they stand and how sharp they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reposer.data.keypoints import JOINTS
from reposer.data.packed import PackedPeople
from reposer.data.parsing import LIP_LABELS, write_parsing
from reposer.data.preparing.packing import pack
from reposer.images import encode_png
from reposer.structures import PersonRecord

SIZE = (64, 32)
SHOULDERS = {  # orientation -> (right minus left shoulder in torso lengths, facing)
    "front": (-0.9, 0),
    "front-right": (-0.4, 1),
    "right": (0.0, 1),
    "back-right": (0.4, 1),
    "back": (0.9, 0),
    "back-left": (0.4, -1),
    "left": (0.0, -1),
    "front-left": (-0.4, -1),
}


@dataclass(frozen=True)
class Planted:
    """One image."""

    pid: int
    camid: int = 1
    lower: str = "pants"  # a LIP label, "shorts" or "" for none
    upper: str = "upper-clothes"
    hat: bool = False
    facing: str | None = "front"  # None: no keypoints
    stride: float = 0.0  # how far the ankles are apart, in torso lengths
    split: str = "train"
    parsing: bool = True
    noise: int = 60  # contrast of the texture, gray levels


def keypoints(facing: str, stride: float = 0.0) -> np.ndarray:
    """(J, 2) of a person whose torso is 20 pixels long."""
    width, direction = SHOULDERS[facing]
    pose = np.full((len(JOINTS), 2), np.nan, np.float32)

    def put(name: str, x: float, y: float) -> None:
        pose[JOINTS.index(name)] = 16 + x, y

    put("neck", 0, 12)
    if direction:
        put("nose", 3 * direction, 8)
    elif width < 0:
        put("nose", 0, 8)
        put("right-eye", -1, 7)
    put("right-shoulder", 10 * width, 12)
    put("left-shoulder", -10 * width, 12)
    for side, sign in (("right", 1), ("left", -1)):
        put(f"{side}-hip", 5 * width * sign, 32)
        put(f"{side}-knee", 5 * width * sign + 5 * stride * sign, 45)
        put(f"{side}-ankle", 5 * width * sign + 10 * stride * sign, 58)
    return pose


def parsing_map(person: Planted) -> np.ndarray:
    """(H, W) a column of garments."""
    labels = np.zeros(SIZE, np.uint8)

    def fill(name: str, top: int, bottom: int, left: int = 8, right: int = 24) -> None:
        labels[top:bottom, left:right] = LIP_LABELS.index(name)

    fill("hat" if person.hat else "hair", 2, 5)
    fill("face", 5, 9)
    fill(person.upper, 9, 34)
    if person.lower in ("dress", "jumpsuits"):
        fill(person.lower, 9, 50)
    elif person.lower:
        fill("pants" if person.lower == "shorts" else person.lower, 34, 46 if person.lower != "pants" else 60)
    if person.lower not in ("pants", "", "jumpsuits"):
        fill("left-leg", 50, 60, 16, 24)
        fill("right-leg", 50, 60, 8, 16)
    return labels


def pack_planted(folder: Path, people: Sequence[Planted]) -> PackedPeople:
    """Write and pack them; row i is person i."""
    root = folder / "people"
    for name in ("parsing", "mask"):
        (root / name).mkdir(parents=True)
    records = []
    for number, person in enumerate(people):
        name = f"{person.pid:04d}_c{person.camid}s1_{number:06d}_01.png"
        rng = np.random.default_rng(number)
        color = np.random.default_rng(person.pid).integers(60, 196, 3)
        texture = rng.integers(-person.noise, person.noise + 1, (*SIZE, 1))
        image = np.clip(color + texture, 0, 255).astype(np.uint8)
        (root / name).write_bytes(encode_png(image))
        labels = parsing_map(person)
        if person.parsing:
            write_parsing(root / "parsing" / name, labels)
        (root / "mask" / name).write_bytes(encode_png(labels > 0))
        records.append(
            PersonRecord(
                name=name,
                path=name,
                pid=person.pid,
                camid=person.camid,
                split=person.split,
                width=SIZE[1],
                height=SIZE[0],
                sha256=f"{number:064x}",
                parsing=f"parsing/{name}" if person.parsing else None,
                mask=f"mask/{name}",
                keypoints=None if person.facing is None else keypoints(person.facing, person.stride),
            )
        )
    pack(records, root, folder / "packed", SIZE)
    return PackedPeople.open(folder / "packed")
