"""What annotates an image: keypoints first (a parser without sides needs them), then map and mask.

The mask comes first where the map is made from it (interfaces.MaskedParser), else after it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from reposer.annotation.interfaces import (
    AUTO,
    DETECTORS,
    AnnotatorInfo,
    KeypointDetector,
    MaskedParser,
    Parser,
    PersonMasker,
    load_detector,
)
from reposer.annotation.keypoints import (
    KEYPOINT_DETECTORS,
    KeypointFiles,
    joint_scores,
    open_keypoint_detector,
)
from reposer.annotation.mediapipe import open_finder
from reposer.annotation.parser import PARSERS, SegmentationParser, open_parser
from reposer.annotation.person_mask import MASKERS, FolderMasks, ParsingMasker, open_masker
from reposer.annotation.segmentation_model import SIDES, Sides
from reposer.data.keypoint_imports import FORMATS
from reposer.data.keypoints import Pose
from reposer.data.layouts.folder_scan import without_suffix
from reposer.data.records import AnnotationError, AnnotationProblem
from reposer.errors import UserError, find, known
from reposer.images import MAX_FILE_BYTES
from reposer.storage.files import sha256_bytes
from reposer.storage.paths import RefusedFileError, printable, read_regular
from reposer.structures import NUM_JOINTS
from reposer.weights.files import cache_folders

NONE = "none"
_MISSING = "missing"  # the rule of a file that is not there


@dataclass(frozen=True)
class AnnotatorChoice:
    """Which annotators, as the user says it."""

    parser: str = AUTO  # a key of PARSERS, NAME=FILE, my.onnx, a folder of transformers, or "none"
    mask: str = AUTO  # a key of MASKERS (or NAME=FILE), a folder of masks, or "none"
    keypoints: str = AUTO  # a key of KEYPOINT_DETECTORS (or NAME=FILE), KIND:PATH, or "none"
    detect: str = NONE  # who finds the people in photos: "auto" or one of DETECTORS (or NAME=FILE)
    accept_license: bool = False  # the user accepts the terms of the weights
    may_download: bool | None = None  # None: only what is free for all (Apache-2.0)
    device: str = "cpu"
    sides: Sides | None = None  # who tells left from right; None: as the parser's description says

    def continuing(self, settings: Mapping[str, Any]) -> AnnotatorChoice:
        """The same, with what is left to us chosen as a job of these settings has it: so that it goes on."""
        known_names = {
            "parser": {NONE, *PARSERS} - {AUTO},
            "mask": {NONE, *MASKERS} - {AUTO},
            "keypoints": {NONE, *KEYPOINT_DETECTORS} - {AUTO},
        }
        chosen: dict[str, Any] = {}
        for option, names in known_names.items():
            made_by = settings.get(option)
            name = made_by.get("name") if isinstance(made_by, Mapping) else None
            if getattr(self, option) == AUTO and name in names:
                chosen[option] = str(name)
        return replace(self, **chosen)

    def open(self) -> Annotators:
        """Load them.

        Raises:
            LicenseError, MissingWeightsError, RefusedFileError, UserError: as the opening functions of
                parser.py, person_mask.py and keypoints.py; or nothing is chosen, or no such device is here.
        """
        self._require_device()
        for option in ("parser", "mask", "keypoints", "detect"):
            text = getattr(self, option)
            if not text or any(ord(letter) < 32 for letter in text):
                raise UserError(f"--{option} {printable(text)[:60]!r}: names nothing", f"or use {NONE}")
        chosen = Annotators(self._parser(), self._masks(), self._keypoints())
        if chosen.parser is None and chosen.masks is None and chosen.keypoints is None:
            raise UserError("parser, mask and keypoints are all none", "choose at least one")
        if chosen.parser is None and isinstance(chosen.masks, ParsingMasker):
            raise UserError("masks come from parsing maps, and there is no parser", "use --mask none")
        if isinstance(chosen.parser, MaskedParser) and chosen.parser.needs_masks:
            if chosen.masks is None or isinstance(chosen.masks, ParsingMasker):
                raise UserError(f"--parser {self.parser}: makes its maps from masks", "use --mask auto")
            if chosen.parser.needs_keypoints and chosen.keypoints is None:
                problem = f"--parser {self.parser}: makes its maps from keypoints"
                raise UserError(problem, "use --keypoints auto")
        if self.sides == "keypoints" and (chosen.parser is None or chosen.keypoints is None):
            raise UserError("--sides keypoints: needs a parser and keypoints", "give both, or leave it away")
        if self.sides is not None and chosen.parser is None:
            raise UserError(f"--sides {self.sides}: needs a parser", "give one, or leave it away")
        return chosen

    def require_networks(self) -> None:
        """Refuse what cannot annotate people who are cut out of photos only now: none, and the user's files.

        Raises:
            UserError: names the option.
        """
        for option in ("parser", "mask", "keypoints", "detect"):
            if getattr(self, option) == NONE:
                problem = f"--{option} {NONE}: people of photos are not found and re-posed without"
                raise UserError(problem, f"name a network, or leave --{option} out")
        files = {"keypoints": self.keypoints.partition(":")[0] in FORMATS and ":" in self.keypoints}
        name, _ = _named(self.mask, MASKERS)
        files["mask"] = bool(self.mask) and name not in MASKERS and Path(self.mask).is_dir()
        for option in (one for one, are in files.items() if are):
            text = printable(getattr(self, option))
            problem = f"--{option} {text}: are files of whole images, and people are cut out of photos here"
            raise UserError(problem, f"name a network, or leave --{option} out")
        find("masker", name, MASKERS)

    def open_detector(self) -> tuple[nn.Module, AnnotatorInfo]:
        """The detector that cuts people out of photos.

        Raises:
            UserError: as ``interfaces.load_detector``; or no such device is here.
        """
        self._require_device()
        name, weights = _named(self.detect, _FINDERS)
        return find("detector", name, _FINDERS)(weights, **self._how())

    def _parser(self) -> Parser | MaskedParser | None:
        if self.parser == NONE:
            return None
        name, weights = _named(self.parser, PARSERS)
        return open_parser(name, weights, sides=self.sides, **self._how())

    def _masks(self) -> PersonMasker | FolderMasks | None:
        if self.mask == NONE:
            return None
        name, weights = _named(self.mask, MASKERS)
        if name in MASKERS:
            return open_masker(name, weights, **self._how())
        return FolderMasks(self.mask)

    def _keypoints(self) -> KeypointDetector | KeypointFiles | None:
        if self.keypoints == NONE:
            return None
        kind, colon, path = self.keypoints.partition(":")
        if colon and kind in FORMATS and not path:
            raise UserError(f"--keypoints {self.keypoints}: names no path", f"write {kind}:PATH")
        if colon and kind in FORMATS:
            return KeypointFiles(kind, Path(path))
        name, weights = _named(self.keypoints, KEYPOINT_DETECTORS)
        return open_keypoint_detector(name, weights, **self._how())

    def _require_device(self) -> None:
        from reposer.runtime import require_device  # here: it takes time that most can do without

        numbered = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        require_device(self.device, ("cpu", "cuda", "mps", *numbered))

    def _how(self) -> dict[str, Any]:
        return {
            "accept_license": self.accept_license,
            "may_download": self.may_download,
            "device": self.device,
        }


# Each is called with the user's weights (or None), accept_license, may_download and device.
_FINDERS: dict[str, Callable[..., tuple[nn.Module, AnnotatorInfo]]] = {
    AUTO: open_finder,
    "pose_detection": open_finder,
    **{name: partial(load_detector, name) for name in DETECTORS},
}


def chosen_sides(text: str | None) -> Sides | None:
    """The value of --sides.

    Raises:
        UserError: it is none.
    """
    return None if text is None else known("--sides", text, SIDES)


@dataclass(slots=True)
class Annotation:
    """What is known about one image."""

    parsing: NDArray[np.uint8] | None = None  # (H, W) LIP-20
    mask: NDArray[np.bool_] | None = None  # (H, W)
    mask_source: str | None = None  # see interfaces.MaskSource
    keypoints: Pose | None = None  # (18, 2) pixels, NaN for a missing joint
    scores: NDArray[np.float32] | None = None  # (18,)
    people: int = -1  # seen by a detector; -1: nobody counted
    given: str = ""  # Annotators.given, taken before the files were read
    problems: list[AnnotationProblem] = field(default_factory=list)


@dataclass(frozen=True)
class Annotators:
    """A parser, a source of masks, a source of keypoints; each may be missing."""

    parser: Parser | MaskedParser | None
    masks: PersonMasker | FolderMasks | None
    keypoints: KeypointDetector | KeypointFiles | None

    def describe(self) -> dict[str, Any]:
        """What made the annotations, for job.json."""
        described: dict[str, Any] = {
            "parser": _describe(self.parser),
            "mask": _describe(self.masks),
            "keypoints": _describe(self.keypoints),
        }
        if isinstance(self.parser, SegmentationParser):
            described["parser"] |= {"description": self.parser.description.model_dump(mode="json")}
        if isinstance(self.masks, FolderMasks):
            described["mask"] |= {"folder": str(self.masks.folder)}
        if isinstance(self.keypoints, KeypointFiles):
            described["keypoints"] |= {"path": str(self.keypoints.path)}
        return described

    def folders_in(self, images: Path) -> list[str]:
        """The user's own mask and keypoint folders inside ``images``, relative to it: nobody is on them."""
        given = [self.masks.folder] if isinstance(self.masks, FolderMasks) else []
        given += [self.keypoints.path] if isinstance(self.keypoints, KeypointFiles) else []
        base = Path(os.path.realpath(images))
        places = [Path(os.path.realpath(place)) for place in given if place.is_dir()]
        inside = {place.relative_to(base).as_posix() for place in places if place.is_relative_to(base)}
        return sorted(inside - {"."})

    def given(self, name: str) -> str:
        """sha256 of the user's own mask and keypoint files of an image, as they are now; "" without any.

        Tables are not among them: their hash is in ``describe``, so that a changed one is another job.
        """
        states = []
        if isinstance(self.masks, FolderMasks):
            for stem in _stems(name):
                states += [_state(place, self.masks.folder) for place in self.masks.places(stem)]
        if isinstance(self.keypoints, KeypointFiles):
            states += [_state(place, self.keypoints.path) for place in self.keypoints.places(name)]
        return sha256_bytes("\n".join(states).encode()) if set(states) - {_MISSING} else ""

    def own_mask(self, name: str) -> str:
        """The user's own mask file of an image, as a message names it; the image where there is none."""
        if isinstance(self.masks, FolderMasks):
            places = (place for stem in _stems(name) for place in self.masks.places(stem))
            return printable(next((place for place in places if place.is_file()), Path(name)))
        return name

    def annotate(self, images: Tensor, names: list[str]) -> list[Annotation]:
        """(B, 3, H, W) uint8 and the images' paths -> what is known about each."""
        annotations = [Annotation(given=self.given(name)) for name in names]
        size = (int(images.shape[2]), int(images.shape[3]))
        poses = self._add_keypoints(images, names, size, annotations)
        given = None if poses is None else torch.from_numpy(poses)
        parsing = None
        masks_first = isinstance(self.parser, MaskedParser) and not (
            self.masks is None or isinstance(self.masks, ParsingMasker)
        )
        if masks_first:
            self._add_masks(images, names, size, None, annotations)
        if isinstance(self.parser, MaskedParser):
            parsing = self.parser(images, given, _known_masks(annotations, size) if masks_first else None)
        elif self.parser is not None:
            parsing = self.parser(images, given if self.parser.needs_keypoints else None)
        if parsing is not None:
            for annotation, one in zip(annotations, parsing.numpy(), strict=True):
                annotation.parsing = one
                if annotation.mask_source == "everything" and one.any():
                    annotation.mask, annotation.mask_source = one != 0, "parsing"
        if not masks_first:
            self._add_masks(images, names, size, parsing, annotations)
        return annotations

    def _add_keypoints(
        self, images: Tensor, names: list[str], size: tuple[int, int], annotations: list[Annotation]
    ) -> NDArray[np.float32] | None:
        """Returns (B, 18, 2), None where nobody knows keypoints."""
        if self.keypoints is None:
            return None
        if isinstance(self.keypoints, KeypointFiles):
            found = [self.keypoints.find(name, size) for name in names]
            missing = np.full((NUM_JOINTS, 2), np.nan, np.float32)
            keypoints = np.stack([missing if pose is None else pose for pose, _ in found])
            for annotation, (_, problems) in zip(annotations, found, strict=True):
                annotation.problems += problems
            known, scores = [pose is not None for pose, _ in found], joint_scores(list(keypoints))
        else:
            poses = self.keypoints(images)
            keypoints, scores, known = poses.keypoints, poses.scores, [True] * len(names)
            for annotation, people in zip(annotations, poses.people, strict=True):
                annotation.people = max(annotation.people, int(people))
        for i, annotation in enumerate(annotations):
            if known[i]:
                annotation.keypoints, annotation.scores = keypoints[i], scores[i]
        return keypoints

    def _add_masks(
        self,
        images: Tensor,
        names: list[str],
        size: tuple[int, int],
        parsing: Tensor | None,
        annotations: list[Annotation],
    ) -> None:
        if isinstance(self.masks, FolderMasks):
            for annotation, name in zip(annotations, names, strict=True):
                annotation.mask = _own_mask(self.masks, name, size, annotation.problems)
                annotation.mask_source = None if annotation.mask is None else "folder"
        elif self.masks is not None:
            masks = self.masks(images, parsing)
            for i, annotation in enumerate(annotations):
                annotation.mask, annotation.mask_source = masks.mask[i], masks.source[i]
                annotation.people = max(annotation.people, int(masks.people[i]))


