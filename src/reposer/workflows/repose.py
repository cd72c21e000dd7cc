"""``reposer repose``: photos in, people in other poses out; everything between comes by itself.

A photo's people are found, framed, annotated, and re-posed one by one, from left to right. What is written:

    OUT/pictures/PHOTO/p01_front.png   the first person, in the frame around them
    OUT/pictures/PHOTO/front.png       the whole photo, everybody in that pose (in place)
    OUT/pictures/PHOTO/repose.json     what of repose.json is of that photo, written when it is done
    OUT/pictures/PHOTO/.sheet.png      its rows of the contact sheet
    OUT/contact_sheet.png              a row for each person, SHEET_PEOPLE at most: as found, label map, poses
    OUT/repose.json                    a row for each picture: photo, person, pose, hashes, remarks

A run that was stopped is gone on with by the same command: photos that are done are not made again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reposer.annotation.annotators import AnnotatorChoice
from reposer.annotation.interfaces import AUTO
from reposer.annotation.makers import choose_cuts, find_people
from reposer.data.keypoints import normalize_pose, scale_keypoints
from reposer.data.orientation import ORIENTATIONS
from reposer.errors import UserError
from reposer.generation.pictures import SEPARATOR, checked_array, encode_marked, output_names, resize_array
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.generation.reposing import Reposer, proportioned, remarks
from reposer.generation.targets import CANONICAL, PoseTarget, canonical_names, read_targets
from reposer.images import read_picture
from reposer.sections import draw_grid
from reposer.storage.files import sha256_bytes
from reposer.storage.outputs import claim_outputs, write_output
from reposer.storage.paths import RefusedFileError, contained, made_folder, printable
from reposer.workflows.photo_people import (
    PICTURES,
    RECORD,
    SHEET,
    STRIP,
    FoundPerson,
    Made,
    PhotoPlace,
    Size,
    as_json,
    forget,
    forget_gone,
    joined,
    list_photos,
    look_at,
    made_before,
    name_of,
    region_of,
    sheet_row,
    shown,
    told_remarks,
)

PREDICTOR = "shipped-predictor"
TRANSPORT = "transport"
SHEET_PEOPLE = 50  # on the contact sheet, which is held in memory
_OF_A_PERSON = re.compile("p(0[1-9]|[1-9][0-9]+)_(.+)")  # how a person's picture is called: number, pose
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
        options.annotators.require_networks()
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
        A picture for each person, from left to right, and pose that fits them; with ``in_place`` the whole
        photo for each pose behind them.

    Raises:
        UserError: no such photo or pose, an array of another kind, nobody on it, a pose that fits nobody, or
            a network that cannot be fetched.
    """
    if isinstance(photo, str | Path):
        name, pixels = str(photo), read_picture(photo).pixels
    else:  # a copy: torch takes no array that is read-only or reversed
        name, pixels = "photo", np.array(checked_array(photo, (3,), "photo"), order="C")
    studio = _Studio(ReposeOptions(**options))
    found, _ = studio.people(_within(pixels), name)
    if not found:
        raise UserError(
            f"{printable(name)}: no person was found", "give a photo that shows one from head to hips"
        )
    poses, said = read_poses(pose, studio), list[str]()
    made = list(_pictures(studio, (name, pixels.shape[:2]), _within(pixels), found, poses, said))
    if not made:
        raise UserError(f"{printable(name)}: {said[0]}", "choose another pose")
    return made


def _pictures(
    studio: _Studio,
    photo: tuple[str, Size],
    pixels: NDArray[np.uint8],
    found: Sequence[FoundPerson],
    poses: Sequence[PoseTarget],
    said: list[str],
) -> Iterator[ReposedPerson]:
    """The pictures of a photo's people.

    Args:
        photo: its name, and (H, W) before it was made smaller.
        said: gets a line for each person whom a pose does not fit; there is no picture of them.
    """
    name, own = photo
    scenes: dict[str, NDArray[np.uint8]] = {}
    for number, one in enumerate(found, start=1):
        for pose in poses:
            size = (one.pixels.shape[0], one.pixels.shape[1])
            wanted = _resized(pose, own, (pixels.shape[0], pixels.shape[1]))
            try:
                proportioned(wanted, one.person)
            except UserError as error:
                said.append(f"person {number}: {error}; left out")
                continue
            layer = studio.reposer(one.person, wanted, size).within(one.known)
            picture = layer.over(shown(one.pixels, one.known))
            told = tuple(remarks(one.person, one.known, wanted))
            yield ReposedPerson(name, number, short_name(pose), picture, told)
            if studio.options.in_place:  # over what stands there by now
                if pose.name not in scenes:
                    scenes[pose.name] = pixels.copy()
                region = region_of(scenes[pose.name], one.frame)
                region[:] = layer.over(region)
    for pose in poses:
        if pose.name in scenes:
            yield ReposedPerson(name, 0, short_name(pose), scenes[pose.name], ())


def _resized(pose: PoseTarget, own: Size, size: Size) -> PoseTarget:
    """A pose in pixels of the photo of (H, W) as one in pixels of the photo at another size."""
    if pose.size != "source" or own == size:
        return pose
    return replace(pose, keypoints=scale_keypoints(pose.keypoints, own, size))


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


