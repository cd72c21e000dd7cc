"""Where keypoints come from: detectors (Keypoint R-CNN, ViTPose), or files of other programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.annotation.interfaces import (
    AUTO,
    AnnotatorInfo,
    KeypointDetector,
    Poses,
    detect,
    load_detector,
    main_person,
)
from reposer.annotation.mediapipe import open_blazepose
from reposer.annotation.networks import load_transformers
from reposer.data.keypoint_imports import (
    FORMATS,
    TABLES,
    KeypointTable,
    import_keypoints,
    keypoint_places,
    read_table,
    refuse_other_kind,
)
from reposer.data.keypoints import COCO_JOINTS, Pose, coco_to_openpose
from reposer.data.records import AnnotationProblem
from reposer.errors import UserError, find, known
from reposer.storage.files import sha256_file
from reposer.storage.paths import printable

# ---- Keypoints that other programs have made, as a source beside the detectors: ``KIND:PATH``.

_SAMPLE = 500  # files of a folder that are read to see what its keypoints mean
_ENDS = {"pidm": (".txt",)}  # how the files of a kind end; of the others:
_JSON_ENDS = ("_keypoints.json", ".json")


class KeypointFiles:
    """Keypoints from a file or a folder of files.

    An image a/b.jpg is found as a/b.jpg, a_b.jpg or, in a table, b.jpg where no other image is called so.

    Args:
        kind: one of ``keypoint_imports.FORMATS``.
        path: the CSV, or the folder.

    Raises:
        UserError: unknown kind, nothing there or a file of another kind, a CSV with another header, or
            keypoints that as a whole mean something else (``keypoints.wrong_meaning``).
    """

    def __init__(self, kind: str, path: Path) -> None:
        known("keypoints of kind", kind, FORMATS)
        refuse_other_kind(path, kind)
        self.kind, self.path = kind, path
        self.repeated: frozenset[str] = frozenset()  # file names that several images have: repeated_names
        digest = sha256_file(path) if kind in TABLES else ""
        self.info = AnnotatorInfo(f"{kind} files of {path.name}", digest)
        if kind in TABLES:
            self._table  # noqa: B018 read now, so that a wrong header is reported before anything is made
        else:
            import_keypoints(path, kind, _sample(path, kind))

    def places(self, image: str) -> list[Path]:
        """The files that may hold an image's keypoints; none for a table, whose hash is in ``info``."""
        if self.is_table:
            return []
        return [place for name in _names(image) for place in keypoint_places(self.path, self.kind, name)]

    def find(self, image: str, size: tuple[int, int]) -> tuple[Pose | None, list[AnnotationProblem]]:
        """(18, 2) of an image, None where there is none, and what was wrong with it.

        Args:
            image: its path, '/' as separator.
            size: its (H, W); a pose with a joint outside is not used.
        """
        names, short = _names(image), image.rpartition("/")[2]
        if self.is_table:
            table, problems = self._table, []
            row = next((n for n in (*names, short) if n in table.poses), None)
            if row == short != image and short in self.repeated:
                message = f"{short} is the name of several images, {image} too: write paths in the rows"
                return None, [_problem(self.path, message, "bad-keypoints")]
            given = table.sizes.get(row or "", size)
            if given != size:
                message = (
                    f"the row of {image} is for an image of {given[1]}x{given[0]}, it is {size[1]}x{size[0]}"
                )
                return None, [_problem(self.path, f"{message}: scale the row", "bad-keypoints")]
            pose = table.poses[row] if row is not None else None
        else:
            found = [import_keypoints(self.path, self.kind, [name]) for name in names]
            pose = next((poses[n] for n, (poses, _) in zip(names, found, strict=True) if n in poses), None)
            listed = [problem for _, some in found for problem in some]
            problems = [problem for problem in listed if problem.rule != "missing-keypoints"]
        if pose is None:
            if not problems:
                problems = [_problem(self.path, f"no row or file for {image}", "missing-keypoints")]
            return None, problems
        if _outside(pose, size).any():
            problem = f"a joint of {image} lies outside the image ({size[1]}x{size[0]})"
            return None, [_problem(self.path, problem, "bad-keypoints")]
        return pose, []

    @property
    def is_table(self) -> bool:
        """Whether one file holds the poses of all images."""
        return self.kind in TABLES

    def table_problems(self) -> list[AnnotationProblem]:
        """Bad rows of a table, which belong to no image."""
        if not self.is_table:
            return []
        return [replace(problem, rule="bad-keypoints") for problem in self._table.problems]

    @cached_property
    def _table(self) -> KeypointTable:
        return read_table(self.path, self.kind)


