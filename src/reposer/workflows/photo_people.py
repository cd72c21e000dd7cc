"""One person of a photo, framed and annotated: what ``reposer repose`` and the page begin with.

And as they are shown on a contact sheet, and the record of what was made of a photo.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reposer import __version__
from reposer.annotation.annotators import Annotation, Annotators
from reposer.config import canonical_json, read_json
from reposer.data.layouts.identity_folders import list_images
from reposer.data.parsing import colorize
from reposer.data.records import AnnotationProblem
from reposer.errors import UserError
from reposer.generation.pictures import MARKED_BYTES, NEAREST, Person, is_marked, resize_array
from reposer.generation.reposing import Box, cut, frame_of, working_size
from reposer.images import read_picture
from reposer.storage.files import disk_faults, sha256_bytes
from reposer.storage.outputs import OUTPUTS, claim_outputs, remove_output, remove_outputs, write_output
from reposer.storage.paths import contained, open_regular, printable, read_regular, unlinked

Size = tuple[int, int]  # (H, W)


@dataclass(frozen=True)
class FoundPerson:
    """One person of a photo."""

    box: Box  # as found
    score: float
    frame: Box
    pixels: NDArray[np.uint8]  # (h, w, 3) of the frame, the edge repeated outside the photo
    known: NDArray[np.bool_]  # (h, w) what of it is in the photo
    person: Person  # at the working size


def look_at(
    annotators: Annotators, pixels: NDArray[np.uint8], box: Box, score: float, name: str
) -> FoundPerson | None:
    """The person of a box, in a frame of 2:1 around them; None where no map, mask or joint is found.

    Args:
        annotators: with a parser, a mask and keypoints.
        pixels: (H, W, 3) uint8 RGB of the photo.
        box: of the person, as found with ``score``.
        name: of the photo, for messages.
    """
    frame = frame_of(box)
    region, known = cut(pixels, frame)
    size = working_size(frame)
    image = resize_array(region, size)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
    (annotation,) = annotators.annotate(batch, [name])
    inside = resize_array(known.astype(np.uint8), size).astype(np.bool_)
    person = _person(name, image, annotation, inside, (region.shape[0], region.shape[1]))
    if person is None:
        return None
    return FoundPerson(box, score, frame, region, known, replace(person, corner=frame[:2]))


def _person(
    name: str,
    image: NDArray[np.uint8],
    annotation: Annotation,
    inside: NDArray[np.bool_],
    original: tuple[int, int],
) -> Person | None:
    """Without what lies outside the photo; None where nobody is."""
    if annotation.parsing is None or annotation.mask is None or annotation.keypoints is None:
        return None
    joints = annotation.keypoints.copy()
    known = np.flatnonzero(~np.isnan(joints[:, 0]))
    x, y = joints[known].round().astype(int).T
    x, y = x.clip(0, inside.shape[1] - 1), y.clip(0, len(inside) - 1)
    mask = _own(annotation.mask & inside, x, y)
    joints[known[~inside[y, x]]] = np.nan
    if annotation.mask_source == "everything" or not mask.any() or np.isnan(joints).all():
        return None
    parsing = np.where(mask, annotation.parsing, 0).astype(np.uint8)
    return Person(name, image, parsing, mask, joints, original, "")


def _own(mask: NDArray[np.bool_], x: NDArray[np.integer], y: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The piece of a mask that most joints lie on: a mask may show the neighbors too."""
    from scipy import ndimage  # here, because the page waits without it

    pieces, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(pieces.ravel(), minlength=count + 1) / mask.size
    votes = np.bincount(pieces[y, x], minlength=count + 1) + sizes  # of equal ones the largest
    votes[0] = -1
    return np.asarray(pieces == votes.argmax())


