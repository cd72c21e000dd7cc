"""What `reposer annotate` gives with its defaults, against given annotations of the same people.

    python benchmarks/annotate_auto.py DATA [--pids 100] [--every 1] [--parser auto] [--keep OUT]

DATA is a folder with bounding_box_train/, parsing/, mask/ and lists/keypoints.csv. The images of the
``--pids`` highest identities are annotated in one process with two threads; networks that are not on this
machine are fetched. Printed, as JSON: crops a second, and processor time, which other work hardly changes;
PCK (joints within 0.2 torso lengths of the given ones)
over the given joints, where one that is called missing is wrong, and over those that both have; precision and
recall of "missing"; swapped shoulders; IoU of the masks; IoU of eight groups of labels and their mean.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from reposer.annotation.annotate import AnnotateOptions, annotate
from reposer.annotation.annotators import AnnotatorChoice
from reposer.data.keypoints import Pose, read_keypoints_csv, torso_length
from reposer.data.label_files import read_mask
from reposer.data.parsing import read_parsing
from reposer.metrics.similarity import label_confusion

# LIP-20's labels in eight groups
GROUPS = ("background", "hair", "face", "upper", "lower", "arms", "legs", "shoes")
_GROUP = np.array([0, 1, 1, 5, 2, 3, 3, 3, 6, 4, 3, 3, 4, 2, 5, 5, 6, 6, 7, 7], np.uint8)
NEAR = 0.2  # torso lengths


def people_of(data: Path, pids: int, every: int) -> list[str]:
    """Names of the images of the highest identities, sorted."""
    names = sorted(path.name for path in (data / "bounding_box_train").glob("*.jpg"))
    highest = sorted({name[:4] for name in names})[-pids:]
    return [name for name in names if name[:4] in set(highest)][::every]


def measure(data: Path, made: Path, names: list[str]) -> dict[str, float]:
    """The annotations in ``made`` against those of the data."""
    given = read_keypoints_csv(data / "lists" / "keypoints.csv")[0]
    found = read_keypoints_csv(made / "keypoints.csv")[0]
    numbers = joints(np.stack([given[n] for n in names]), np.stack([found[n] for n in names]))
    confusion, overlaps = np.zeros((8, 8), np.int64), []
    for name in names:
        stem = Path(name).stem
        truth, parsing = (_GROUP[read_parsing(at / "parsing" / f"{stem}.png")] for at in (data, made))
        confusion += label_confusion(truth, parsing, 8)
        wanted, mask = (read_mask(at / "mask" / f"{stem}.png") for at in (data, made))
        overlaps.append(float((wanted & mask).sum() / max(int((wanted | mask).sum()), 1)))
    hits = np.diag(confusion)
    iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    numbers |= {"mask_iou": float(np.mean(overlaps)), "miou_8": float(iou.mean())}
    numbers |= {"pixel_accuracy": float(hits.sum() / confusion.sum())}
    return numbers | {f"iou_{group}": float(value) for group, value in zip(GROUPS, iou, strict=True)}


def joints(given: Pose, found: Pose) -> dict[str, float]:
    """Figures of keypoints (N, 18, 2) against given ones."""
    away = np.linalg.norm(found - given, axis=-1) / torso_length(given)[:, None]
    known = ~np.isnan(given[..., 0]) & ~np.isnan(torso_length(given))[:, None]
    both = known & ~np.isnan(found[..., 0])
    missing, called = np.isnan(given[..., 0]), np.isnan(found[..., 0])
    widths = [pose[:, 2, 0] - pose[:, 5, 0] for pose in (given, found)]
    clear = (np.abs(widths) > 0.25 * torso_length(given)).all(0)
    return {
        "pck": float((away[known] < NEAR).mean()),  # NaN, a joint called missing, is not near
        "pck_of_both": float((away[both] < NEAR).mean()),
        "missing_precision": float((missing & called).sum() / max(int(called.sum()), 1)),
        "missing_recall": float((missing & called).sum() / max(int(missing.sum()), 1)),
        "shoulders_swapped": float((np.prod(widths, axis=0)[clear] < 0).mean()),
    }


def run(data: Path, out: Path, names: list[str], choice: AnnotatorChoice) -> dict[str, float]:
    """Annotate and measure."""
    crops = out / "crops"
    crops.mkdir()
    for name in names:
        shutil.copy(data / "bounding_box_train" / name, crops)
    torch.set_num_threads(2)
    start, work = time.perf_counter(), time.process_time()
    annotate(crops, out / "annotated", choice.open, how=AnnotateOptions())
    seconds, work = time.perf_counter() - start, time.process_time() - work
    speed = {"crops": float(len(names)), "crops_a_second": len(names) / seconds}
    speed["processor_ms_a_crop"] = 1000 * work / len(names)  # the same beside other work
    return speed | measure(data, out / "annotated", names)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--pids", type=int, default=100)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--parser", default="auto")
    parser.add_argument("--keypoints", default="auto")
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    chosen = AnnotatorChoice(parser=args.parser, keypoints=args.keypoints)
    with tempfile.TemporaryDirectory() as folder:
        place = args.keep or Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        people = people_of(args.data, args.pids, args.every)
        print(json.dumps(run(args.data, place, people, chosen)))