def repeated_names(images: Iterable[str]) -> frozenset[str]:
    """The file names, folders aside, that more than one of these paths has."""
    counts = Counter(image.rpartition("/")[2] for image in images)
    return frozenset(name for name, count in counts.items() if count > 1)


def joint_scores(poses: Sequence[Pose]) -> NDArray[np.float32]:
    """(B, 18) 1 for a joint that is there: files tell no confidence that means the same everywhere."""
    return (~np.isnan(np.stack(poses)[..., 0])).astype(np.float32)


def _sample(folder: Path, kind: str) -> list[str]:
    """Names of images whose keypoints lie in the folder, evenly taken from all."""
    ends = _ENDS.get(kind, _JSON_ENDS)
    found: dict[str, None] = {}
    for place in sorted(folder.rglob(f"*{ends[-1]}")):
        name = place.relative_to(folder).as_posix()
        found[name.removesuffix(next(end for end in ends if name.endswith(end))) + ".jpg"] = None
    names = list(found)
    return names[:: max(len(names) // _SAMPLE, 1)]


def _names(image: str) -> list[str]:
    return list(dict.fromkeys((image, image.replace("/", "_"))))


def _outside(pose: Pose, size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.asarray((pose[:, 0] >= size[1]) | (pose[:, 1] >= size[0]))  # NaN is never outside


def _problem(path: Path, message: str, rule: str) -> AnnotationProblem:
    return AnnotationProblem(printable(path), 0, "keypoints", message, rule)


# ---- Keypoint detectors: torchvision's Keypoint R-CNN and ViTPose; both know COCO-17, both give
# OpenPose-18.

RCNN_THRESHOLD = 2.0  # of Keypoint R-CNN's heat-map peaks, which are logits
VITPOSE_THRESHOLD = 0.3  # of ViTPose's heat-map peaks, at most about 1
_VITPOSE = {"vitpose": ("VitPoseConfig", "VitPoseForPoseEstimation")}


class RcnnKeypoints:
    """Keypoint R-CNN: the keypoints of the main person (interfaces.main_person, with boxes).

    Args:
        network: a torchvision Keypoint R-CNN in eval mode.
        info: what to write beside its keypoints.
        threshold: a joint with a lower score is missing.
    """

    def __init__(self, network: nn.Module, info: AnnotatorInfo, threshold: float = RCNN_THRESHOLD) -> None:
        self.info = info
        self._network, self._threshold = network, threshold

    def __call__(self, images: Tensor) -> Poses:
        """(B, 3, H, W) uint8 -> poses; all joints are missing where nobody is found."""
        size = (int(images.shape[2]), int(images.shape[3]))
        points = np.full((len(images), COCO_JOINTS, 2), np.nan, np.float32)
        scores = np.full((len(images), COCO_JOINTS), -np.inf, np.float32)
        people = np.zeros(len(images), np.int64)
        for i, found in enumerate(detect(self._network, images)):
            people[i] = len(found["scores"])
            if people[i]:
                boxes = found["boxes"].numpy()
                sides = boxes[:, 2:] - boxes[:, :2]
                centers = (boxes[:, :2] + boxes[:, 2:]) / 2
                best = main_person(found["scores"].numpy(), sides.prod(1), centers, size)
                points[i] = found["keypoints"][best, :, :2].numpy()
                scores[i] = found["keypoints_scores"][best].numpy()
        return _poses(points, scores, people, size, self._threshold)


class VitPose:
    """ViTPose on whole crops: the person's box is the image.

    Args:
        network: transformers' VitPoseForPoseEstimation in eval mode; its experts (the "plus" models) are not
            known here.
        info: what to write beside its keypoints.
        threshold: a joint with a lower score is missing.

    Raises:
        UserError: transformers is missing, or a network of another joint set.
    """

    def __init__(self, network: nn.Module, info: AnnotatorInfo, threshold: float = VITPOSE_THRESHOLD) -> None:
        try:
            from transformers import VitPoseImageProcessor
        except ImportError as error:
            raise UserError(
                "ViTPose needs transformers, not installed here", "pip install reposer[annotate]"
            ) from error
        self.info = info
        self._network, self._threshold = network, threshold
        backbone: Any = getattr(network.config, "backbone_config", None)
        if getattr(backbone, "num_experts", 1) > 1:
            raise UserError(
                f"{info.name}: a ViTPose with several experts", "use a plain one, as vitpose-base-simple"
            )
        height, width = backbone.image_size
        self._processor: Any = VitPoseImageProcessor(size={"height": height, "width": width})

    def __call__(self, images: Tensor) -> Poses:
        """(B, 3, H, W) uint8 -> poses; it takes for granted that there is a person."""
        size = (int(images.shape[2]), int(images.shape[3]))
        boxes = [[[0.0, 0.0, float(size[1]), float(size[0])]]] * len(images)  # x, y, width, height
        inputs = self._processor(list(images.cpu()), boxes=boxes, return_tensors="pt")
        device = next(self._network.parameters()).device
        with torch.inference_mode():
            output = self._network(pixel_values=inputs["pixel_values"].to(device).float())
        found = self._processor.post_process_pose_estimation(output, boxes=boxes)
        points = np.stack([one[0]["keypoints"].float().cpu().numpy() for one in found])
        scores = np.stack([one[0]["scores"].float().cpu().numpy() for one in found])
        people = np.full(len(images), -1, np.int64)
        return _poses(points, scores, people, size, self._threshold)


def open_keypoint_detector(
    name: str = "keypointrcnn",
    weights: str | Path | None = None,
    *,
    accept_license: bool = False,
    may_download: bool | None = None,
    device: str = "cpu",
) -> KeypointDetector:
    """A detector by name.

    Args:
        name: a key of KEYPOINT_DETECTORS.
        weights: for Keypoint R-CNN a state dict (None: the official one); for ViTPose a folder with
            config.json and model.safetensors; for BlazePose the official file, a wheel with it, or its
            address.
        accept_license: the user has accepted the terms of official weights.
        may_download: get official weights where they are not on this machine; None: those whose license asks
            for no acceptance.
        device: where it runs.

    Raises:
        UserError: as ``interfaces.load_detector`` and ``networks.load_transformers``; unknown name.
    """
    made = find("keypoint detector", name, KEYPOINT_DETECTORS)
    return made(weights, accept_license=accept_license, may_download=may_download, device=device)


def _open_rcnn(weights: str | Path | None, **how: Any) -> RcnnKeypoints:
    return RcnnKeypoints(*load_detector("keypointrcnn", weights, **how))


def _open_vitpose(weights: str | Path | None, *, device: str, **how: Any) -> VitPose:
    del how  # there is no official file whose terms could be accepted
    if weights is None:
        raise UserError(
            "vitpose: has no pinned file to download",
            "save usyd-community/vitpose-base-simple (Apache-2.0) with transformers and give its folder",
        )
    network = load_transformers(weights, _VITPOSE).to(device)
    sha256 = sha256_file(Path(weights) / "model.safetensors")
    return VitPose(network, AnnotatorInfo("vitpose", sha256, "Apache-2.0"))


# Each is called with the user's weights (or None), accept_license, may_download and device.
KEYPOINT_DETECTORS: dict[str, Callable[..., KeypointDetector]] = {
    AUTO: partial(open_blazepose, "blazepose_full"),
    "blazepose_full": partial(open_blazepose, "blazepose_full"),
    "blazepose_heavy": partial(open_blazepose, "blazepose_heavy"),
    "keypointrcnn": _open_rcnn,
    "vitpose": _open_vitpose,
}


def _poses(
    points: NDArray[np.float32],
    scores: NDArray[np.float32],
    people: NDArray[np.int64],
    size: tuple[int, int],
    threshold: float,
) -> Poses:
    """COCO points as OpenPose ones; what lies outside the image is missing."""
    inside = (points >= 0).all(-1) & (points[..., 0] <= size[1] - 1) & (points[..., 1] <= size[0] - 1)
    keypoints, values = coco_to_openpose(points, np.where(inside, scores, -np.inf), threshold)
    return Poses(keypoints, values, people)