def _refuse_clashes(poses: Sequence[PoseTarget], in_place: bool) -> None:
    """Refuse poses of which two pictures of a photo would be one file, also where a disk ignores case.

    Raises:
        UserError: names the pose that needs another name.
    """
    names: dict[str, str] = {}
    for name in map(short_name, poses):
        other = names.setdefault(name.lower(), name)
        if other != name:
            problem = f"--pose {name}: the pictures of {other} would have its names on some disks"
            raise UserError(problem, "rename the file")
    for name in names.values() if in_place else ():
        person = _OF_A_PERSON.fullmatch(name.lower())
        if person and person[2] in names:
            whole, one = f"{name} in the whole photo", f"{names[person[2]]} of person {int(person[1])}"
            raise UserError(f"--pose {name}: {whole} and {one} would be one file", "rename the file")


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

    Photos without anybody, and those that cannot be read, are listed and passed over, generated pictures in
    the folder are left out. What the same call made before it was stopped stays as it is.

    Args:
        on_photo: called with (photos done, photos in all).

    Raises:
        UserError: no photos, an unknown pose, nobody on any photo, something else in ``out``, annotators that
            see nobody, or a network that cannot be fetched.
    """
    root, names, lines = list_photos(source, out)
    studio = _Studio(options)
    poses = read_poses(pose, studio)
    _refuse_clashes(poses, options.in_place)
    made_folder(out)
    claim_outputs(out, [SHEET, RECORD])
    made_by = studio.describe() | {"poses": {short_name(one): one.sha256 for one in poses}}
    report, rows = ReposeReport(out), list[dict[str, Any]]()
    sheet: list[list[NDArray[np.uint8]]] = []
    before = 0
    folders = {name: f"{PICTURES}/{safe}" for name, safe in zip(names, _safe(names), strict=True)}
    lines += forget_gone(out, root, folders)
    for done, (name, folder) in enumerate(folders.items()):
        on_photo(done, len(names))
        try:
            photo = read_picture(contained(root, name), root)
        except RefusedFileError as error:
            if not source.is_dir():
                raise
            if error.rule != "unreadable":  # another time, or by somebody else, it may be read
                forget(out, folder)
            lines.append(f"{error.file}: {error.reason}; left out")
            continue
        place = PhotoPlace(out, folder, name, photo.sha256, root, made_by, options.in_place)
        room = SHEET_PEOPLE - len(sheet)
        made = made_before(place, room, len(poses))
        before += made is not None
        if made is None:
            forget(out, folder)
            made = _make(studio, place, photo.pixels, poses, room)
        lines += [f"{printable(name)}: {one}" for one in made.said]
        if not made.people:
            lines.append(f"{printable(name)}: no person was found; left out")
            continue
        report.photos, report.people = report.photos + 1, report.people + made.people
        if made.people > 1:
            lines.append(f"{printable(name)}: {made.people} people, from left to right")
        rows += made.rows
        sheet += made.sheet
        lines += told_remarks(made.rows)
        report.pictures += len(made.rows)
    on_photo(len(names), len(names))
    if not rows:
        raise UserError(
            f"{printable(source)}: {'no pose fits' if report.people else 'nobody was found'} "
            f"({lines[-1] if report.people else lines[0] if lines else ''})",
            "give other poses" if report.people else "give photos of people",
        )
    titles = ["photo", "map", *(short_name(one) for one in poses)]
    write_output(out / SHEET, encode_marked(draw_grid(sheet, titles), "png"))
    record = {"synthetic": True, "made_by": made_by, "pictures": rows}
    write_output(out / RECORD, as_json(record))
    if before:
        lines.append(f"{before:,} photos had been made before")
    if len(sheet) < report.people:
        lines.append(f"{SHEET} shows the first {len(sheet)} of {report.people:,} people")
    report.lines = tuple(lines)
    return report


def _make(
    studio: _Studio, place: PhotoPlace, pixels: NDArray[np.uint8], poses: Sequence[PoseTarget], room: int
) -> Made:
    """Make and write the pictures of a photo; its record last."""
    worked = _within(pixels)
    found, said = studio.people(worked, place.photo)
    if not found:
        return Made(0, said, [], [])
    photo = (place.photo, (pixels.shape[0], pixels.shape[1]))
    pictures = list(_pictures(studio, photo, worked, found, poses, said))
    if not pictures:
        return Made(len(found), said, [], [])
    rows = _written(place.out, place.folder, place.photo, place.sha256, found, pictures)
    folder, sheet = contained(place.out, place.folder), []
    for number, one in enumerate(found[:room], start=1):
        by_pose = {picture.pose: picture.image for picture in pictures if picture.person == number}
        sheet.append(sheet_row(one, [by_pose.get(short_name(pose)) for pose in poses]))
    if sheet:
        write_output(folder / STRIP, encode_marked(joined(sheet), "png"))
    record = {"synthetic": True, "made_by": place.made_by, "people": len(found), "said": said}
    record |= {"root": name_of(place.root), "pictures": rows, "key": place.key}
    write_output(folder / RECORD, as_json(record))
    return Made(len(found), said, rows, sheet)


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
