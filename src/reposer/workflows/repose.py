"""``reposer repose``: photos in, people in other poses out; everything between comes by itself.

A photo's people are found, framed, annotated, and re-posed one by one, from left to right. What is written:

    OUT/pictures/PHOTO/p01_front.png   the first person, in the frame around them
    OUT/pictures/PHOTO/front.png       the whole photo, everybody in that pose (in place)
    OUT/contact_sheet.png              a row for each person: as found, the label map, the poses
    OUT/repose.json                    a row for each picture: photo, person, pose, hashes, remarks
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reposer.annotation.annotators import AnnotatorChoice
from reposer.annotation.interfaces import AUTO
from reposer.annotation.makers import choose_cuts, find_people
from reposer.data.keypoints import normalize_pose
from reposer.data.layouts.identity_folders import list_images
from reposer.data.orientation import ORIENTATIONS
from reposer.data.parsing import colorize
from reposer.data.records import AnnotationProblem
from reposer.errors import UserError
from reposer.generation.pictures import NEAREST, SEPARATOR, encode_marked, output_names, resize_array
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.generation.reposing import Box, Reposer, remarks
from reposer.generation.targets import CANONICAL, PoseTarget, canonical_names, read_targets
from reposer.images import read_picture
from reposer.sections import draw_grid
from reposer.storage.files import sha256_bytes
from reposer.storage.outputs import claim_outputs, write_output
from reposer.storage.paths import RefusedFileError, contained, made_folder, printable
from reposer.workflows.photo_people import FoundPerson, look_at

PREDICTOR = "shipped-predictor"
TRANSPORT = "transport"
PICTURES, SHEET, RECORD = "pictures", "contact_sheet.png", "repose.json"
_CELL = (256, 192)  # pixels of a picture on the contact sheet
_LONGEST = 4096  # pixels of a photo's longer side; larger ones are made smaller


@dataclass(frozen=True)
class ReposeOptions:
    """How people are found and re-posed."""

    generator: str = AUTO  # as PoseTransfer.from_pretrained knows it; "auto": texture transport
    predictor: str = PREDICTOR  # of target maps, as MapPredictor.from_pretrained knows it
    annotators: AnnotatorChoice = field(default_factory=lambda: AnnotatorChoice(detect=AUTO))
    in_place: bool = False  # the whole photo too, with everybody in the pose


@dataclass(frozen=True)
class ReposedPerson:
    """A picture of one person in one pose."""

    photo: str  # as it was named
    person: int  # from the left, from 1; 0: the whole photo
    pose: str
    image: NDArray[np.uint8]  # (H, W, 3) uint8 RGB
    remarks: tuple[str, ...]  # what of it is made up, in plain words


class _Studio:
    """Everything that is opened once: detector, annotators, generator, predictor."""

    def __init__(self, options: ReposeOptions) -> None:
        self.options = options
        self.detector, self.found_by = options.annotators.open_detector()
        self.annotators = options.annotators.open()
        name = TRANSPORT if options.generator == AUTO else options.generator
        self.reposer = Reposer(
            PoseTransfer.from_pretrained(name), MapPredictor.from_pretrained(options.predictor)
        )

    def people(self, pixels: NDArray[np.uint8], name: str) -> tuple[list[FoundPerson], list[str]]:
        """The people of a photo from left to right, and what was left out."""
        size = (pixels.shape[0], pixels.shape[1])
        boxes, scores = find_people(self.detector, pixels)
        cuts, dropped = choose_cuts(boxes, scores, size)
        said = [f"{one.message}; left out" for one in dropped if one.rule == "tiny-box"]
        found = [(one.box, one.score) for one in cuts]
        if not found and size[0] >= 1.5 * size[1]:  # a crop of one person, who may fill it
            found = [((0, 0, size[1], size[0]), 0.0)]
        people = [look_at(self.annotators, pixels, box, score, name) for box, score in found]
        return [one for one in people if one is not None], said

    def describe(self) -> dict[str, Any]:
        """What made the pictures."""
        model, predictor = self.reposer.generator, self.reposer.predictor
        return {
            "detector": {"name": self.found_by.name, "sha256": self.found_by.sha256},
            **self.annotators.describe(),
            "generator": model.config.generator,
            "generator_weights": model.weights_hash if model.learned else "",
            "predictor_weights": predictor.weights_hash,
            "provenance": model.provenance(),
        }


# ---- One photo.


def repose(
    photo: str | Path | NDArray[np.uint8], pose: str | Sequence[str] = "front", **options: Any
) -> list[ReposedPerson]:
    """The people of a photo in other poses; nothing is written.

    Args:
        photo: a file, or (H, W, 3) uint8 RGB.
        pose: "front,left,back" (orientations, or "all"), a JSON file of keypoints, another photo (its largest
            person lends the pose), or several of these.
        options: fields of :class:`ReposeOptions`.

    Returns:
        A picture for each person, from left to right, and pose; with ``in_place`` the whole photo for each
        pose behind them.

    Raises:
        UserError: no such photo or pose, nobody on it, or a network that cannot be fetched.
    """
    studio = _Studio(ReposeOptions(**options))
    name = "photo" if isinstance(photo, np.ndarray) else str(photo)
    pixels = photo if isinstance(photo, np.ndarray) else read_picture(photo).pixels
    found, _ = studio.people(_within(pixels), name)
    if not found:
        raise UserError(
            f"{printable(name)}: no person was found", "give a photo that shows one from head to hips"
        )
    poses = read_poses(pose, studio)
    return list(_pictures(studio, name, _within(pixels), found, poses))


def _pictures(
    studio: _Studio,
    name: str,
    pixels: NDArray[np.uint8],
    found: Sequence[FoundPerson],
    poses: Sequence[PoseTarget],
) -> Iterator[ReposedPerson]:
    scenes = {pose.name: pixels.copy() for pose in poses} if studio.options.in_place else {}
    for number, one in enumerate(found, start=1):
        for pose in poses:
            size = (one.pixels.shape[0], one.pixels.shape[1])
            layer = studio.reposer(one.person, pose, size).within(one.known)
            picture = layer.over(_shown(one.pixels, one.known))
            said = tuple(remarks(one.person, one.known, pose))
            yield ReposedPerson(name, number, short_name(pose), picture, said)
            if scenes:  # over what stands there by now
                region = _region(scenes[pose.name], one.frame)
                region[:] = layer.over(region)
    for pose in poses if scenes else ():
        yield ReposedPerson(name, 0, short_name(pose), scenes[pose.name], ())


def _shown(picture: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """What of a frame is in the photo."""
    rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    return np.ascontiguousarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _region(scene: NDArray[np.uint8], frame: Box) -> NDArray[np.uint8]:
    """A view of what of a frame is in the photo."""
    left, top, right, bottom = frame
    height, width = scene.shape[:2]
    return scene[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]


def _within(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The photo, no larger than is worked on."""
    longest = max(pixels.shape[:2])
    if longest <= _LONGEST:
        return pixels
    height, width = (max(1, round(side * _LONGEST / longest)) for side in pixels.shape[:2])
    return resize_array(pixels, (height, width))


