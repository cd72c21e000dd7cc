"""Posing one person by hand: people with their joints and maps in, a pose of 18 joints, a picture out.

People are rendered ones, images of annotated folders, and photos, which are annotated by whatever networks
were chosen, opened when the first photo comes. All of it is in memory.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from reposer.annotation.annotators import NONE, Annotation, AnnotatorChoice, Annotators
from reposer.annotation.interfaces import AUTO
from reposer.annotation.makers import MAX_CROP_PIXELS, choose_cuts, find_people
from reposer.data.keypoints import JOINTS, Pose, scale_keypoints
from reposer.data.orientation import ORIENTATIONS
from reposer.data.parsing import PALETTE
from reposer.errors import UserError
from reposer.generation.pictures import Person, encode_marked, load_person, resize_array
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer
from reposer.generation.reposing import Box, Reposer, proportioned, resized
from reposer.generation.stitching import BACKGROUNDS, check_background
from reposer.generation.targets import PoseTarget, canonical_pose, inside, place
from reposer.images import decode_bytes, encode_png
from reposer.rendered.renderer import plan_shot, render_shots
from reposer.runtime import give_freed_memory_back, setup
from reposer.structures import NUM_JOINTS
from reposer.workflows.photo_people import look_at

MOST_PEOPLE = 48  # that are remembered; the oldest photo goes first
MOST_OF_A_PHOTO = 8
_BEYOND = 236  # gray of what lies beyond a photo
MOST_ROWS = 256  # of a picture over its photo: made within a second on two cores
PHOTO, RENDERED, ANNOTATED = "photo", "rendered", "annotated"
_SAMPLES = ((14, 4), (5, 2), (11, 0), (21, 1), (27, 3), (33, 0))  # person and image of the rendered people
_FURTHEST = 4.0  # times the frame: how far outside it a joint may be put

Joints = Sequence[Sequence[float] | None]


@dataclass(frozen=True, slots=True)
class Subject:
    """Somebody who can be posed."""

    number: int
    kind: str
    name: str
    person: Person
    notes: tuple[str, ...] = ()  # what to know of the annotations
    framed: Person | None = None  # of a photo: the same, larger than the generator's people
    outside: NDArray[np.bool_] | None = None  # (H, W) of it: beyond the photo

    def described(self) -> dict[str, Any]:
        """As JSON: the person's joints, and the canonical poses where they stand."""
        poses = {name: self._canonical(name) for name in ORIENTATIONS}
        return {
            "number": self.number,
            "kind": self.kind,
            "name": self.name,
            "notes": list(self.notes),
            "joints": to_json(self.person.keypoints),
            "poses": {name: to_json(pose) for name, pose in poses.items()},
        }

    def _canonical(self, name: str) -> Pose:
        """Where it stands: as tall as the person, or, whose feet a photo may lack, by what it shows."""
        if self.framed is None:
            return place(canonical_pose(name), self.person)
        return proportioned(PoseTarget(name, canonical_pose(name), "torso"), self.person).keypoints


