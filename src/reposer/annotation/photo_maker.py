"""Cuts people out of photos: a torchvision detector, the rules of boxes.py, a PNG for each person."""

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

from reposer.annotation.boxes import Boxes, choose_cuts
from reposer.annotation.crop_maker import PROBLEM, problem_cell, refused_row, used_by_rule
from reposer.annotation.detectors import detect
from reposer.annotation.journal import Rows, read_book
from reposer.annotation.shard_writing import Encode, Put
from reposer.data.problems import AnnotationProblem
from reposer.images import Picture, encode_png, read_picture, resize
from reposer.paths import RefusedFileError, contained

LONG_SIDE = 1333  # pixels that a detector sees at most (torchvision's own limit)
COLUMNS: tuple[tuple[str, pa.DataType], ...] = (
    ("left_out", pa.string()),  # the rule that refused the photo, or "no-person"
    ("crop", pa.string()),  # relative path of the PNG
    ("crop_sha256", pa.string()),
    ("box", pa.list_(pa.int32())),  # left, top, right, bottom in the upright photo, as it was cut
    ("score", pa.float64()),
    ("flags", pa.list_(pa.string())),
    ("problems", pa.list_(PROBLEM)),
)
OUTPUTS = (("crop", "crop_sha256"),)


@dataclass(frozen=True)
class Photo:
    """A photo that was read, or its refusal."""

    name: str
    picture: Picture | None
    refusal: RefusedFileError | None


@dataclass(frozen=True)
class PhotoMaker:
    """A Maker (shard_writing.py) of crops: x/photo.jpg becomes x/photo_p01.png, x/photo_p02.png, ..."""

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
