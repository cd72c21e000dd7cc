"""DeepFashion In-shop: its file names in both spellings, its splits, and its published keypoints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reposer.data.keypoints import JOINTS, Pose, read_keypoints_csv, scale_keypoints
from reposer.data.records import AnnotationProblem
from reposer.errors import UserError
from reposer.storage.paths import RefusedFileError, printable
from reposer.structures import PersonRecord

# ---- DeepFashion In-shop file names in both spellings, and what the official split has on both of its sides.
#
# WOMEN/Dresses/id_00000002/02_1_front.jpg         the download's, below img/ or img_highres/
# fashionWOMENDressesid0000000202_1front.jpg       the pose-transfer literature's

_ORIGINAL = re.compile(
    r"(?:.*/)?(WOMEN|MEN)/([A-Za-z]+(?:_[A-Za-z]+)*)/id_(0[0-9]{7})/([0-9]{2})_([0-9])_([a-z]+)\.jpg",
    re.ASCII,
)
_FLAT = re.compile(
    r"(?:.*/)?fashion(WOMEN|MEN)([A-Za-z]+(?:_[A-Za-z]+)*?)id(0[0-9]{7})([0-9]{2})_([0-9])([a-z]+)\.jpg",
    re.ASCII,
)


class InshopName(NamedTuple):
    """What a name says; folders before it say nothing."""

    gender: str  # "WOMEN" or "MEN"
    category: str  # "Dresses", "Blouses_Shirts", ...
    item: int  # a garment model of the shop
    variant: int  # a color of it, photographed on one person
    view: int
    view_name: str  # "front", "side", "back", "full", "flat" (nobody wears it) or "additional"

    @property
    def product(self) -> str:
        """Category and item, as the flat names begin."""
        return f"fashion{self.gender}{self.category}id{self.item:08d}"

    @property
    def garment(self) -> str:
        """The product's variant: what the split keeps apart, and whose images make pairs."""
        return f"{self.product}{self.variant:02d}"

    @property
    def flat(self) -> str:
        """The literature's name."""
        return f"{self.garment}_{self.view}{self.view_name}.jpg"

    @property
    def original(self) -> str:
        """The download's path below img/."""
        folder = f"{self.gender}/{self.category}/id_{self.item:08d}"
        return f"{folder}/{self.variant:02d}_{self.view}_{self.view_name}.jpg"

    @property
    def pid(self) -> int:
        """Item and variant as one number: 202 for variant 02 of item 00000002."""
        return 100 * self.item + self.variant


def parse_inshop_name(text: str) -> InshopName:
    """A name in either spelling.

    Raises:
        RefusedFileError: rule ``bad-name``: it has another form.
    """
    match = _ORIGINAL.fullmatch(text) or _FLAT.fullmatch(text)
    if match is None:
        advice = (
            "names are like WOMEN/Dresses/id_00000002/02_1_front.jpg or"
            " fashionWOMENDressesid0000000202_1front.jpg"
        )
        raise RefusedFileError(text[:100], "bad-name", "not a name of DeepFashion In-shop", advice)
    gender, category, item, variant, view, view_name = match.groups()
    return InshopName(gender, category, int(item), int(variant), int(view), view_name)


@dataclass(frozen=True, slots=True)
class SplitOverlap:
    """What training and test list have in common; an image counts once."""

    products: tuple[str, ...]  # category and item in both lists, sorted
    product_images: int  # test images of these
    items: int  # item numbers in both, whatever the category
    item_images: int  # test images of these
    garments: int  # category, item and variant in both
    test_products: int
    test_images: int

    def __str__(self) -> str:
        return (
            f"{len(self.products):,} of {self.test_products:,} test items ({self.product_images:,} of"
            f" {self.test_images:,} test images) are trained on as other variants; {self.garments:,} garments"
            f" (item and variant) are in both lists. By item number alone, whatever the category:"
            f" {self.items:,} items, {self.item_images:,} test images"
        )


def split_overlap(train: Iterable[InshopName], test: Iterable[InshopName]) -> SplitOverlap:
    """Count what the two lists share."""
    trained, tested = set(train), set(test)
    products = {name.product for name in trained} & {name.product for name in tested}
    items = {name.item for name in trained} & {name.item for name in tested}
    return SplitOverlap(
        products=tuple(sorted(products)),
        product_images=sum(name.product in products for name in tested),
        items=len(items),
        item_images=sum(name.item in items for name in tested),
        garments=len({name.garment for name in trained} & {name.garment for name in tested}),
        test_products=len({name.product for name in tested}),
        test_images=len(tested),
    )


# ---- DeepFashion's published keypoints: which file, which frame, and where the joints lie in the image at
# hand.
#
# The published CSVs count pixels of one of two frames, not of the image: fasion-annotation-*.csv of 256x256
# (height x width), fasion-resize-annotation-*.csv of its middle columns 40 to 215, 256x176. The download's
# img/ is square with white borders; img_highres/ is narrow like the second frame. ("fasion": the official
# spelling.)

