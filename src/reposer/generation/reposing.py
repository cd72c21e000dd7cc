"""One person of a photo in another pose, over the photo's own background.

A person is looked at in a frame of 2:1 around them, which may reach beyond the photo: nothing is known there,
and nothing is shown. A pose takes the person's own proportions, so that who is cut off by the photo stays as
tall as they are, and a child stays a child.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from reposer.data.keypoints import (
    JOINTS,
    MIN_COMMON_JOINTS,
    NECK,
    NOSE,
    Pose,
    middle_hip,
    scale_keypoints,
    torso_length,
)
from reposer.data.orientation import ORIENTATIONS, UNKNOWN, face_share, orientation
from reposer.data.parsing import LIP_LABELS
from reposer.generation.pictures import NEAREST, Person, people_batch, resize_array
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.generation.stitching import feathered, paint_out
from reposer.generation.targets import CROWN, SOLE, PoseTarget, inside, lowest
from reposer.structures import NUM_LABELS

ASPECT = 2  # height of a frame over its width
_ROOM = 1.06  # sides of a frame over those of the person's box
_MOST_ROWS = 512  # of the size that pictures are made at
_HIPS, _ANKLES = ([JOINTS.index(f"{side}-{part}") for side in ("right", "left")] for part in ("hip", "ankle"))
_LOOKING = [JOINTS.index(name) for name in ("nose", "right-eye", "left-eye")]
_HAIR, _FACE = LIP_LABELS.index("hair"), LIP_LABELS.index("face")
_HEAD = 0.42  # neck to nose over neck to hips
_CHILD = 0.24  # neck to nose over neck to ankle, above it; 0.16 for adults, 0.29 at the age of two

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the photo; may lie outside it


def frame_of(box: Box) -> Box:
    """The frame of 2:1 around a person's box; its sides are even."""
    left, top, right, bottom = box
    height = max((bottom - top) * _ROOM, (right - left) * _ROOM * ASPECT)
    half = max(1, round(height / (2 * ASPECT)))
    x, y = round((left + right) / 2), round((top + bottom) / 2)
    if (right - left) * ASPECT > bottom - top:  # wider than people who stand: who is cut off ends below
        y = round(top - (bottom - top) * (_ROOM - 1) / 2) + half * ASPECT
    return x - half, y - half * ASPECT, x + half, y + half * ASPECT


def cut(pixels: NDArray[np.uint8], frame: Box) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The frame (h, w, 3) of a photo, the photo's edge repeated outside, and (h, w) what is in the photo."""
    left, top, right, bottom = frame
    rows, columns = np.arange(top, bottom), np.arange(left, right)
    height, width = pixels.shape[:2]
    known = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    return pixels[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)], known