def shown(picture: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """What of a frame is in the photo."""
    rows, columns = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    return np.ascontiguousarray(picture[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def region_of(scene: NDArray[np.uint8], frame: Box) -> NDArray[np.uint8]:
    """A view of what of a frame is in the photo."""
    left, top, right, bottom = frame
    height, width = scene.shape[:2]
    return scene[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]


def list_photos(source: Path, out: Path) -> tuple[Path, list[str], list[str]]:
    """The photos of ``source``, a file or a folder: the folder that holds them, their names, what to say.

    Of a folder generated pictures are left out, or those of one call would be the photos of the next; those
    in ``out`` without a word. Who wants one re-posed names the file.

    Raises:
        UserError: there is none.
    """
    if not source.is_dir():
        return source.parent, [source.name], []
    problems: list[AnnotationProblem] = []
    names = list_images(source, problems)
    made = {name for name in names if _is_generated(source, name)}
    others = [name for name in names if name in made and not _lies_in(out, source, name)]
    said = [str(problem) for problem in problems]
    if others:
        more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
        said.append(f"{printable(others[0])}{more}: generated already; left out")
    if made and len(made) == len(names):
        advice = "give photos, or one of these pictures by its own name"
        raise UserError(f"{printable(source)}: holds no photo but generated pictures", advice)
    if not names:
        advice = "give a .jpg, .png, .webp or .bmp, or a folder"
        raise UserError(f"{printable(source)}: holds no photo", advice)
    return source, [name for name in names if name not in made], said


def _is_generated(root: Path, name: str) -> bool:
    """Whether a file bears the mark; what cannot be read does not, and is told when its turn comes."""
    try:
        with open_regular(contained(root, name), root) as file:
            return is_marked(file.read(MARKED_BYTES))
    except (UserError, OSError):
        return False


def _lies_in(folder: Path, root: Path, name: str) -> bool:
    return contained(root, name).resolve().is_relative_to(folder.resolve())


# ---- A contact sheet: a row of cells for each person.

_CELL = (256, 192)  # pixels of a picture on it
SheetRow = list[NDArray[np.uint8]]


def sheet_row(one: FoundPerson, pictures: Sequence[NDArray[np.uint8] | None]) -> SheetRow:
    """The row of a person: as found, the label map, the pictures; each in a cell, which is empty for None."""
    size = (one.pixels.shape[0], one.pixels.shape[1])
    labels = resize_array(colorize(one.person.parsing), size, NEAREST)
    return [
        _in_cell(picture) for picture in (shown(one.pixels, one.known), shown(labels, one.known), *pictures)
    ]


def joined(rows: Sequence[SheetRow]) -> NDArray[np.uint8]:
    """The rows as one picture, cell by cell."""
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def taken_apart(picture: NDArray[np.uint8], rows: int, columns: int) -> list[SheetRow]:
    """The first rows of what ``joined`` made.

    Raises:
        ValueError: it has fewer rows, or another number of columns.
    """
    height, width = _CELL
    if picture.shape[0] < rows * height or picture.shape[1] != columns * width:
        raise ValueError("is of another contact sheet")
    lines = (picture[row * height : (row + 1) * height] for row in range(rows))
    return [[line[:, column * width : (column + 1) * width] for column in range(columns)] for line in lines]


def _in_cell(picture: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """As large as fits into a cell, on white."""
    if picture is None:
        return np.full((*_CELL, 3), 255, np.uint8)
    scale = min(_CELL[0] / picture.shape[0], _CELL[1] / picture.shape[1])
    size = (max(1, round(picture.shape[0] * scale)), max(1, round(picture.shape[1] * scale)))
    cell = np.full((*_CELL, 3), 255, np.uint8)
    top, left = (_CELL[0] - size[0]) // 2, (_CELL[1] - size[1]) // 2
    cell[top : top + size[0], left : left + size[1]] = resize_array(picture, size)
    return cell


# ---- What was made of a photo, as files.

PICTURES, SHEET, RECORD = "pictures", "contact_sheet.png", "repose.json"
STRIP = ".sheet.png"  # as no pose is called
_LARGEST = 2**30  # bytes of a picture that was made before


@dataclass(frozen=True)
class PhotoPlace:
    """Where the pictures of a photo go, and what they are made of."""

    out: Path
    folder: str  # relative to ``out``
    photo: str
    sha256: str  # of the photo
    root: Path  # the folder of the photos
    made_by: Mapping[str, Any]  # "poses": in the order that was asked for
    in_place: bool

    @property
    def key(self) -> str:
        """Equal where the same pictures would be made."""
        order = list(self.made_by["poses"])  # of the columns of the sheet
        parts = [__version__, self.photo, self.sha256, self.made_by, order, self.in_place]
        return sha256_bytes(canonical_json(parts))


@dataclass(frozen=True)
class Made:
    """What was made of a photo."""

    people: int
    said: list[str]  # about what was left out
    rows: list[dict[str, Any]]  # of repose.json
    sheet: list[list[NDArray[np.uint8]]]  # rows of the contact sheet, as many as it has room for


def made_before(place: PhotoPlace, room: int, poses: int) -> Made | None:
    """What an earlier call made of the photo; None where it, or a part of it, is not there, or is another."""
    folder = contained(place.out, place.folder)
    if not (folder / RECORD).is_file():
        return None
    claim_outputs(folder, [RECORD])
    try:
        record = read_json(folder / RECORD, root=place.out)
        rows, people, said = record["pictures"], int(record["people"]), [str(one) for one in record["said"]]
        if record["key"] != place.key or not rows or people < 1:
            return None
        root = name_of(place.root)
        for row in rows:
            data = read_regular(contained(place.out, row["file"]), max_bytes=_LARGEST, root=place.out)
            if sha256_bytes(data) != row["sha256"]:
                return None
        told_remarks(rows)  # here, where values of another kind are no fault
        shown_people = min(people, room)
        strip = read_picture(folder / STRIP, folder).pixels if shown_people else None
        sheet = [] if strip is None else taken_apart(strip, shown_people, 2 + poses)
        if record.get("root") != root:  # the photos were moved, or another folder has the same one
            write_output(folder / RECORD, as_json(record | {"root": root}))
        return Made(people, said, rows, sheet)
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return None  # damaged: made again


def forget(out: Path, folder: str) -> None:
    """Remove what an earlier call made of a photo, and with it the lists of all photos, which name it.

    What was changed since, and what is somebody else's, stays. The photo's record goes last: a call that is
    stopped here is gone on with.
    """
    place = unlinked(out, folder)
    if (place / OUTPUTS).is_file():
        with disk_faults(place):
            remove_output(out / SHEET)
            remove_output(out / RECORD)
            remove_outputs(place, RECORD)


def forget_gone(out: Path, root: Path, folders: Mapping[str, str]) -> list[str]:
    """Remove what was made of photos of ``root`` which are not there any more; returns what to say.

    Args:
        folders: photo -> where its pictures go now; those of the same photo elsewhere are removed too.
    """
    said, now = [], set(folders.values())
    for name in sorted(os.listdir(out / PICTURES)) if (out / PICTURES).is_dir() else ():
        folder = f"{PICTURES}/{name}"
        if folder in now:
            continue
        try:
            place = unlinked(out, folder)
            claim_outputs(place, [RECORD])
            record = read_json(place / RECORD, root=out)
            photo = record["pictures"][0]["photo"]
            there = os.path.lexists(contained(root, photo))
            if record["root"] != name_of(root) or (there and photo not in folders):
                continue
        except (UserError, OSError, ValueError, LookupError, TypeError):
            continue  # somebody else's, damaged, or of a version that did not say which folder
        forget(out, folder)
        if not there:
            said.append(f"{printable(photo)}: is gone; so are its pictures")
    return said


def name_of(root: Path) -> str:
    """What a record calls a folder of photos: nobody reads a path in it."""
    return sha256_bytes(os.fsencode(os.path.realpath(root)))


def as_json(record: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(record, indent=1)}\n".encode()


def told_remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Each remark once a person, with the poses that it is about."""
    about: dict[tuple[str, int, str], list[str]] = {}
    for row in rows:
        for remark in row["remarks"]:
            about.setdefault((row["photo"], row["person"], remark), []).append(row["pose"])
    return [
        f"{printable(photo)}, person {person} ({printable(', '.join(poses))}): {printable(remark)}"
        for (photo, person, remark), poses in about.items()
    ]