# ---- Poses.


def read_poses(text: str | Sequence[str], studio: _Studio | None = None) -> list[PoseTarget]:
    """What ``--pose`` names, in the order given, each once.

    Raises:
        UserError: an unknown name (the nearest is named), a file that cannot be read, a photo without people.
    """
    names = [one.strip() for part in ([text] if isinstance(text, str) else text) for one in part.split(",")]
    targets: dict[str, PoseTarget] = {}
    for name in filter(None, names):
        path = Path(name)
        if path.suffix.lower() == ".json":
            made = read_targets(name)
        elif path.suffix and path.is_file() and studio is not None:
            made = [_pose_of_photo(path, studio)]
        else:
            made = read_targets(CANONICAL + ",".join(canonical_names(name)))
        for one in made:
            if targets.setdefault(short_name(one), one).sha256 != one.sha256:
                raise UserError(f"--pose: two poses are called {short_name(one)}", "rename one of the files")
    if not targets:
        raise UserError(
            "--pose names no pose", f"use {', '.join(ORIENTATIONS)}, all, a .json file or a photo"
        )
    return list(targets.values())


def _pose_of_photo(path: Path, studio: _Studio) -> PoseTarget:
    """The pose of the largest person of another photo, in torso lengths, so that any source can take it."""
    found, _ = studio.people(_within(read_picture(path).pixels), str(path))
    if not found:
        raise UserError(f"--pose {printable(path)}: no person was found", "give a photo that shows one")
    largest = max(found, key=lambda one: one.frame[3] - one.frame[1]).person
    pose = normalize_pose(largest.keypoints)
    if np.isnan(pose).all():
        problem = f"--pose {printable(path)}: shoulders or hips of its person were not found"
        raise UserError(problem, "give a photo that shows both")
    return PoseTarget(path.name, pose, "torso")


def short_name(pose: PoseTarget) -> str:
    """As files call it: "front", the stem of a file."""
    return _safe([pose.name.removeprefix("canonical-")])[0]


# ---- A photo or a folder of them, as files.


@dataclass
class ReposeReport:
    """What was made, as it is printed."""

    out: Path
    photos: int = 0
    people: int = 0
    pictures: int = 0
    lines: tuple[str, ...] = ()  # of photos and people about which there is something to say

    def __str__(self) -> str:
        told = "\n".join(self.lines)
        counts = f"{self.photos:,} photos, {self.people:,} people, {self.pictures:,} pictures"
        return f"{told}\n{counts}: {printable(self.out)}" if told else f"{counts}: {printable(self.out)}"


