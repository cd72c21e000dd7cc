"""Where pairs of a source and a donor come from: a packed data set, or a folder of images and one donor."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reposer.config import canonical_json
from reposer.data.packed import ROWS, PackedPeople
from reposer.data.preparing.annotation_lookup import Annotations
from reposer.data.records import AnnotationProblem
from reposer.data.sources import FurtherSources
from reposer.errors import UserError
from reposer.generation.augmented_rows import MORE_SOURCES
from reposer.generation.camera_colors import CameraColors
from reposer.generation.pictures import Person, load_person, people_batch
from reposer.generation.targets import PoseTarget
from reposer.images import read_picture
from reposer.storage.files import sha256_bytes, sha256_file
from reposer.storage.paths import contained
from reposer.storage.tables import read_table
from reposer.structures import NUM_JOINTS, PairBatch, PersonRecord

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")  # what a folder is searched for


class PairSource(Protocol):
    """N pairs of a source and a donor; the same index gives always the same pair."""

    size: tuple[int, int]  # (H, W) of what ``read`` gives
    problems: list[AnnotationProblem]  # what was left out, and why
    several: bool  # whether pictures are made from several images of the source person

    @property
    def names(self) -> list[tuple[str, str]]:
        """N image names of source and donor."""

    def rows(self, items: range) -> list[dict[str, Any]]:
        """The manifest's columns source to donor_camid."""

    def read(self, items: range) -> PairBatch:
        """Images and annotations, on the CPU; called in another thread."""

    def fingerprint(self) -> str:
        """Hash of everything that the pictures depend on besides the model."""

    def camera_colors(self) -> tuple[CameraColors, list[str]]:
        """How cameras show colors, and notes about what that means for these pairs.

        Raises:
            UserError: nothing is known of them.
        """


