"""The shipped parser on real people, whom no training of it saw: the parts of the 100 highest pids.

Run with ``-s`` to see the table of docs/results. The maps compared with were made by machine; gloves count as
arms, socks as legs, dresses as upper clothes (data.parsing's parts8).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reposer.annotation.parser import open_parser
from reposer.data.keypoints import read_keypoints_csv
from reposer.data.label_files import read_mask
from reposer.data.parsing import PARTS8_LABELS, convert, read_parsing
from reposer.images import decode
from reposer.metrics.similarity import label_confusion, label_iou, mean_iou, merged_confusion

SHARED = Path(__file__).parents[3] / "shared"
MARKET, WEIGHTS = SHARED / "data" / "market1501", SHARED / "weights"
SIZE = (128, 64)
PARTS = convert(np.arange(20, dtype=np.uint8)[None], "lip20", "parts8")[0]
# BlazePose's point for each OpenPose joint; the neck is the middle of the shoulders.
BLAZEPOSE = np.array([0, -1, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7])

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(not MARKET.is_dir(), reason="no real data beside the repository"),
]


class Crops(NamedTuple):
    images: torch.Tensor  # (N, 3, 128, 64) uint8
    maps: np.ndarray  # (N, 128, 64) the development maps
    masks: torch.Tensor  # (N, 128, 64) bool, the development masks
    joints: torch.Tensor  # (N, 18, 2) OpenPose's, NaN for a missing one


@pytest.fixture(scope="module")
def crops() -> Crops:
    names = sorted(path.stem for path in (MARKET / "bounding_box_train").glob("*.jpg"))
    lowest = sorted({int(name[:4]) for name in names})[-100]
    names = [name for name in names if int(name[:4]) >= lowest]
    assert len(names) == 1427
    poses, _ = read_keypoints_csv(MARKET / "lists" / "keypoints.csv")
    missing = np.full((18, 2), np.nan, np.float32)
    images = np.stack([decode(MARKET / "bounding_box_train" / f"{name}.jpg") for name in names])
    return Crops(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        np.stack([read_parsing(MARKET / "parsing" / f"{name}.png", SIZE) for name in names]),
        torch.from_numpy(np.stack([read_mask(MARKET / "mask" / f"{name}.png", SIZE) for name in names])),
        torch.from_numpy(np.stack([poses.get(f"{name}.jpg", missing) for name in names])),
    )


def confusion(
    crops: Crops, joints: torch.Tensor | None, masks: torch.Tensor | None, name: str = "rendered_parser"
) -> np.ndarray:
    """(20, 20) of a parser with these guides."""
    parser = open_parser(name)
    total = np.zeros((20, 20), np.int64)
    for start in range(0, len(crops.images), 100):
        part = slice(start, start + 100)
        guides = (None if guide is None else guide[part] for guide in (joints, masks))
        found = parser(crops.images[part], *guides).numpy()
        total += label_confusion(crops.maps[part], found)
    return total


def told(name: str, found: np.ndarray) -> float:
    """Print a row; returns the mean IoU of the parts."""
    parts = merged_confusion(found, PARTS)
    ious = " ".join(f"{label} {iou:.3f}" for label, iou in zip(PARTS8_LABELS, label_iou(parts), strict=True))
    accuracy = np.trace(parts) / parts.sum()
    print(f"{name}: {mean_iou(parts):.3f}, accuracy {accuracy:.3f}, 20 labels {mean_iou(found):.3f}; {ious}")
    return mean_iou(parts)


def test_parts_with_given_joints_and_masks(crops):
    assert told("given joints and masks", confusion(crops, crops.joints, crops.masks)) >= 0.60


def test_parts_of_images_alone(crops):
    alone, joints = confusion(crops, None, None), confusion(crops, crops.joints, None)
    assert told("given joints alone", joints) > told("images alone", alone)


@pytest.mark.skipif(not (WEIGHTS / "blazepose_full.onnx").is_file(), reason="no networks here")
def test_parts_with_joints_and_masks_by_networks(crops):
    """Better than a rule without training; the masks, not the parser, are the limit."""
    joints, masks = blazepose(crops.images), selfie(crops.images)
    found = told("BlazePose and selfie segmentation", confusion(crops, joints, masks))
    rule = told("the rule with the same", confusion(crops, joints, masks, "rule"))
    assert found >= 0.55
    assert found > rule + 0.05


def squared(images: torch.Tensor, side: int) -> np.ndarray:
    """(N, 256, 256, 3) in [0, 1]: a square around the middle, filled with the edge."""
    left, top = (side - SIZE[1]) // 2, (side - SIZE[0]) // 2
    x = F.pad(images.float(), (left, side - SIZE[1] - left, top, side - SIZE[0] - top), mode="replicate")
    x = F.interpolate(x, (256, 256), mode="bilinear", antialias=True)
    return (x / 255).clamp(0, 1).permute(0, 2, 3, 1).contiguous().numpy()


def session(name: str):
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    made = ort.InferenceSession(WEIGHTS / name, options)
    return lambda x: made.run(None, {made.get_inputs()[0].name: x})


def blazepose(images: torch.Tensor) -> torch.Tensor:
    """(N, 18, 2); a joint with a visibility below one half is missing."""
    run, joints = session("blazepose_full.onnx"), []
    for image in images.split(1):
        raw = next(x for x in run(squared(image, 160)) if x.size == 195).reshape(39, 5)[:33]
        points = raw[:, :2] * 160 / 256 - (48.5, 16.5)
        seen = 1 / (1 + np.exp(-raw[:, 3])) >= 0.5
        points[~seen | (points < -0.5).any(1) | (points > (63.5, 127.5)).any(1)] = np.nan
        pose = points[BLAZEPOSE]
        pose[1] = (points[11] + points[12]) / 2
        joints.append(pose)
    return torch.from_numpy(np.stack(joints).astype(np.float32))


def selfie(images: torch.Tensor) -> torch.Tensor:
    """(N, 128, 64) bool."""
    run, masks = session("selfie.onnx"), []
    for image in images.split(1):
        (scores,) = run(squared(image, 128))
        square = torch.from_numpy(scores).reshape(1, 1, 256, 256)
        square = F.interpolate(square, (128, 128), mode="bilinear", antialias=True)
        masks.append(square[0, 0, :, 32:96] >= 0.5)
    return torch.stack(masks)
