"""Makes the annotations of crops: reads them in batches of one size, annotates, encodes maps and masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from reposer.annotation.annotators import Annotation, Annotators
from reposer.annotation.journal import GIVEN, Rows, source_hash
from reposer.annotation.quality import measure
from reposer.annotation.shard_writing import Encode, Put
from reposer.data.layouts.folder_scan import without_suffix
from reposer.data.parsing import PALETTE
from reposer.data.problems import AnnotationProblem
from reposer.image_rules import ACCEPTED
from reposer.images import MAX_FILE_BYTES, Picture, encode_png, read_picture, without_metadata
from reposer.paths import RefusedFileError, check_relative, contained, read_regular
from reposer.structures import NUM_LABELS

PARSING, MASK = "parsing", "mask"  # folders, as `reposer prepare` looks for them
MAX_CROP_PIXELS = 4_000_000  # larger ones are photos; also the most pixels of a batch
_PNG_LEVEL = 2  # zlib's; the map of a crop takes one block of the disk at any, and half the time of 6
_MAX_WAITING = 4 * MAX_CROP_PIXELS  # pixels that wait for others of their size

PROBLEM = pa.struct(
    [("file", pa.string()), ("field", pa.string()), ("rule", pa.string()), ("message", pa.string())]
)
COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
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
    ("flags", pa.list_(pa.string())),  # of quality.FLAGS
    ("photo", pa.string()),  # of a crop that was cut from a photo
    ("photo_sha256", pa.string()),
    ("box", pa.list_(pa.int32())),  # left, top, right, bottom in the upright photo
    ("box_score", pa.float64()),
    ("problems", pa.list_(PROBLEM)),
)
OUTPUTS = ((PARSING, "parsing_sha256"), (MASK, "mask_sha256"))
COPIES = ("file", "sha256")  # with these, too, where the images are copied


@dataclass(frozen=True)
class Crops:
    """Images of one size, or the refusals of a shard."""

    names: list[str]
    pictures: list[Picture]
    refusals: list[tuple[str, RefusedFileError]]


@dataclass(frozen=True)
class CropMaker:
    """A Maker (shard_writing.py) of maps, masks and key-points."""

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