def repose_files(
    source: Path, pose: str, out: Path, options: ReposeOptions, on_photo: Callable[[int, int], None]
) -> ReposeReport:
    """Every photo of ``source``, a file or a folder, with its pictures, contact sheet and record in ``out``.

    Photos without anybody, and those that cannot be read, are listed and passed over.

    Args:
        on_photo: called with (photos done, photos in all).

    Raises:
        UserError: no photos, an unknown pose, nobody on any photo, something else in ``out``, or a network
            that cannot be fetched.
    """
    problems: list[AnnotationProblem] = []
    if source.is_dir():
        root, names = source, list_images(source, problems)
    else:
        root, names = source.parent, [source.name]
    if not names:
        raise UserError(
            f"{printable(source)}: holds no photo", "give a .jpg, .png, .webp or .bmp, or a folder"
        )
    studio = _Studio(options)
    poses = read_poses(pose, studio)
    made_folder(out)
    claim_outputs(out, [SHEET, RECORD])
    report, rows, sheet, lines = ReposeReport(out), [], [], [str(problem) for problem in problems]
    for done, (name, folder) in enumerate(zip(names, _safe(names), strict=True)):
        on_photo(done, len(names))
        try:
            photo = read_picture(contained(root, name), root)
        except RefusedFileError as error:
            if not source.is_dir():
                raise
            lines.append(f"{error.file}: {error.reason}; left out")
            continue
        pixels = _within(photo.pixels)
        found, said = studio.people(pixels, name)
        lines += [f"{printable(name)}: {one}" for one in said]
        if not found:
            lines.append(f"{printable(name)}: no person was found; left out")
            continue
        report.photos, report.people = report.photos + 1, report.people + len(found)
        if len(found) > 1:
            lines.append(f"{printable(name)}: {len(found)} people, from left to right")
        pictures = list(_pictures(studio, name, pixels, found, poses))
        rows += _written(out, f"{PICTURES}/{folder}", name, photo.sha256, found, pictures)
        sheet += _sheet_rows(found, pictures)
        lines += _told(pictures)
        report.pictures += len(pictures)
    if not rows:
        raise UserError(
            f"{printable(source)}: nobody was found ({lines[0] if lines else ''})", "give photos of people"
        )
    titles = ["photo", "map", *(short_name(one) for one in poses)]
    write_output(out / SHEET, encode_marked(draw_grid(sheet, titles), "png"))
    made_by = studio.describe() | {"poses": {short_name(one): one.sha256 for one in poses}}
    record = {"synthetic": True, "made_by": made_by, "pictures": rows}
    write_output(out / RECORD, f"{json.dumps(record, indent=1)}\n".encode())
    report.lines = tuple(lines)
    return report


def _told(pictures: Sequence[ReposedPerson]) -> list[str]:
    """Each remark once a person, with the poses that it is about."""
    about: dict[tuple[str, int, str], list[str]] = {}
    for one in pictures:
        for remark in one.remarks:
            about.setdefault((one.photo, one.person, remark), []).append(one.pose)
    return [
        f"{printable(photo)}, person {person} ({', '.join(poses)}): {remark}"
        for (photo, person, remark), poses in about.items()
    ]


def _safe(names: Sequence[str]) -> list[str]:
    """As files and folders can be called, all different."""
    files = output_names([(name, "") for name in names], "png")
    return [file.removesuffix(".png").removesuffix(SEPARATOR) for file in files]


def _written(
    out: Path,
    folder: str,
    name: str,
    digest: str,
    found: Sequence[FoundPerson],
    pictures: Sequence[ReposedPerson],
) -> list[dict[str, Any]]:
    """Write the pictures of a photo; returns their rows."""
    made_folder(contained(out, folder))
    rows = []
    for one in pictures:
        file = f"{folder}/p{one.person:02d}_{one.pose}.png" if one.person else f"{folder}/{one.pose}.png"
        data = encode_marked(one.image, "png")
        write_output(contained(out, file), data)
        row: dict[str, Any] = {
            "file": file,
            "sha256": sha256_bytes(data),
            "synthetic": True,
        }
        row |= {"photo": name, "photo_sha256": digest, "person": one.person, "pose": one.pose}
        if one.person:
            person = found[one.person - 1]
            row |= {"box": list(person.box), "box_score": round(person.score, 4), "frame": list(person.frame)}
        rows.append(row | {"remarks": list(one.remarks)})
    return rows


def _sheet_rows(
    found: Sequence[FoundPerson], pictures: Sequence[ReposedPerson]
) -> list[list[NDArray[np.uint8]]]:
    """A row for each person: as found, the label map, the poses."""
    rows = []
    for number, one in enumerate(found, start=1):
        shown = [_shown(one.pixels, one.known)]
        size = (one.pixels.shape[0], one.pixels.shape[1])
        shown.append(_shown(resize_array(colorize(one.person.parsing), size, NEAREST), one.known))
        shown += [picture.image for picture in pictures if picture.person == number]
        rows.append([_in_cell(picture) for picture in shown])
    return rows


def _in_cell(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As large as fits into a cell, on white."""
    scale = min(_CELL[0] / picture.shape[0], _CELL[1] / picture.shape[1])
    size = (max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale)))
    cell = np.full((*_CELL, 3), 255, np.uint8)
    top, left = (_CELL[0] - size[0]) // 2, (_CELL[1] - size[1]) // 2
    cell[top : top + size[0], left : left + size[1]] = resize_array(picture, size)
    return cell
