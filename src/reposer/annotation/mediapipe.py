"""MediaPipe's networks without MediaPipe: BlazePose for keypoints, selfie segmentation, a finder of people.

BlazePose: Bazarevsky et al., "BlazePose: On-device Real-time Body Pose Tracking", 2020. The files are the
original .tflite ones, run by LiteRT on the CPU, an image at a time; crops in as many threads as PyTorch has
(networks.py). No result depends on the batch or on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.annotation.interfaces import PERSON, AnnotatorInfo, Masks, MaskSource, Poses
from reposer.annotation.networks import Lanes
from reposer.data.keypoints import JOINTS, NECK
from reposer.errors import UserError
from reposer.storage.paths import printable
from reposer.weights.files import KNOWN, given_weights, licensed_weights

Array: TypeAlias = NDArray[np.float32]

# ---- A .tflite file as a callable.


class LiteNetwork:
    """A verified .tflite file in LiteRT.

    Args:
        path: the file; its hash has been checked, since LiteRT trusts what it reads.
        threads: how many images at once; None: as many as PyTorch has threads.

    Raises:
        UserError: LiteRT is missing, or cannot read the file.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            problem = "MediaPipe's networks need ai-edge-litert, not installed here"
            raise UserError(problem, "pip install reposer[annotate]") from error
        self.lanes = Lanes(threads)
        self._free: SimpleQueue[Any] = SimpleQueue()
        try:
            with _quiet():
                for _ in range(self.lanes.count):
                    interpreter = Interpreter(str(path), num_threads=1)
                    interpreter.allocate_tensors()
                    self._free.put(interpreter)
        except (RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or ["no reason given"])[0][:160]
            problem = f"{printable(path)}: LiteRT cannot read it ({reason})"
            raise UserError(problem, "delete it: it is fetched again") from error
        self._input = interpreter.get_input_details()[0]["index"]
        self.size = int(interpreter.get_input_details()[0]["shape"][1])  # its input is so many pixels square
        self._outputs = [detail["index"] for detail in interpreter.get_output_details()]

    def __call__(self, x: Array, outputs: Sequence[int]) -> list[Array]:
        """(B, size, size, 3) float32 -> the outputs of these numbers, each (B, ...), in this thread."""
        interpreter = self._free.get()
        try:
            made = [self._run(interpreter, image, outputs) for image in x]
        finally:
            self._free.put(interpreter)
        return [np.concatenate(values) for values in zip(*made, strict=True)]

    def _run(self, interpreter: Any, image: Array, outputs: Sequence[int]) -> list[Array]:
        interpreter.set_tensor(self._input, image[None])
        interpreter.invoke()
        return [interpreter.get_tensor(self._outputs[number]) for number in outputs]


