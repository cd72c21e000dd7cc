"""A space of poses: how far two people's poses and orientations are apart, also with joints missing.

    distance(a, b)^2 = mean over common joints of |a_j - b_j|^2 + sin^2(turn / 2)

Joints are centered at the middle of the hips and measured in torso lengths (``data.keypoints``); ``turn`` is
the angle between the two of the eight orientations (``data.orientation``), so that front against back counts
as much as moving every joint by one torso. It is an own definition: PN-GAN (Qian et al., ECCV 2018) clusters
poses by features of a network, which would have to be trained first. Everything is a sum of matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from reposer.data.keypoints import MIN_COMMON_JOINTS, Pose, normalize_pose
from reposer.data.orientation import ORIENTATIONS, UNKNOWN, face_share, orientation
from reposer.data.packed import PackedPeople
from reposer.structures import NUM_JOINTS

# Share of poses that are typical. On Market-1501, donors by farthest-first at 0.95, 0.8 and 0.65 leave a mean
# gap of 0.276, 0.262 and 0.256 torso lengths, at the same orientations; the rest are cyclists and mistakes.
TYPICAL = 0.8
FAR = np.float32(np.inf)  # of two poses that cannot be compared


@dataclass(frozen=True, slots=True)
class PoseSpace:
    """N poses, ready to be compared."""

    joints: NDArray[np.float32]  # (N, 2J) torso lengths, 0 where missing
    present: NDArray[np.float32]  # (N, 2J) 1 where known
    turns: NDArray[np.float32]  # (N, 2) cosine and sine of the orientation's angle, 0 where unknown
    orientations: NDArray[np.int64]  # (N,) index into ORIENTATIONS or UNKNOWN

    @classmethod
    def of(cls, keypoints: Pose, orientations: NDArray[np.integer]) -> Self:
        """Of key-points (N, J, 2) in pixels and their orientations (N,)."""
        poses = normalize_pose(keypoints).reshape(len(keypoints), 2 * NUM_JOINTS)
        known = ~np.isnan(poses)
        facing = np.asarray(orientations, np.int64)
        angle = facing * (2 * np.pi / len(ORIENTATIONS))
        turns = np.stack([np.cos(angle), np.sin(angle)], 1) * (facing != UNKNOWN)[:, None]
        joints = np.where(known, poses, 0).astype(np.float32)
        return cls(joints, known.astype(np.float32), turns.astype(np.float32), facing)

    @classmethod
    def of_people(cls, people: PackedPeople, rows: NDArray[np.int64]) -> Self:
        """Of packed people at ``rows`` (N,)."""
        poses = people.keypoints[rows]
        chunks = range(0, len(rows), 2048)
        shares = [face_share(people.parsing[rows[start : start + 2048]]) for start in chunks]
        return cls.of(poses, orientation(poses, np.concatenate([*shares, np.empty(0)])))

    def __len__(self) -> int:
        return len(self.joints)

    def __getitem__(self, index: NDArray[np.integer] | NDArray[np.bool_]) -> PoseSpace:
        return PoseSpace(self.joints[index], self.present[index], self.turns[index], self.orientations[index])

    @property
    def known(self) -> NDArray[np.bool_]:
        """(N,) whether a pose can be compared: enough joints, a torso and an orientation."""
        enough = self.present.sum(1) >= 2 * MIN_COMMON_JOINTS
        return np.asarray(enough & (self.orientations != UNKNOWN))

    def distance(self, other: PoseSpace) -> NDArray[np.float32]:
        """(N, M) torso lengths; FAR where fewer than 6 joints are common or an orientation is unknown."""
        common = self.present @ other.present.T
        total = (self.joints**2) @ other.present.T + self.present @ (other.joints**2).T
        total -= 2 * (self.joints @ other.joints.T)
        # common counts x and y, so twice the mean over coordinates is the mean over joints
        squared = np.maximum(total, 0) * 2 / np.maximum(common, 1)
        squared += (1 - self.turns @ other.turns.T) / 2  # sin^2 of half the turn
        comparable = (common >= 2 * MIN_COMMON_JOINTS) & self.known[:, None] & other.known[None]
        return np.where(comparable, np.sqrt(np.maximum(squared, 0)), FAR)

    def mean(self) -> PoseSpace:
        """One pose: each joint's mean where at least half know it, and the commonest orientation."""
        counts = self.present.sum(0)
        often = counts >= max(1, len(self) / 2)
        joints = np.where(often, self.joints.sum(0) / np.maximum(counts, 1), 0).astype(np.float32)
        commonest = int(np.bincount(self.orientations[self.orientations >= 0]).argmax())
        turns = self.turns[self.orientations == commonest][:1]
        return PoseSpace(joints[None], often[None].astype(np.float32), turns, np.array([commonest]))

    def typical(
        self, rng: np.random.Generator, share: float = TYPICAL, landmarks: int = 1024
    ) -> NDArray[np.bool_]:
        """(N,) whether a pose has others like it: its distance to the nearest of a random set of landmarks
        lies in the lower ``share``. Farthest-first alone would collect the key-point detector's mistakes.
        """
        known = np.flatnonzero(self.known)
        typical = np.zeros(len(self), np.bool_)
        if not len(known):
            return typical
        chosen = np.sort(rng.choice(known, min(landmarks, len(known)), replace=False))
        marks = self[chosen]
        nearest = np.empty(len(known), np.float32)
        for start in range(0, len(known), 1024):
            block = known[start : start + 1024]
            distance = self[block].distance(marks)
            distance[block[:, None] == chosen[None]] = FAR  # nobody is an own neighbor
            nearest[start : start + 1024] = distance.min(1)
        limit = np.quantile(nearest, share, method="higher")
        typical[known[nearest <= limit]] = True
        return typical


def cover(have: PoseSpace, candidates: PoseSpace, slots: int) -> NDArray[np.int64]:
    """(min(slots, C),) which of C candidates to take, in order, so that orientations and poses fill up.

    Each time, among the orientations with the fewest images so far (those in ``have`` and those taken), the
    candidate farthest from all of them (Gonzalez' farthest-first traversal, 1985); the first one of equals.
    Candidates must be ``known``; poses in ``have`` that are not count as nothing.
    """
    have = have[have.known]
    counts = np.bincount(have.orientations, minlength=len(ORIENTATIONS))
    nearest = np.full(len(candidates), FAR, np.float32)
    if len(have):
        nearest = candidates.distance(have).min(1)
    between = candidates.distance(candidates)
    free = np.ones(len(candidates), np.bool_)
    taken: list[int] = []
    while len(taken) < min(slots, len(candidates)):
        filled = np.where(free, counts[candidates.orientations], np.iinfo(np.int64).max)
        score = np.where(filled == filled.min(), nearest, -1)
        best = int(score.argmax())
        taken.append(best)
        free[best] = False
        counts[candidates.orientations[best]] += 1
        np.minimum(nearest, between[best], out=nearest)
    return np.array(taken, np.int64)