def working_size(frame: Box) -> tuple[int, int]:
    """(H, W) that a frame is worked on at: no larger than it is, in steps that networks like."""
    rows = min(_MOST_ROWS, max(64, (frame[3] - frame[1]) // 32 * 32))
    return rows, rows // ASPECT


# ---- The pose: the target's directions, the source's proportions.


def proportioned(target: PoseTarget, source: Person) -> Person:
    """The target for one source (PoseTarget.for_source); in torso lengths it takes the source's proportions.

    What is known of the source's neck, hips and ankles sets the scale of the torso, of the legs and of the
    head; without hips the head's does, and the legs leave the frame.
    """
    if target.size != "torso":
        return target.for_source(source)
    size = source.image.shape[:2]
    joints = inside(source.keypoints, (size[0], size[1]))
    torso, legs, head = _scales(joints, source)
    pose = target.keypoints.astype(np.float64)
    neck = float(pose[NECK, 1])
    y = pose[:, 1]
    rows = np.where(
        y <= neck, (y - neck) * head, np.where(y <= 0, (y - neck) * torso, -neck * torso + y * legs)
    )
    middle, top = _stands(joints, source)
    x = middle + pose[:, 0] * np.where(y < neck - 0.01, head, torso)
    placed = np.stack([x, rows + top], 1).astype(np.float32)
    return replace(target, keypoints=placed, size=(size[0], size[1])).for_source(source)


def _scales(joints: Pose, source: Person) -> tuple[float, float, float]:
    """Pixels of a torso length in the torso, the legs and the head."""
    torso = float(torso_length(joints))
    feet, hips, neck = lowest(joints[_ANKLES, 1]), float(middle_hip(joints)[1]), float(joints[NECK, 1])
    nose = neck - float(joints[NOSE, 1])
    rows = np.flatnonzero(source.mask.any(1))
    tall = float(len(rows)) / (SOLE - CROWN) if len(rows) else source.image.shape[0] / (SOLE - CROWN)
    shoulders = abs(float(joints[2, 0] - joints[5, 0])) / 0.76
    if not torso > 0:
        guesses = [g for g in (nose / _HEAD, shoulders) if g > 0]
        torso = max(guesses) if guesses else tall
    elif shoulders > 0:
        torso = max(torso, shoulders * 0.8)  # who bends forward has a short torso in the picture
    legs = (feet - hips) / 1.58 if feet - hips > 0 else torso
    legs = float(np.clip(legs, 0.6 * torso, 1.3 * torso))
    head = float(np.clip(nose / _HEAD, 0.8 * torso, 1.6 * torso)) if nose > 0 else torso
    return torso, legs, head


def _stands(joints: Pose, source: Person) -> tuple[float, float]:
    """x of the middle and y of the neck."""
    rows, columns = np.flatnonzero(source.mask.any(1)), np.flatnonzero(source.mask.any(0))
    x = float(middle_hip(joints)[0])
    if np.isnan(x):
        x = float(joints[NECK, 0])
    if np.isnan(x):
        x = float(columns.mean()) if len(columns) else source.image.shape[1] / 2
    y = float(joints[NECK, 1])
    if np.isnan(y):
        first = float(rows[0]) if len(rows) else 0.0
        y = first + source.image.shape[0] * 0.18
    return x, y


# ---- The picture.


@dataclass(frozen=True)
class Layer:
    """A person as they are laid over a frame (h, w) of the photo."""

    person: Tensor  # (1, 3, h, w) float in [0, 255]
    alpha: Tensor  # (1, 1, h, w) in [0, 1], where the person is
    hole: Tensor  # (1, 1, h, w) bool, where the person was

    def over(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The frame (h, w, 3) with the person painted out, and laid over it in the new pose."""
        reach = max(2, pixels.shape[0] // 90)  # masks are a little tight
        hole = F.max_pool2d(self.hole.float(), 2 * reach + 1, 1, reach) > 0
        image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
        behind = self.person if hole.all() else _painted(image, hole).float()
        mixed = torch.lerp(behind, self.person, self.alpha).round().to(torch.uint8)
        return mixed[0].permute(1, 2, 0).contiguous().numpy()

    def within(self, known: NDArray[np.bool_]) -> Layer:
        """What of it is in the photo: the rows and columns of ``known`` (h, w)."""
        rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
        y, x = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return Layer(*(part[..., y, x] for part in (self.person, self.alpha, self.hole)))


def _painted(image: Tensor, hole: Tensor) -> Tensor:
    """paint_out (1, 3, h, w) where (1, 1, h, w) is True; what is filled in is smooth, so small is enough."""
    size = (image.shape[2], image.shape[3])
    shrink = max(1, max(size) // _MOST_ROWS)
    if shrink == 1:
        return paint_out(image, hole[:, 0])
    known = (~hole).float()
    share = F.avg_pool2d(known, shrink, ceil_mode=True)
    mean = F.avg_pool2d(image * known, shrink, ceil_mode=True) / share.clamp_min(1e-6)
    filled = paint_out(mean.round().clamp(0, 255).to(torch.uint8), share[:, 0] == 0)
    large = F.interpolate(filled.float(), size, mode="bilinear", align_corners=False)
    return torch.where(hole, large, image.float())


class Reposer:
    """A generator, and a predictor of the label maps that targets lack.

    Args:
        generator: with or without weights; one with weights works at its own size.
        predictor: of target maps; works at its own size, its maps are enlarged.
    """

    def __init__(self, generator: PoseTransfer, predictor: MapPredictor) -> None:
        self.generator, self.predictor = generator, predictor

    def __call__(self, source: Person, target: PoseTarget, size: tuple[int, int]) -> Layer:
        """The person in another pose, to be laid over their photo.

        Args:
            source: at the working size; outside the photo its mask is False.
            target: the pose.
            size: (h, w) of the frame in the photo.
        """
        wanted = self._with_maps(source, proportioned(target, source))
        work = self.generator.size if self.generator.learned else source.image.shape[:2]
        batch = people_batch([resized(source, work)], [resized(wanted, work)])
        generated = self.generator.at_size((work[0], work[1]))(batch)
        person = F.interpolate(generated.float(), size, mode="bicubic", antialias=True).clamp(0, 255)
        return Layer(person, _soft(wanted.mask, size), _soft(source.mask, size) > 0)

    def _with_maps(self, source: Person, target: Person) -> Person:
        """The target with the predictor's map and mask, at the source's size."""
        size = (self.predictor.config.size[0], self.predictor.config.size[1])
        batch = people_batch([resized(source, size)], [resized(target, size)])
        parsing, mask = (value.cpu() for value in self.predictor(batch))
        full = (source.image.shape[0], source.image.shape[1])
        planes = F.one_hot(parsing.long(), NUM_LABELS).permute(0, 3, 1, 2).float()
        enlarged = _smooth(planes, full).argmax(1)
        if np.isnan(target.keypoints[_LOOKING, 0]).all():  # whose face is turned away
            enlarged[enlarged == _FACE] = _HAIR
        solid = _smooth(mask[:, None].float(), full)[:, 0] > 0.5
        return replace(target, parsing=enlarged[0].to(torch.uint8).numpy(), mask=solid[0].numpy())


def _smooth(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Planes (B, C, H, W) enlarged, their stairs rounded off."""
    step = size[0] // planes.shape[2]
    planes = F.interpolate(planes, size, mode="bilinear", align_corners=False)
    for _ in range(2 if step > 1 else 0):
        planes = F.avg_pool2d(planes, 2 * step + 1, 1, step, count_include_pad=False)
    return planes


def _soft(mask: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """(1, 1, H, W) opacity of a mask at another size."""
    soft = feathered(torch.from_numpy(mask)[None], max(1, mask.shape[0] // 256))
    return F.interpolate(soft, size, mode="bilinear", align_corners=False)


def resized(person: Person, size: tuple[int, ...]) -> Person:
    """At another size."""
    own, size = (person.image.shape[0], person.image.shape[1]), (size[0], size[1])
    if own == size:
        return person
    return replace(
        person,
        image=resize_array(person.image, size),
        parsing=resize_array(person.parsing, size, NEAREST),
        mask=resize_array(person.mask.astype(np.uint8), size, NEAREST).astype(np.bool_),
        keypoints=scale_keypoints(person.keypoints, own, size),
    )


# ---- What a stranger should know before they believe a picture.


def remarks(source: Person, known: NDArray[np.bool_], target: PoseTarget) -> list[str]:
    """Plain sentences about what of the picture is made up.

    Args:
        source: the person.
        known: (h, w) what of their frame is in the photo.
        target: the pose.
    """
    joints = inside(source.keypoints, (source.image.shape[0], source.image.shape[1]))
    said = []
    missing = np.isnan(joints[:, 0])
    below = not known[-1].any()
    if missing[_ANKLES].all():
        part = "hips and legs are" if missing[_HIPS].any() else "lower legs are"
        cause = "not in the photo" if below else "hidden or not found"
        said.append(f"{part} {cause}: what the pose needs of them is made up")
    share = face_share(source.parsing)
    looks = int(orientation(joints[None], np.array([share]))[0])
    facing = "" if looks == UNKNOWN else ORIENTATIONS[looks]
    wanted = int(orientation(target.keypoints[None])[0])
    toward = "" if wanted == UNKNOWN else ORIENTATIONS[wanted]
    if facing.startswith("back") and not toward.startswith("back"):
        said.append("seen from behind: the face and the front of the clothes are made up")
    elif toward.startswith("back") and facing and not facing.startswith("back"):
        said.append("seen from the front: the back of head and clothes is made up")
    length = lowest(joints[_ANKLES, 1]) - float(joints[NECK, 1])
    if length and float(joints[NECK, 1] - joints[NOSE, 1]) / length > _CHILD:  # False for NaN
        said.append("a child's proportions: they are kept")
    if missing.sum() > len(joints) - MIN_COMMON_JOINTS:
        said.append("fewer than 6 joints were found: the pose is a guess")
    return said