@contextmanager
def _quiet() -> Iterator[None]:
    """LiteRT tells stderr which kernels it uses, each time."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def squared(images: Tensor, side: int, size: int) -> Array:
    """(B, 3, H, W) uint8 -> (B, size, size, 3) float32 in [0, 1]: the square of ``side`` pixels around the
    middle, where the image ends filled with its edge. Squeezing a crop instead ruins both networks.
    """
    height, width = images.shape[2:]
    left, top = (side - width) // 2, (side - height) // 2
    x = F.pad(images.cpu().float(), (left, side - width - left, top, side - height - top), mode="replicate")
    x = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return np.ascontiguousarray((x / 255).clamp_(0, 1).permute(0, 2, 3, 1).numpy())


# ---- Keypoints of crops.

_SQUARE = 256  # pixels of BlazePose's input
_VISIBLE = 0.5  # of a joint's score: below it, it is missing
_PERSON = 0.01  # of the network's own answer whether there is a person; of crops with one it doubts 6 %
_SEEN = 1.25  # the square that BlazePose is shown, in longer sides of the crop
_POINTS = 33  # of the body; the others say where to look next
# BlazePose's point for each OpenPose joint; the neck is the middle of the shoulders.
_OF_OPENPOSE = np.array([0, -1, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7])


class BlazePose:
    """The keypoints of the one person of a crop.

    Args:
        network: a BlazePose landmark network.
        info: what to write beside its keypoints.
    """

    def __init__(self, network: LiteNetwork, info: AnnotatorInfo) -> None:
        self.info = info
        self._network = network

    def __call__(self, images: Tensor) -> Poses:
        """(B, 3, H, W) uint8 -> poses; all joints are missing where it finds nobody."""
        side = round(_SEEN * max(images.shape[2:]))
        network = self._network
        found = network.lanes.map(
            lambda image: network(squared(image[None], side, network.size), (0, 1)), images
        )
        raw, flags = (np.concatenate(values) for values in zip(*found, strict=True))
        points = raw.reshape(len(images), -1, 5)[:, :_POINTS].astype(np.float64)
        size = (int(images.shape[2]), int(images.shape[3]))
        return judged(points, flags[:, 0], size, side / _SQUARE)


def judged(points: NDArray[np.float64], flags: Array, size: tuple[int, int], scale: float) -> Poses:
    """BlazePose's points as OpenPose's joints; what OpenPose would not see, or lies outside, is missing.

    Args:
        points: (B, 33, 5) x, y, z in pixels of its square, logits of being visible and present.
        flags: (B,) how sure it is that there is a person.
        size: (H, W) of the images.
        scale: pixels of the image for one of the square, whose middle is the image's.
    """
    joints = points[:, np.where(_OF_OPENPOSE >= 0, _OF_OPENPOSE, 0)]
    shoulders = joints[:, [2, 5]]
    joints[:, NECK] = shoulders.mean(1)
    joints[:, NECK, 3:] = shoulders[..., 3:].min(1)
    side = round(scale * _SQUARE)
    corner = np.array([(side - size[1]) // 2, (side - size[0]) // 2])
    joints[..., :2] = joints[..., :2] * scale - corner - 0.5
    joints[..., 2] *= scale
    limit = np.array([size[1] - 1, size[0] - 1])
    inside = ((joints[..., :2] >= 0) & (joints[..., :2] <= limit)).all(-1)
    people = flags >= _PERSON
    scores = np.where(inside & people[:, None], 1 - _missing(joints, flags, limit), 0.0)
    known = scores >= _VISIBLE
    keypoints = np.where(known[..., None], joints[..., :2], np.nan).astype(np.float32)
    return Poses(keypoints, np.where(known, scores, 0).astype(np.float32), people.astype(np.int64))


# What speaks for OpenPose not finding a joint: weights of a logistic regression, fitted to its keypoints on
# 1,800 images of the 600 lowest identities of Market-1501, left and right together. Of: 1; the logits of
# being visible and present; how far inside the image, in sixteenths of its longer side; how far behind the
# joint of the other side; how wide the shoulders are, negative for a front, and without sign; how far the
# nose looks to the joint's side, all three in torso lengths; the logit of there being a person.
_MISSING = {
    "nose": (0.21, -0.12, 0.06, 0.53, 0.0, 3.26, 2.16, 0.0, -0.37),
    "neck": (-2.32, 0.43, -0.49, -0.11, 0.0, -0.34, -0.65, 0.0, -0.26),
    "shoulder": (-0.25, 0.02, -0.27, -0.3, 0.09, -0.6, -0.81, 0.06, -0.26),
    "elbow": (0.38, -0.38, -0.15, 0.21, 0.46, 0.2, -1.1, -0.73, -0.09),
    "wrist": (0.58, -0.75, 0.06, -0.22, 0.1, 0.04, -0.37, -1.81, -0.12),
    "hip": (-0.63, 0.3, -0.26, -0.85, 0.16, -0.7, -0.9, -0.04, -0.31),
    "knee": (0.6, -0.25, -0.05, -0.76, -0.05, -0.26, -0.49, -0.44, -0.22),
    "ankle": (1.64, -0.4, -0.19, -0.65, 0.02, -0.26, -0.32, 0.26, -0.19),
    "eye": (0.9, -0.14, 0.03, 1.4, 5.7, 3.36, 0.24, -3.18, -0.32),
    "ear": (1.6, -0.22, 0.1, 0.85, 3.42, -0.35, -2.49, -2.49, -0.18),
}
_WEIGHTS = np.array([_MISSING[name.rpartition("-")[2]] for name in JOINTS])  # (18, 9)
_OPPOSITE = np.array([0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16])
_SIDE = np.array([name.startswith("right") * 1 - name.startswith("left") * 1 for name in JOINTS])


def _missing(joints: NDArray[np.float64], flags: Array, limit: NDArray[np.integer]) -> NDArray[np.float64]:
    """(B, 18) how likely each joint is one that OpenPose would not find.

    Args:
        joints: (B, 18, 5) x, y, z in pixels of the image, logits of being visible and present.
        flags: (B,) how sure the network is that there is a person.
        limit: x and y of the last pixel.
    """
    places, depth = joints[..., :2], joints[..., 2]
    hips = places[:, [8, 11]].mean(1)
    longest = float(limit.max() + 1)
    torso = np.linalg.norm(places[:, NECK] - hips, axis=-1).clip(longest / 16)[:, None]
    margin = np.minimum(places, limit - places).min(-1) / (longest / 16)
    behind = (depth - depth[:, _OPPOSITE]) / torso
    width = (places[:, 2:3, 0] - places[:, 5:6, 0]) / torso
    looks = (places[:, :1, 0] - places[:, [16, 17], 0].mean(1, keepdims=True)) / torso
    width, sure = width.clip(-1.5, 1.5), flags.astype(np.float64).clip(1e-3, 1 - 1e-3)[:, None]
    everywhere = np.ones_like(depth)
    features = (
        *(everywhere, joints[..., 3].clip(-8, 8), joints[..., 4].clip(-8, 8), margin.clip(-0.5, 1.5)),
        *(behind.clip(-2, 2), width * everywhere, np.abs(width) * everywhere, looks.clip(-1, 1) * _SIDE),
        np.log(sure / (1 - sure)) * everywhere,
    )
    logits = (np.stack(features, -1) * _WEIGHTS).sum(-1)
    return np.asarray(1 / (1 + np.exp(-logits)))


# ---- Masks of crops.

MASK_THRESHOLD = 0.5


class SelfieMasks:
    """Selfie segmentation: the people of a crop; the whole image where it finds nobody.

    Args:
        network: the general selfie segmentation network.
        info: what to write beside its masks.
    """

    def __init__(self, network: LiteNetwork, info: AnnotatorInfo) -> None:
        self.info = info
        self._network = network

    def __call__(self, images: Tensor, parsing: Tensor | None = None) -> Masks:
        """(B, 3, H, W) uint8 -> masks; label maps are not looked at."""
        mask = np.stack(self._network.lanes.map(self._mask, images))
        found = np.asarray(mask.any(axis=(1, 2)))
        mask[~found] = True
        sources: tuple[MaskSource, ...] = tuple("network" if one else "everything" for one in found)
        return Masks(mask, sources, np.full(len(images), -1, np.int64))

    def _mask(self, image: Tensor) -> NDArray[np.bool_]:
        """(3, H, W) uint8 -> (H, W)."""
        height, width = image.shape[1:]
        side = max(height, width)
        (scores,) = self._network(squared(image[None], side, self._network.size), (0,))
        square = torch.from_numpy(scores).permute(0, 3, 1, 2)
        square = F.interpolate(square, (side, side), mode="bilinear", antialias=True, align_corners=False)
        left, top = (side - width) // 2, (side - height) // 2
        mask: NDArray[np.bool_] = (
            square[0, 0].numpy()[top : top + height, left : left + width] >= MASK_THRESHOLD
        )
        return mask


# ---- People in photos.

_ANCHORS = ((8, 2), (16, 2), (32, 6))  # steps of the grids in pixels, and anchors at each place
_LEAST_SCORE = 0.5
_TILES = 3  # at most so many steps along a side are looked at apart, where people may be small
_TILE = 512  # pixels of the photo along the longer side, from which it is looked at in parts
_ROOM = 0.15  # of the points' extent: how far beyond them a person's mask is believed
_SAME = 0.5  # intersection over union of two boxes of one person


_Found: TypeAlias = tuple[float, Array]  # score and box of a person


class PoseFinder(nn.Module):
    """MediaPipe's pose detector, and BlazePose to see where a person ends; called as torchvision's detectors.

    The detector sees faces and hips of people who fill a good part of its view, so a large photo is looked at
    as a whole and in overlapping parts.

    Args:
        detector: the pose detection network.
        landmarks: a BlazePose landmark network.
    """

    def __init__(self, detector: LiteNetwork, landmarks: LiteNetwork) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0), requires_grad=False)  # tells the device: the CPU
        self._detector, self._landmarks = detector, landmarks
        self._anchors = _anchors(detector.size)

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """(3, H, W) float images in [0, 1] -> boxes (N, 4) left, top, right, bottom; scores, labels (N,)."""
        return [self._people(image) for image in images]

    def _people(self, image: Tensor) -> dict[str, Tensor]:
        found: list[_Found] = []
        for left, top, side in _views(int(image.shape[1]), int(image.shape[2])):
            for center, radius in self._rings(_cut(image, left, top, side, self._detector.size)):
                scale = side / self._detector.size
                person = self._box(image, center * scale + (left, top), radius * scale)
                if person is not None:
                    found.append(person)
        found.sort(key=lambda one: -one[0])
        kept: list[_Found] = []
        for score, box in found:
            if all(_overlap(box, other) < _SAME for _, other in kept):
                kept.append((score, box))
        boxes = np.stack([box for _, box in kept]) if kept else np.zeros((0, 4), np.float32)
        scores = torch.tensor([score for score, _ in kept])
        labels = torch.full((len(kept),), PERSON)
        return {"boxes": torch.from_numpy(boxes.astype(np.float32)), "scores": scores, "labels": labels}

    def _rings(self, view: Array) -> list[tuple[Array, float]]:
        """Middle of the hips and radius of the circle around each person, in pixels of the view."""
        raw, logits = (value[0] for value in self._detector(view[None] * 2 - 1, (0, 1)))
        scores = 1 / (1 + np.exp(-logits[:, 0].clip(-80, 80)))
        likely = np.flatnonzero(scores >= _LEAST_SCORE)
        points = raw[likely].reshape(-1, 6, 2)[:, 2:4] + self._anchors[likely, None] * self._detector.size
        rings: list[tuple[Array, float]] = []
        for i in np.argsort(-scores[likely], kind="stable"):
            center, radius = points[i, 0], float(np.linalg.norm(points[i, 1] - points[i, 0]))
            if radius > 1 and all(np.linalg.norm(center - c) > 0.5 * r for c, r in rings):
                rings.append((center, radius))
        return rings

    def _box(self, image: Tensor, center: Array, radius: float) -> _Found | None:
        """Score and box of the person in a circle: what BlazePose takes for the person; None: nobody."""
        side = 2 * _SEEN * radius
        corner = center - side / 2
        view = _cut(image, float(corner[0]), float(corner[1]), side, self._landmarks.size)
        raw, flag, logits = self._landmarks(view[None], (0, 1, 2))
        score = float(flag[0, 0])
        rows, columns = np.nonzero(logits[0, :, :, 0] > 0)
        if score < _LEAST_SCORE or not len(rows):
            return None
        points = raw[0].reshape(-1, 5)[:_POINTS]
        seen = points[1 / (1 + np.exp(-points[:, 3])) > _LEAST_SCORE, :2]
        ends = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1], *seen.tolist()])
        if len(seen):  # a mask may show the neighbors too
            room = _ROOM * float((seen.max(0) - seen.min(0)).max())
            ends = ends.clip(seen.min(0) - room, seen.max(0) + room)
        box = np.concatenate([ends.min(0), ends.max(0)]) * (side / self._landmarks.size) + np.tile(corner, 2)
        height, width = image.shape[1:]
        box = box.clip(0, [width, height, width, height])
        return (score, np.asarray(box, np.float32)) if (box[2:] - box[:2]).min() > 1 else None


def _anchors(size: int) -> Array:
    """(N, 2) x, y of the detector's anchors, in sizes of its view."""
    places = []
    for step, count in _ANCHORS:
        cells = size // step
        y, x = np.divmod(np.arange(cells * cells), cells)
        places.append(np.repeat((np.stack([x, y], 1) + 0.5) / cells, count, axis=0))
    return np.concatenate(places).astype(np.float32)