# (H, W) of the frames; columns that NARROW lacks each side
SQUARE, NARROW, BORDER = (
    (256, 256),
    (256, 176),
    40,
)
_ALMOST_SQUARE = 0.84  # width / height above which an image has borders: halfway between the frames
_SIZE = re.compile("([1-9][0-9]{1,4})x([1-9][0-9]{1,4})", re.ASCII)
FILES = tuple(
    f"{fashion}{resized}-annotation-{{}}.csv"
    for resized in ("-resize", "")
    for fashion in ("fasion", "fashion")
)

Frame = tuple[int, int] | None  # (H, W) that the joints are counted in; None: the image's own pixels


def frame_of(path: Path, frame: str) -> Frame:
    """The frame of a keypoint file: "image", "HEIGHTxWIDTH", or "auto": by the published file names.

    Raises:
        UserError: another text.
    """
    if frame == "auto" and "annotation" not in path.name:
        return None
    if frame == "auto":
        return NARROW if "resize" in path.name else SQUARE
    match = _SIZE.fullmatch(frame)
    if frame != "image" and match is None:
        raise UserError(f"frame {frame!r}: unknown", "use auto, image, 256x176 or another HEIGHTxWIDTH")
    return None if match is None else (int(match[1]), int(match[2]))


def to_image(pose: Pose, frame: tuple[int, int], size: tuple[int, int]) -> Pose:
    """(J, 2) of a frame (H, W) in pixels of an image (H, W); joints may lie outside it.

    A narrow frame is the middle of a square image and a narrow image the middle of a square frame; any other
    frame is the whole image.
    """
    bordered = size[1] / size[0] > _ALMOST_SQUARE
    shift = {(NARROW, True): BORDER, (SQUARE, False): -BORDER}.get((frame, bordered), 0)
    frame = (frame[0], frame[1] + 2 * shift)
    return scale_keypoints(pose + np.array([shift, 0], np.float32), frame, size)


def add_keypoints(
    records: Sequence[PersonRecord], files: Iterable[tuple[Path, Frame]], problems: list[AnnotationProblem]
) -> tuple[list[PersonRecord], list[str]]:
    """The records with their keypoints, and the names of all rows in file order.

    Rows may name an image in either spelling. A joint outside the picture is missing then, and listed; of
    records without a size (a dry run) joints stay as they are.

    Raises:
        UserError: a file as a whole cannot be used.
    """
    by_name = {record.name: record for record in records}
    poses: dict[str, Pose] = {}
    order: dict[str, None] = {}
    for path, frame in files:
        rows, bad = read_keypoints_csv(path, _limits(by_name, frame))
        problems += [replace(problem, rule="bad-keypoints") for problem in bad]
        for row, pose in rows.items():
            name = _flat(row)
            order.setdefault(name)
            wrong = ("unknown-image", "is no usable image of the data set") if name not in by_name else None
            wrong = ("bad-keypoints", f"is {name}, which has a row already") if name in poses else wrong
            if wrong:
                message = f"{printable(row)} {wrong[1]}; the row is left out"
                problems.append(AnnotationProblem(printable(path), 0, "name", message, wrong[0]))
            else:
                poses[name] = _placed(by_name[name], pose, path, frame, problems)
    if order:
        problems += [
            AnnotationProblem(name, 0, "keypoints", "no usable row", "missing-keypoints")
            for name in sorted(by_name.keys() - poses.keys())
        ]
    return [replace(record, keypoints=poses.get(record.name)) for record in records], list(order)


def _placed(
    record: PersonRecord, pose: Pose, path: Path, frame: Frame, problems: list[AnnotationProblem]
) -> Pose:
    if frame is None or not record.width:
        return pose
    moved = to_image(pose, frame, (record.height, record.width))
    limit = np.array([record.width, record.height], np.float32) - 0.5
    outside = ((moved < -0.5) | (moved >= limit)).any(axis=1)  # NaN is never outside
    if outside.any():
        names = ", ".join(JOINTS[joint] for joint in np.flatnonzero(outside))
        message = f"{record.name}: outside the picture, taken as missing: {names}"
        problems.append(AnnotationProblem(printable(path), 0, "joints", message, "joint-outside"))
        moved[outside] = np.nan
    return moved


def _limits(records: Mapping[str, PersonRecord], frame: Frame) -> dict[str, tuple[int, int]]:
    """(width, height) that the joints of an image must lie in, by both spellings."""
    limits = {}
    for record in records.values():
        if frame is None and not record.width:
            continue
        size = (record.width, record.height) if frame is None else (frame[1], frame[0])
        limits[record.name] = limits[parse_inshop_name(record.name).original] = limits[record.path] = size
    return limits


def _flat(name: str) -> str:
    try:
        return parse_inshop_name(name).flat
    except RefusedFileError:
        return name
