"""Key-point detectors: torchvision's Keypoint R-CNN and ViTPose; both know COCO-17, both give OpenPose-18."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.annotation.detectors import detect, load_detector, main_person
from reposer.annotation.interfaces import AnnotatorInfo, Poses
from reposer.annotation.networks import load_transformers
from reposer.data.keypoint_sets import COCO_JOINTS, coco_to_openpose
from reposer.errors import UserError
from reposer.files import sha256_file

RCNN_THRESHOLD = 2.0  # of Keypoint R-CNN's heat-map peaks, which are logits
VITPOSE_THRESHOLD = 0.3  # of ViTPose's heat-map peaks, at most about 1
_VITPOSE = {"vitpose": ("VitPoseConfig", "VitPoseForPoseEstimation")}


class RcnnKeypoints:
    """Keypoint R-CNN: the key-points of the main person (detectors.main_person, with boxes).

    Args:
        network: a torchvision Keypoint R-CNN in eval mode.
        info: what to write beside its key-points.
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
        info: what to write beside its key-points.
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
    accept_licence: bool = False,
    may_download: bool = False,
    device: str = "cpu",
) -> RcnnKeypoints | VitPose:
    """A detector by name.

    Args:
        name: "keypointrcnn" or "vitpose".
        weights: a state dict for Keypoint R-CNN (None: the official one); for ViTPose a folder with
            config.json and model.safetensors.
        accept_licence: the user has accepted the terms of official weights.
        may_download: get official weights where they are not on this machine.
        device: where it runs.

    Raises:
        UserError: as ``detectors.load_detector`` and ``networks.load_transformers``; unknown name.
    """
    if name == "vitpose":
        if weights is None:
            raise UserError(
                "vitpose: has no pinned file to download",
                "save usyd-community/vitpose-base-simple (Apache-2.0) with transformers and give its folder",
            )
        network = load_transformers(weights, _VITPOSE).to(device)
        sha256 = sha256_file(Path(weights) / "model.safetensors")
        return VitPose(network, AnnotatorInfo("vitpose", sha256, "Apache-2.0"))
    if name != "keypointrcnn":
        raise UserError(f"key-point detector {name!r}: unknown", "use keypointrcnn or vitpose")
    network, info = load_detector(
        name, weights, accept_licence=accept_licence, may_download=may_download, device=device
    )
    return RcnnKeypoints(network, info)


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