def _views(height: int, width: int) -> list[tuple[float, float, float]]:
    """Left, top and side of the squares that are looked at: all of the photo, then its parts."""
    longer = max(height, width)
    views = [((width - longer) / 2, (height - longer) / 2, float(longer))]
    steps = min(_TILES, longer // _TILE)
    if steps >= 2:
        side = longer / steps * 1.25
        lefts, tops = (_starts(length, side) for length in (width, height))
        views += [(left, top, side) for top in tops for left in lefts]
    return views


def _starts(length: int, side: float) -> list[float]:
    """Where squares begin that cover ``length``, half of each over the next."""
    if side >= length:
        return [(length - side) / 2]
    count = int(np.ceil((length - side) / (side / 2))) + 1
    return [float(start) for start in np.linspace(0, length - side, count)]


def _cut(image: Tensor, left: float, top: float, side: float, size: int) -> Array:
    """The square of a (3, H, W) float image as (size, size, 3); black outside."""
    height, width = image.shape[1:]
    shrink = max(1, int(side / size))  # antialiasing by areas first: a small person is a few pixels
    if shrink > 1:
        image = F.avg_pool2d(image[None], shrink, ceil_mode=True, count_include_pad=False)[0]
    places = [(torch.arange(size, dtype=torch.float32) + 0.5) / size * side + start for start in (left, top)]
    x, y = (place / (length / 2) - 1 for place, length in zip(places, (width, height), strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    view = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return np.ascontiguousarray(view[0].permute(1, 2, 0).numpy())


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union of two boxes."""
    common = float(np.prod((np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (a, b)]
    return common / max(sum(areas) - common, 1e-9)


# ---- By name, as the registries call them.


def open_blazepose(name: str, weights: str | Path | None, **how: Any) -> BlazePose:
    """The keypoint detector of that name, a key of ``weights.files.KNOWN``."""
    return BlazePose(*_opened(name, weights, **how))


def open_selfie(weights: str | Path | None, **how: Any) -> SelfieMasks:
    """The masker."""
    return SelfieMasks(*_opened("selfie", weights, **how))


def open_finder(weights: str | Path | None, **how: Any) -> tuple[nn.Module, AnnotatorInfo]:
    """The finder of people in photos; ``weights``: of the detector."""
    detector, info = _opened("pose_detection", weights, **how)
    return PoseFinder(detector, _opened("blazepose_full", None, **how)[0]), info


def _opened(
    name: str, weights: str | Path | None, *, accept_license: bool, may_download: bool | None, device: str
) -> tuple[LiteNetwork, AnnotatorInfo]:
    """The network, and what to write beside what it makes.

    Raises:
        MissingWeightsError: its file is not here; says what to put where.
        DownloadError: it cannot be fetched.
        UserError: another file, or LiteRT is missing.
    """
    del accept_license, device  # free for all; LiteRT runs on the CPU
    known = KNOWN[name]
    if weights is None:
        path = licensed_weights(name, may_download=may_download)
    else:
        path = given_weights(name, str(weights))
    return LiteNetwork(path), AnnotatorInfo(name, known.sha256, known.license)
