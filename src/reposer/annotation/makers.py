"""What a worker of ``annotate`` makes: annotations of crops, and crops of the people in photos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from reposer.annotation.annotators import Annotation, Annotators
from reposer.annotation.interfaces import detect
from reposer.annotation.journal import GIVEN, read_book, source_hash
from reposer.annotation.overview import measure
from reposer.data.layouts.folder_scan import without_suffix
from reposer.data.parsing import PALETTE
from reposer.data.records import AnnotationProblem
from reposer.image_rules import ACCEPTED
from reposer.images import MAX_FILE_BYTES, Picture, encode_png, read_picture, resize, without_metadata
from reposer.jobs.shards import Encode, Put, Rows
from reposer.storage.paths import RefusedFileError, check_relative, contained, read_regular
from reposer.structures import NUM_LABELS

# ---- Which of a detector's boxes become crops, and where exactly they are cut: rules, written down once.
#
# 1. Boxes are in pixels of the photo turned upright, as EXIF says; only people with a score of at least 0.5.
# 2. The same person twice (intersection over union above 0.7): the box with the lower score is left out.
# 3. Less than 64 pixels high or 24 wide: left out; nothing of use can be seen.
# 4. The rest is numbered from left to right, enlarged by 5 % of its size on each side, rounded outwards and
# cut
#    at the photo's border.
# 5. A box that ends within 2 pixels of the border is cut as it is and flagged ``at-border``.
# 6. Of overlapping people every one is cut, the other stays in the picture; where more than half of a box
# lies
#    in another box it is flagged ``overlapped``.

SAME_PERSON = 0.7  # intersection over union
OVERLAPPED = 0.5  # share of a box inside another
MIN_HEIGHT, MIN_WIDTH = 64, 24  # pixels
MARGIN = 0.05  # of the box's size, on each side
BORDER = 2.0  # pixels

Boxes = NDArray[np.float64]  # (N, 4) left, top, right, bottom in pixels, right and bottom exclusive


@dataclass(frozen=True, slots=True)
class Cut:
    """A crop to be cut out."""

    box: tuple[int, int, int, int]  # left, top, right, bottom, whole pixels inside the photo
    score: float
    flags: tuple[str, ...]  # of overview.FLAGS


@dataclass(frozen=True, slots=True)
class Dropped:
    """A box that is left out."""

    rule: str  # "same-person" or "tiny-box"
    message: str


def choose_cuts(
    boxes: Boxes, scores: NDArray[np.floating], size: tuple[int, int]
) -> tuple[list[Cut], list[Dropped]]:
    """The crops of a photo from left to right, and what is left out; the order of the input does not matter.

    Args:
        boxes: (N, 4) of people.
        scores: (N,).
        size: (H, W) of the photo.
    """
    if boxes.shape != (len(scores), 4):
        raise ValueError(f"boxes {boxes.shape}, scores {scores.shape}")
    limits = np.array([size[1], size[0], size[1], size[0]], np.float64)
    boxes = np.clip(boxes.astype(np.float64), 0, limits)
    dropped = []
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-float(scores[i]), *boxes[i])):
        width, height = boxes[i, 2] - boxes[i, 0], boxes[i, 3] - boxes[i, 1]
        if height < MIN_HEIGHT or width < MIN_WIDTH:
            least = f"at least {MIN_WIDTH}x{MIN_HEIGHT} are needed"
            dropped.append(Dropped("tiny-box", f"a person of {width:.0f}x{height:.0f} pixels; {least}"))
        elif any(_overlap(boxes[i], boxes[j])[0] > SAME_PERSON for j in kept):
            dropped.append(Dropped("same-person", f"a second box of one person, score {scores[i]:.2f}"))
        else:
            kept.append(i)
    kept.sort(key=lambda i: (boxes[i, 0], boxes[i, 1], -float(scores[i])))
    return [_cut(i, kept, boxes, float(scores[i]), size) for i in kept], dropped


def _cut(i: int, kept: list[int], boxes: Boxes, score: float, size: tuple[int, int]) -> Cut:
    left, top, right, bottom = boxes[i]
    flags = []
    if min(left, top, size[1] - right, size[0] - bottom) <= BORDER:
        flags.append("at-border")
    if any(_overlap(boxes[i], boxes[j])[1] > OVERLAPPED for j in kept if j != i):
        flags.append("overlapped")
    x, y = MARGIN * (right - left), MARGIN * (bottom - top)
    box = (
        max(0, int(np.floor(left - x))),
        max(0, int(np.floor(top - y))),
        min(size[1], int(np.ceil(right + x))),
        min(size[0], int(np.ceil(bottom + y))),
    )
    return Cut(box, score, tuple(flags))


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Intersection over union of two boxes, and the share of the first that lies in the second."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = float(sides.clip(min=0).prod())
    areas = [float((box[2:] - box[:2]).prod()) for box in (a, b)]
    return common / max(sum(areas) - common, 1e-9), common / max(areas[0], 1e-9)


# ---- Makes the annotations of crops: reads them in batches of one size, annotates, encodes maps and masks.

PARSING, MASK = "parsing", "mask"  # folders, as `reposer prepare` looks for them
MAX_CROP_PIXELS = 4_000_000  # larger ones are photos; also the most pixels of a batch
_PNG_LEVEL = 2  # zlib's; the map of a crop takes one block of the disk at any, and half the time of 6
_MAX_WAITING = 4 * MAX_CROP_PIXELS  # pixels that wait for others of their size

PROBLEM = pa.struct(
    [("file", pa.string()), ("field", pa.string()), ("rule", pa.string()), ("message", pa.string())]
)
CROP_COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("left_out", pa.string()),  # the rule that refused the image
    ("parsing", pa.string()),
    ("parsing_sha256", pa.string()),
    ("label_pixels", pa.list_(pa.int32())),  # of the map, by LIP-20 label
    ("mask", pa.string()),
    ("mask_sha256", pa.string()),
    ("mask_source", pa.string()),  # see interfaces.MaskSource
    ("keypoints", pa.list_(pa.float32())),  # x, y of 18 joints, NaN for a missing one
    ("joint_scores", pa.list_(pa.float32())),
    (GIVEN, pa.string()),  # Annotators.given: the user's own files that were used
    ("people", pa.int32()),  # seen by a detector; -1: nobody counted
    ("mask_area", pa.float64()),
    ("agreement", pa.float64()),
    ("joints", pa.int32()),
    ("flags", pa.list_(pa.string())),  # of overview.FLAGS
    ("photo", pa.string()),  # of a crop that was cut from a photo
    ("photo_sha256", pa.string()),
    ("box", pa.list_(pa.int32())),  # left, top, right, bottom in the upright photo
    ("box_score", pa.float64()),
    ("problems", pa.list_(PROBLEM)),
)
CROP_OUTPUTS = ((PARSING, "parsing_sha256"), (MASK, "mask_sha256"))
COPIES = ("file", "sha256")  # with these, too, where the images are copied


@dataclass(frozen=True)
class Crops:
    """Images of one size, or the refusals of a shard."""

    names: list[str]
    pictures: list[Picture]
    refusals: list[tuple[str, RefusedFileError]]

    def __len__(self) -> int:
        return len(self.names) + len(self.refusals)


@dataclass(frozen=True)
class CropMaker:
    """A Maker (jobs/shards.py) of label maps, masks and keypoints."""

    annotators: Annotators
    images: Path  # folder
    batch_size: int
    copy: bool  # whether the images are copied to where the annotations are
    origins: Mapping[str, Mapping[str, Any]]  # of crops: photo, photo_sha256, box, box_score, flags

    def read(self, images: Sequence[str]) -> Iterator[Crops]:
        """Batches of one size each; the same images always give the same batches."""
        waiting: dict[tuple[int, ...], list[tuple[str, Picture]]] = {}
        refusals: list[tuple[str, RefusedFileError]] = []
        pixels = 0
        for name in images:
            try:
                picture = _read(self.images, name)
            except RefusedFileError as error:
                refusals.append((name, error))
                continue
            size = picture.pixels.shape[:2]
            group = waiting.setdefault(size, [])
            group.append((name, picture))
            area = size[0] * size[1]
            pixels += area
            if len(group) == self.batch_size or (len(group) + 1) * area > MAX_CROP_PIXELS:
                pixels -= len(group) * area
                yield _batch(waiting.pop(size))
            elif pixels > _MAX_WAITING:
                yield from map(_batch, waiting.values())
                waiting, pixels = {}, 0
        yield from map(_batch, waiting.values())
        if refusals:
            yield Crops([], [], refusals)

    def make(self, batch: Crops) -> Encode:
        """Annotate; encoding comes later."""
        if not batch.names:
            return partial(self._refuse, batch.refusals)
        pixels = np.stack([picture.pixels for picture in batch.pictures])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        return partial(self._encode, batch, self.annotators.annotate(images, batch.names))

    def _encode(self, batch: Crops, annotations: list[Annotation], put: Put) -> Rows:
        return [
            self._row(name, picture, annotation, put)
            for name, picture, annotation in zip(batch.names, batch.pictures, annotations, strict=True)
        ]

    def _row(self, name: str, picture: Picture, annotation: Annotation, put: Put) -> dict[str, Any]:
        height, width = picture.pixels.shape[:2]
        row: dict[str, Any] = {"file": name, "sha256": picture.sha256, "width": width, "height": height}
        stem = without_suffix(name)
        if annotation.parsing is not None:
            data = encode_png(np.ascontiguousarray(annotation.parsing), PALETTE, _PNG_LEVEL)
            row[PARSING] = f"{PARSING}/{stem}.png"
            row["parsing_sha256"] = put(row[PARSING], data)
            row["label_pixels"] = np.bincount(annotation.parsing.ravel(), minlength=NUM_LABELS).tolist()
        if annotation.mask is not None:
            row[MASK] = f"{MASK}/{stem}.png"
            data = encode_png(np.ascontiguousarray(annotation.mask), level=_PNG_LEVEL)
            row["mask_sha256"] = put(row[MASK], data)
        if self.copy:
            data = read_regular(contained(self.images, name), max_bytes=MAX_FILE_BYTES, root=self.images)
            row["sha256"] = put(name, without_metadata(data, name))
        if annotation.keypoints is not None and annotation.scores is not None:
            row["keypoints"] = annotation.keypoints.ravel().tolist()
            row["joint_scores"] = annotation.scores.tolist()
        quality = measure(annotation)
        origin = dict(self.origins.get(name, {}))
        row["flags"] = [*quality.flags, *origin.pop("flags", ())]
        row |= origin
        row["mask_source"], row["people"] = annotation.mask_source, annotation.people
        row["mask_area"], row["agreement"] = quality.mask_area, quality.agreement
        row["joints"], row[GIVEN] = quality.joints, annotation.given
        row["problems"] = [problem_cell(problem) for problem in annotation.problems]
        row["problems"] += [problem_cell(used_by_rule(name, rule)) for rule in picture.rules]
        return row

    def _refuse(self, refusals: list[tuple[str, RefusedFileError]], put: Put) -> Rows:
        return [refused_row(self.images, name, error) for name, error in refusals]


def refused_row(folder: Path, name: str, error: RefusedFileError) -> dict[str, Any]:
    """The row of an image that a rule refuses."""
    message = f"{error.reason}; left out: {error.advice}" if error.advice else f"{error.reason}; left out"
    cell = problem_cell(AnnotationProblem(name, 0, "image", message, error.rule))
    digest = source_hash(folder / check_relative(name), folder)
    return {"file": name, "sha256": digest, "left_out": error.rule, "flags": [], "problems": [cell]}


def used_by_rule(name: str, rule: str) -> AnnotationProblem:
    """The line of an image that is used, although it is not plain RGB."""
    return AnnotationProblem(name, 0, "image", f"used by this rule: {ACCEPTED[rule]}", rule)


def problem_cell(problem: AnnotationProblem) -> dict[str, str]:
    """A problem as a manifest holds it."""
    return {"file": problem.file, "field": problem.field, "rule": problem.rule, "message": problem.message}


def _read(folder: Path, name: str) -> Picture:
    picture = read_picture(contained(folder, name), folder)
    height, width = picture.pixels.shape[:2]
    if height * width > MAX_CROP_PIXELS:
        problem = f"{width}x{height} pixels: a photo, not a crop of one person"
        raise RefusedFileError(name, "photo-size", problem, "cut people out first, with --detect")
    return picture


def _batch(group: list[tuple[str, Picture]]) -> Crops:
    return Crops([name for name, _ in group], [picture for _, picture in group], [])


# ---- Cuts people out of photos: a torchvision detector, the rules of this file, a PNG for each person.

LONG_SIDE = 1333  # pixels that a detector sees at most (torchvision's own limit)
PHOTO_COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("left_out", pa.string()),  # the rule that refused the photo, or "no-person"
    ("crop", pa.string()),  # relative path of the PNG
    ("crop_sha256", pa.string()),
    ("box", pa.list_(pa.int32())),  # left, top, right, bottom in the upright photo, as it was cut
    ("score", pa.float64()),
    ("flags", pa.list_(pa.string())),
    ("problems", pa.list_(PROBLEM)),
)
PHOTO_OUTPUTS = (("crop", "crop_sha256"),)


@dataclass(frozen=True)
class Photo:
    """A photo that was read, or its refusal."""

    name: str
    picture: Picture | None
    refusal: RefusedFileError | None

    def __len__(self) -> int:
        return 1


@dataclass(frozen=True)
class PhotoMaker:
    """A Maker (jobs/shards.py) of crops: x/photo.jpg becomes x/photo_p01.png, x/photo_p02.png,
    ..."""

    detector: nn.Module  # of torchvision, in eval mode
    images: Path  # folder of the photos

    def read(self, images: Sequence[str]) -> Iterator[Photo]:
        """One photo at a time: they are large."""
        for name in images:
            try:
                yield Photo(name, read_picture(contained(self.images, name), self.images), None)
            except RefusedFileError as error:
                yield Photo(name, None, error)

    def make(self, batch: Photo) -> Encode:
        """Find the people; cutting comes later."""
        if batch.picture is None:
            return partial(self._refuse, batch)
        return partial(_cut_out, batch.name, batch.picture, *find_people(self.detector, batch.picture.pixels))

    def _refuse(self, photo: Photo, put: Put) -> Rows:
        assert photo.refusal is not None
        return [refused_row(self.images, photo.name, photo.refusal)]


def find_people(detector: nn.Module, pixels: NDArray[np.uint8]) -> tuple[Boxes, NDArray[np.float64]]:
    """(H, W, 3) uint8 -> boxes (N, 4) in its pixels and scores (N,); a large photo is looked at smaller."""
    height, width = pixels.shape[:2]
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    shrink = min(1.0, LONG_SIDE / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    (found,) = detect(detector, resize(image, size))
    scale = np.array([width / size[1], height / size[0]] * 2)
    return found["boxes"].double().numpy() * scale, found["scores"].double().numpy()


def crop_origins(book: Path) -> dict[str, dict[str, Any]]:
    """Where each crop of a finished journal comes from: photo, photo_sha256, box, box_score, flags."""
    return {
        row["crop"]: {
            "photo": row["file"],
            "photo_sha256": row["sha256"],
            "box": row["box"],
            "box_score": row["score"],
            "flags": row["flags"],
        }
        for row in read_book(book).to_pylist()
        if row["crop"] and not row["left_out"]
    }


def _cut_out(name: str, picture: Picture, boxes: Boxes, scores: NDArray[np.float64], put: Put) -> Rows:
    cuts, dropped = choose_cuts(boxes, scores, picture.pixels.shape[:2])
    listed = [used_by_rule(name, rule) for rule in picture.rules]
    listed += [AnnotationProblem(name, 0, "box", f"{one.message}; left out", one.rule) for one in dropped]
    row: Mapping[str, Any] = {"file": name, "sha256": picture.sha256}
    if not cuts:
        listed.append(AnnotationProblem(name, 0, "image", "no person was found; left out", "no-person"))
        return [{**row, "left_out": "no-person", "flags": [], "problems": [*map(problem_cell, listed)]}]
    rows = []
    for number, cut in enumerate(cuts, start=1):
        left, top, right, bottom = cut.box
        place = f"{name.rpartition('.')[0]}_p{number:02d}.png"
        data = encode_png(np.ascontiguousarray(picture.pixels[top:bottom, left:right]))
        rows.append(
            {
                **row,
                "crop": place,
                "crop_sha256": put(place, data),
                "box": list(cut.box),
                "score": cut.score,
                "flags": list(cut.flags),
                "problems": [problem_cell(problem) for problem in listed] if number == 1 else [],
            }
        )
    return rows