@dataclass
class Studio:
    """People, and the generator that poses them.

    Args:
        model: with a predictor where it reads maps of the target.
        annotators: of photos; None: those of ``choice``, opened for the first photo.
        detector: finds people in photos; None: a photo shows one person who fills it.
        choice: opens the two above; None: as they are.
    """

    model: PoseTransfer
    annotators: Annotators | None = None
    detector: nn.Module | None = None
    choice: AnnotatorChoice | None = None
    subjects: dict[int, Subject] = field(default_factory=dict)
    _next: int = 1
    _turn: threading.Lock = field(default_factory=threading.Lock)  # one at a time: the processor is one

    def described(self) -> dict[str, Any]:
        """What the page needs to know, as JSON."""
        height, width = self.model.size
        return {
            "people": [one.described() for one in list(self.subjects.values())],
            "photos": self.annotators is not None or self.choice is not None,
            "joints": list(JOINTS),
            "canonical": list(ORIENTATIONS),
            "backgrounds": [name for name in BACKGROUNDS if name != "donor"],
            "size": [width, height],
            "generator": self.model.config.generator,
            "provenance": self.model.provenance("source"),
        }

    def subject(self, number: int) -> Subject:
        """By number.

        Raises:
            UserError: nobody of that number is here (any more).
        """
        if number not in self.subjects:
            raise UserError(
                "this person is not here any more", "load the page again, and add the photo again"
            )
        return self.subjects[number]

    def add_samples(self) -> None:
        """Rendered people, whose maps and joints are exact."""
        people = render_shots([plan_shot(0, pid, index) for pid, index in _SAMPLES], self.model.size)
        for row in range(len(people)):
            maps = (people.parsing[row], people.masks[row], people.keypoints[row])
            person = load_person(people.images[row], *maps, size=self.model.size, name=f"rendered {row + 1}")
            self._add(Subject(0, RENDERED, person.name, person))

    def add_files(
        self, image: Path, parsing: Path | None, keypoints: Sequence[float | None] | None
    ) -> Subject:
        """An annotated image; ``keypoints``: x, y of 18 joints in its pixels.

        Raises:
            UserError: it has no label map, or a file cannot be read.
        """
        pose = None
        if keypoints is not None:
            values = [math.nan if value is None else value for value in keypoints]
            pose = np.array(values, np.float32).reshape(NUM_JOINTS, 2)
        person = load_person(image, parsing, None, pose, size=self.model.size)
        return self._add(Subject(0, ANNOTATED, person.name, person))

    def add_photo(self, data: bytes) -> list[Subject]:
        """The people of an image file, the largest first.

        Raises:
            UserError: the file is refused, photos cannot be annotated, or one gets no label map.
        """
        pixels = decode_bytes(data, "the photo")
        with self._turn:
            self.open_annotators()
            boxes, said = self._boxes(pixels)
            found = [self._annotated(pixels, box, number) for number, box in enumerate(boxes, 1)]
        return [self._add(replace(one, notes=(*said, *one.notes))) for one in found]

    def open_annotators(self) -> None:
        """Load those of ``choice``, once; they take half of the memory, so not before a photo comes.

        Raises:
            UserError: they are not at hand; a later call tries again.
        """
        if self.annotators is None:
            if self.choice is None:
                raise UserError("photos cannot be annotated here", "name a parser and keypoints")
            try:
                annotators = self.choice.open()
                self.detector = None if self.choice.detect == NONE else self.choice.open_detector()[0]
            except UserError as error:
                raise UserError(f"photos cannot be annotated yet: {error}") from error
            self.annotators = annotators

    def _boxes(self, pixels: NDArray[np.uint8]) -> tuple[list[Box | None], tuple[str, ...]]:
        """Where the people of a photo are, None for all of it; and what to say of them."""
        if self.detector is None:
            return [None], ()
        cuts, dropped = choose_cuts(*find_people(self.detector, pixels), pixels.shape[:2])
        if not cuts:
            why = f" ({dropped[0].message})" if dropped else ""
            return [None], (f"nobody was found in the photo{why}; all of it counts as one person",)
        boxes = sorted((cut.box for cut in cuts), key=lambda box: -(box[2] - box[0]) * (box[3] - box[1]))
        more = len(boxes) - MOST_OF_A_PHOTO
        said = (f"{more} smaller people of the photo are left out",) if more > 0 else ()
        return list(boxes[:MOST_OF_A_PHOTO]), said

    def _annotated(self, pixels: NDArray[np.uint8], box: Box | None, number: int) -> Subject:
        """In a frame of their own proportions where they are found in it, else the box as it is."""
        assert self.annotators is not None
        name = f"photo, person {number}"
        if box is not None and (found := look_at(self.annotators, pixels, box, 1.0, name)) is not None:
            rows = min(MOST_ROWS, len(found.person.image))
            framed = resized(found.person, (rows, rows // 2))
            outside = resize_array(found.known.astype(np.uint8), (rows, rows // 2)) == 0
            framed.image[outside] = _BEYOND
            return Subject(0, PHOTO, name, resized(framed, self.model.size), (), framed, outside)
        left, top, right, low = box or (0, 0, pixels.shape[1], pixels.shape[0])
        crop = _at_most(pixels[top:low, left:right])
        image = torch.from_numpy(crop).permute(2, 0, 1)[None].contiguous()
        (annotation,) = self.annotators.annotate(image, [f"photo{number}.png"])
        if annotation.parsing is None:
            raise UserError("the photo gets no label map", "start with --parser NAME, which makes one")
        maps = (annotation.parsing, annotation.mask, annotation.keypoints)
        person = load_person(crop, *maps, size=self.model.size, name=name)
        return Subject(0, PHOTO, name, person, _notes(annotation))

    def _add(self, somebody: Subject) -> Subject:
        """Under the next number."""
        made = replace(somebody, number=self._next)
        self.subjects[made.number] = made
        self._next += 1
        others = [number for number, one in self.subjects.items() if one.kind != RENDERED]
        for number in others[:-MOST_PEOPLE]:
            del self.subjects[number]
        return made

    def image(self, number: int) -> bytes:
        """The person as they are posed, PNG."""
        subject = self.subject(number)
        return encode_png((subject.framed or subject.person).image, level=1)

    def map(self, number: int) -> bytes:
        """Their label map, a palette PNG."""
        return encode_png(self.subject(number).person.parsing, PALETTE)

    def picture(self, number: int, joints: Joints, own: Joints | None, background: str) -> bytes:
        """The person in a pose, a PNG marked as generated.

        Args:
            joints: 18 of x, y in pixels of the person's image, None for a missing one.
            own: the same of the person, where they were corrected.
            background: "generated" or "source".

        Raises:
            UserError: something else, or no joint lies in the image.
        """
        check_background(background)
        if background == "donor":
            raise UserError("a pose has no background of its own", "use source or generated")
        subject = self.subject(number)
        person = subject.person
        if own is not None:
            person = replace(person, keypoints=inside(self._pose(own), self.model.size))
        if np.isnan(person.keypoints).all() and "source_keypoints" in self.model.needs(background):
            raise UserError("the person has no joints", "put them onto the person first")
        target = PoseTarget("the pose", self._pose(joints), self.model.size)
        with self._turn:
            if subject.framed is None or background != "source" or self.model.predictor is None:
                picture = self.model.transfer(person, target.for_source(person), background)
            else:
                picture = self._over_photo(subject.framed, person.keypoints, target)
                picture[subject.outside] = _BEYOND
            return encode_marked(picture, "png")

    def _over_photo(self, framed: Person, own: Pose, target: PoseTarget) -> NDArray[np.uint8]:
        """The person of a photo over that photo, as `reposer repose` shows them."""
        assert self.model.predictor is not None
        size = (framed.image.shape[0], framed.image.shape[1])
        person = replace(framed, keypoints=scale_keypoints(own, self.model.size, size))
        there = replace(target, keypoints=scale_keypoints(target.keypoints, self.model.size, size), size=size)
        layer = Reposer(self.model.with_predictor(None), self.model.predictor)(person, there, size)
        return layer.over(framed.image)

    def _pose(self, joints: Joints) -> Pose:
        height, width = self.model.size
        pose = np.full((NUM_JOINTS, 2), np.nan, np.float32)
        if len(joints) != NUM_JOINTS:
            raise UserError(f"{len(joints)} joints: {NUM_JOINTS} are wanted", "give null for a missing one")
        for number, joint in enumerate(joints):
            if joint is None:
                continue
            fits = len(joint) == 2 and all(math.isfinite(value) for value in joint)
            if not fits or max(abs(joint[0]) / width, abs(joint[1]) / height) > _FURTHEST:
                raise UserError(f"{JOINTS[number]}: is no place in the image", "give x and y, or null")
            pose[number] = joint[0], joint[1]
        return pose


def to_json(pose: Pose) -> list[list[float] | None]:
    """(18, 2) -> x, y of each joint, None for a missing one."""
    return [None if np.isnan(x) else [float(x), float(y)] for x, y in pose]


def _notes(found: Annotation) -> tuple[str, ...]:
    notes = [f"{found.people} people are seen; the one in the middle counts"] if found.people > 1 else []
    if found.keypoints is None:
        notes.append("no joints were looked for: put them onto the person")
    elif (missing := int(np.isnan(found.keypoints[:, 0]).sum())) > NUM_JOINTS // 2:
        notes.append(f"{missing} of {NUM_JOINTS} joints were not found: put them onto the person")
    if found.mask_source == "everything":
        notes.append("no person was found; the whole photo counts")
    return tuple(notes)


def _at_most(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Made smaller where annotators would take too long."""
    height, width = pixels.shape[:2]
    shrink = math.sqrt(MAX_CROP_PIXELS / 4 / (height * width))
    if shrink >= 1:
        return np.ascontiguousarray(pixels)
    return resize_array(pixels, (max(4, round(height * shrink)), max(4, round(width * shrink))))


def open_studio(
    generator: str = "transport",
    predictor: str = "shipped-predictor",
    choice: AnnotatorChoice | None = None,
    *,
    at_once: bool = False,
    threads: int | None = None,
    device: str = "auto",
) -> Studio:
    """Ready to pose.

    Args:
        generator: as ``PoseTransfer.from_pretrained`` knows it.
        predictor: as ``MapPredictor.from_pretrained`` knows it; "none": the generator reads no target maps.
        choice: of annotators for photos, opened for the first photo; None: the usual ones.
        at_once: open them now.

    Raises:
        UserError: a network that cannot be opened, or two of different sizes.
    """
    runtime = setup(device, threads=threads)
    helper = None if predictor == NONE else MapPredictor.from_pretrained(predictor, runtime)
    model = PoseTransfer.from_pretrained(generator, runtime)
    studio = Studio(model.with_predictor(helper), choice=choice or AnnotatorChoice(detect=AUTO))
    if at_once:
        studio.open_annotators()
    studio.add_samples()
    give_freed_memory_back()
    return studio