def _known_masks(annotations: Sequence[Annotation], size: tuple[int, int]) -> Tensor:
    """(B, H, W) bool, False everywhere where no person is known."""
    nobody = np.zeros(size, np.bool_)
    found = [nobody if a.mask is None or a.mask_source == "everything" else a.mask for a in annotations]
    return torch.from_numpy(np.stack(found))


def _own_mask(
    masks: FolderMasks, name: str, size: tuple[int, int], problems: list[AnnotationProblem]
) -> NDArray[np.bool_] | None:
    """The user's mask of an image; one that cannot be used is listed."""
    for candidate in _stems(name):
        try:
            mask = masks.find(candidate, size)
        except AnnotationError as error:
            message = f"{error.listed.message}; not used: {error.advice}"
            problems.append(AnnotationProblem(error.listed.file, 0, "mask", message, "bad-mask"))
            return None
        except RefusedFileError as error:
            message = f"{error.reason}; not used: {error.advice}"
            problems.append(AnnotationProblem(error.file, 0, "mask", message, "bad-mask"))
            return None
        if mask is not None:
            return mask
    message = f"no mask for {name}"
    problems.append(AnnotationProblem(str(masks.folder), 0, "mask", message, "missing-mask"))
    return None


def _stems(name: str) -> list[str]:
    """a/b.jpg -> a/b and a_b."""
    stem = without_suffix(name)
    return list(dict.fromkeys((stem, stem.replace("/", "_"))))


def _state(path: Path, root: Path) -> str:
    """sha256 of a file, or the rule that refuses it."""
    try:
        return sha256_bytes(read_regular(path, max_bytes=MAX_FILE_BYTES, root=root))
    except RefusedFileError as error:
        return error.rule


def _named(text: str, table: Container[str]) -> tuple[str, str | Path | None]:
    """ "name=file" of a name in the table -> name and file, an address as it is; all else is a name or path.
    A bare name finds a folder of its own among the weights, if there is one (transformers' are folders)."""
    name, equals, path = text.partition("=")
    if equals and name in table:
        return name, path if "://" in path else Path(path)
    places = [folder / text for folder in cache_folders() if "/" not in text and (folder / text).is_dir()]
    return text, places[0] if places else None


def _describe(annotator: object) -> dict[str, Any]:
    info = getattr(annotator, "info", None)
    return asdict(info) if isinstance(info, AnnotatorInfo) else {"name": NONE}
