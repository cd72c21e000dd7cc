"""Several sources: which further images of a person go with the source of a pair.

A training person of a Re-ID set has many images (17 on average in Market-1501); each shows a side. Further
sources are chosen in turn by three wishes: the camera of the source (its colors), the orientation of the
target (its side of the person), an orientation that no source shows yet (what else may be seen).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reposer.data.orientation import ORIENTATIONS, UNKNOWN, face_share, orientation
from reposer.data.packed import PackedPeople, by_person
from reposer.errors import MOST_SOURCES, UserError
from reposer.structures import PairBatch

_STREAM = 41  # of random numbers
_FAR = len(ORIENTATIONS)  # turned further than any orientation: unknown


class FurtherSources:
    """Further images of source persons.

    Args:
        people: the packed people.
        rows: (N,) images that may be used; None: all.
        cameras: (len(people),) numbers of cameras; given, all sources of a pair are of one camera.
    """

    def __init__(
        self,
        people: PackedPeople,
        rows: NDArray[np.int64] | None = None,
        *,
        cameras: NDArray[np.int64] | None = None,
    ) -> None:
        self.people, self._rows, self._cameras = people, rows, cameras

    @cached_property
    def _images(self) -> dict[int, NDArray[np.int64]]:
        """Usable images by person, ascending; distractors and junk are nobody."""
        pids = self.people.pids
        usable = np.arange(len(pids)) if self._rows is None else np.unique(self._rows)
        usable = usable[pids[usable] > 0]
        return {pid: usable[places] for pid, places in by_person(pids[usable]).items()}

    @cached_property
    def _trained(self) -> NDArray[np.bool_]:
        """(N,) whether an image is one of the training split."""
        return np.asarray(self.people.splits == "train")

    @cached_property
    def _sides(self) -> NDArray[np.int8]:
        """(N,) orientations of all images."""
        return orientation(self.people.keypoints, face_share(self.people.parsing))

    def choose(self, source: NDArray[np.int64], target: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """(B, count) rows of further images for pairs (B,), (B,) of rows; -1 where a person has no more.

        The source itself is none, and neither is any image of the target's camera where the target shows
        the same person: the next frame of a camera is nearly the wanted picture. Training images go with
        training images alone, also where a person has images in several splits.
        """
        chosen = np.full((len(source), count), -1, np.int64)
        for line, (own, wanted) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
            found = self._of_pair(own, wanted, count)
            chosen[line, : len(found)] = found
        return chosen

    def pair_batch(self, source: NDArray[np.int64], target: NDArray[np.int64], sources: int) -> PairBatch:
        """The pairs (B,), (B,) on the CPU, with so many images of each source person where there are."""
        if sources == 1:
            return self.people.pair_batch(source, target)
        return self.people.pair_batch(source, target, self.choose(source, target, sources - 1))

    def _of_pair(self, source: int, target: int, count: int) -> list[int]:
        pids, camids = self.people.pids, self.people.camids
        pid = int(pids[source])
        left = self._images.get(pid, np.empty(0, np.int64))
        left = left[left != source]
        left = left[self._trained[left] == self._trained[source]]
        if self._cameras is not None:
            left = left[self._cameras[left] == self._cameras[source]]
        if pids[target] == pid:
            left = left[camids[left] != camids[target]]
        chosen = [source]
        while len(chosen) <= count and len(left):
            best = int(np.lexsort((left, *self._wishes(left, chosen, target)))[0])
            chosen.append(int(left[best]))
            left = np.delete(left, best)
        return chosen[1:]

    def _wishes(
        self, left: NDArray[np.int64], chosen: list[int], target: int
    ) -> tuple[NDArray[np.int64], ...]:
        """Keys of the candidates, the last counts most."""
        camids = self.people.camids
        foreign = (camids[left] != camids[chosen[0]]).astype(np.int64)
        turned = _turn(self._sides[left], int(self._sides[target]))
        seen = np.isin(self._sides[left], self._sides[chosen]).astype(np.int64)
        turn = len(chosen) % 3
        if turn == 1:
            return seen, turned, foreign
        if turn == 2:
            return foreign, seen, turned
        return foreign, turned, seen


def check_sources(*counts: int) -> None:
    """Refuse numbers of source images of which one is impossible.

    Raises:
        UserError: names it.
    """
    for count in counts:
        if not 1 <= count <= MOST_SOURCES:
            problem = f"sources {count}: at least 1 and at most {MOST_SOURCES} are possible"
            raise UserError(problem, "1 is the source alone")


def draw_counts(batch_size: int, most: int, seed: int, step: int) -> NDArray[np.int64]:
    """(batch_size,) sources of each pair of a step, its own counted: 1 to ``most``, each as often."""
    return np.random.default_rng([seed, _STREAM, step]).integers(1, most + 1, size=batch_size)


def _turn(sides: NDArray[np.int8], wanted: int) -> NDArray[np.int64]:
    """(N,) eighths of a turn to an orientation; unknown ones are farther than all."""
    apart = np.abs(sides.astype(np.int64) - wanted)
    apart = np.minimum(apart, len(ORIENTATIONS) - apart)
    return np.where((sides == UNKNOWN) | (wanted == UNKNOWN), _FAR, apart)