class PackedPairs:
    """Pairs of packed people; those in which somebody has no parsing map are left out. A PairSource.

    Args:
        people: the packed folder.
        pairs: (P, 2) indices of source and donor.
        sources: images of the source person that a picture is made from, at most.
        rows: (N,) images that may be further sources, and that tell the colors of cameras; None: all may be
            sources, and those of split "train" tell the colors.
    """

    def __init__(
        self,
        people: PackedPeople,
        pairs: NDArray[np.int64],
        sources: int = 1,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
        columns = read_table(people.folder / ROWS, columns=["sha256", "has_parsing"])
        usable = columns["has_parsing"].to_numpy()[pairs]  # (P, 2)
        self._people, self._pairs = people, pairs[usable.all(1)]
        self._sha256: list[str] = columns["sha256"].to_pylist()
        self.size = people.size
        self._sources, self.several = sources, sources > 1
        mapped = np.flatnonzero(columns["has_parsing"].to_numpy())
        further = mapped if rows is None else np.intersect1d(mapped, rows)
        self._further = FurtherSources(people, further) if sources > 1 else None
        trained = (people.splits[mapped] == "train") & (people.pids[mapped] > 0)
        self._seen = mapped[trained] if rows is None else np.unique(rows)  # by which colors are fitted
        self.problems = [
            AnnotationProblem(people.names[i], 0, "parsing", "no parsing map; its pairs are left out")
            for i in np.unique(pairs[~usable]).tolist()
        ]

    @property
    def names(self) -> list[tuple[str, str]]:
        """See PairSource; made when asked for, since ``augment`` never does for its millions."""
        names = self._people.names
        return [(names[source], names[donor]) for source, donor in self._pairs.tolist()]

    def rows(self, items: range) -> list[dict[str, Any]]:
        """See PairSource."""
        pairs = self._pairs[_slice(items)]
        rows = [self._side("source", s) | self._side("donor", d) for s, d in pairs.tolist()]
        if self._further is None:
            return rows
        names = self._people.names
        more = self._further.choose(pairs[:, 0], pairs[:, 1], self._sources - 1).tolist()
        return [
            row | {MORE_SOURCES: [names[i] for i in chosen if i >= 0]}
            for row, chosen in zip(rows, more, strict=True)
        ]

    def read(self, items: range) -> PairBatch:
        """See PairSource."""
        sources, donors = self._pairs[_slice(items)].T
        if self._further is None:
            return self._people.pair_batch(sources, donors)
        return self._further.pair_batch(sources, donors, self._sources)

    def fingerprint(self) -> str:
        """See PairSource."""
        origin = [self._people.header["content_hash"], self.names]
        return sha256_bytes(canonical_json(origin if self._further is None else [*origin, self._sources]))

    def camera_colors(self) -> tuple[CameraColors, list[str]]:
        """See PairSource; no image of test people takes part."""
        colors = CameraColors.fit(self._people, self._seen)
        return colors, colors.notes(*self._people.camids[self._pairs].T.tolist())

    def _side(self, side: str, index: int) -> dict[str, Any]:
        people, digest = self._people, self._sha256[index]
        return _columns(side, people.names[index], digest, int(people.pids[index]), int(people.camids[index]))


class FolderPairs:
    """Every image of a folder with the same donor, or in the same poses; a PairSource.

    The annotations are those of the data sets' layout: parsing/<stem>.png, mask/<stem>.png, keypoints.csv.
    Images that cannot be read or have no usable parsing map are left out, and an image for a pose that has no
    keypoint inside it.

    Args:
        folder: holds the images.
        donor: of ``load_person``, at the size of the model; or one or more poses.
        size: (H, W) of the model, with poses.
        parsing, mask, keypoints: other places of the annotations; the folders must lie inside ``folder``.

    Raises:
        UserError: ``folder`` or one of the places does not exist.
    """

    def __init__(
        self,
        folder: str | Path,
        donor: Person | Sequence[PoseTarget],
        *,
        size: tuple[int, int] | None = None,
        parsing: str | Path | None = None,
        mask: str | Path | None = None,
        keypoints: str | Path | None = None,
    ) -> None:
        self._root = Path(folder)
        self.several = False
        self._donors: Sequence[Person | PoseTarget] = [donor] if isinstance(donor, Person) else donor
        self.size = size if size is not None else _size_of(donor)
        self.problems: list[AnnotationProblem] = []
        images = list(_images(self._root, self.problems))
        found = Annotations.find(self._root, parsing, mask, keypoints)
        people = [found.attach(record, Path(record.name).stem, self.problems) for record in images]
        listed: list[AnnotationProblem] = []
        people = found.add_keypoints(people, listed)
        # keypoints are optional here, and the CSV may describe a whole data set: only bad rows are problems
        self.problems += [problem for problem in listed if problem.rule == "bad-keypoints"]
        self._records = [record for record in people if record.parsing is not None]
        if not found.folders.get("parsing"):
            problem = AnnotationProblem(
                "parsing", 0, "folder", "no folder of parsing maps", "missing-parsing"
            )
            self.problems.append(problem)
        self._pairs = [pair for pair in product(self._records, self._donors) if self._fits(*pair)]

    @property
    def names(self) -> list[tuple[str, str]]:
        """See PairSource."""
        return [(record.name, one.name) for record, one in self._pairs]

    def rows(self, items: range) -> list[dict[str, Any]]:
        """See PairSource."""
        return [
            _columns("source", r.name, r.sha256, r.pid, r.camid) | _columns("donor", d.name, d.sha256, -1, -1)
            for r, d in self._pairs[_slice(items)]
        ]

    def read(self, items: range) -> PairBatch:
        """See PairSource."""
        pairs = self._pairs[_slice(items)]
        sources = [self._load(record) for record, _ in pairs]
        donors = (donor for _, donor in pairs)
        return people_batch(
            sources,
            [
                donor if isinstance(donor, Person) else donor.for_source(source)
                for source, donor in zip(sources, donors, strict=True)
            ],
        )

    def fingerprint(self) -> str:
        """See PairSource."""
        parts = [part for donor in self._donors for part in _fingerprint(donor)]
        for record in self._records:
            annotations = [
                contained(self._root, path) for path in (record.parsing, record.mask) if path is not None
            ]
            parts += [record.name, record.sha256, *(sha256_file(path) for path in annotations)]
            parts.append(repr(None if record.keypoints is None else record.keypoints.tolist()))
        return sha256_bytes(canonical_json(parts))

    def camera_colors(self) -> tuple[CameraColors, list[str]]:
        """See PairSource."""
        problem = f"{self._root}: camera donor: how cameras show colors is known in a prepared folder only"
        raise UserError(problem, "give --data and --pairs, or --camera source")

    def _fits(self, record: PersonRecord, donor: Person | PoseTarget) -> bool:
        """Whether a pose has a keypoint inside an image, as its size alone tells; else it is a problem."""
        if isinstance(donor, Person) or donor.size == "torso":  # placed by the person: it always has one
            return True
        nothing = np.zeros(self.size, np.uint8)
        image = np.broadcast_to(nothing[..., None], (*self.size, 3))
        unknown = np.full((NUM_JOINTS, 2), np.nan, np.float32)
        original = (record.height, record.width)
        try:
            donor.for_source(Person(record.name, image, nothing, nothing > 0, unknown, original, ""))
        except UserError as error:
            self.problems.append(
                AnnotationProblem(record.name, 0, "keypoints", f"{error}; left out", "bad-keypoints")
            )
            return False
        return True

    def _load(self, record: PersonRecord) -> Person:
        parsing, mask = (
            None if p is None else contained(self._root, p) for p in (record.parsing, record.mask)
        )
        return load_person(
            contained(self._root, record.path), parsing, mask, record.keypoints, size=self.size
        )


def _images(root: Path, problems: list[AnnotationProblem]) -> Iterator[PersonRecord]:
    """The readable images directly in a folder, in the order of their names."""
    try:
        names = sorted(os.listdir(root))
    except OSError as error:
        raise UserError(f"{root}: cannot be listed: {error.strerror}", "check the path") from error
    for name in names:
        if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
            continue
        try:
            picture = read_picture(contained(root, name), root)
        except UserError as error:
            problems.append(AnnotationProblem(name, 0, "image", f"{error}; left out", "bad-image"))
            continue
        height, width = picture.pixels.shape[:2]
        yield PersonRecord(name, name, -1, -1, "", width, height, picture.sha256)


def _size_of(donor: Person | Sequence[PoseTarget]) -> tuple[int, int]:
    assert isinstance(donor, Person), "poses have no size of their own: give one"
    return donor.image.shape[0], donor.image.shape[1]


def _fingerprint(donor: Person | PoseTarget) -> list[str]:
    if isinstance(donor, PoseTarget):
        return [donor.sha256]
    arrays = (donor.image, donor.parsing, donor.mask, donor.keypoints)
    return [sha256_bytes(np.ascontiguousarray(array).tobytes()) for array in arrays]


def _columns(side: str, name: str, digest: str, pid: int, camid: int) -> dict[str, Any]:
    return {side: name, f"{side}_sha256": digest, f"{side}_pid": pid, f"{side}_camid": camid}


def _slice(items: range) -> slice:
    return slice(items.start, items.stop)
