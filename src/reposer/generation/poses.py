"""How alike two people are as donors: a space of poses, and classes of what they wear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from reposer.data.keypoints import MIN_COMMON_JOINTS, Pose, normalize_pose
from reposer.data.orientation import ORIENTATIONS, UNKNOWN, face_share, orientation
from reposer.data.packed import PackedPeople
from reposer.data.parsing import LIP_LABELS
from reposer.structures import MISSING_LABEL, NUM_JOINTS

# ---- A space of poses: how far two people's poses and orientations are apart, also with joints missing.
#
#     distance(a, b)^2 = mean over common joints of |a_j - b_j|^2 + sin^2(turn / 2)
#
# Joints are centered at the middle of the hips and measured in torso lengths (``data.keypoints``); ``turn``
# is the angle between the two of the eight orientations (``data.orientation``), so that front against back
# counts as much as moving every joint by one torso. It is an own definition: PN-GAN (Qian et al., ECCV 2018)
# clusters poses by features of a network, which would have to be trained first. Everything is a sum of matrix
# products.

# Share of poses that are typical. On Market-1501, donors by farthest-first at 0.95, 0.8 and 0.65 leave a mean
# gap of 0.276, 0.262 and 0.256 torso lengths, at the same orientations; the rest are cyclists and mistakes.
TYPICAL = 0.8
FAR = np.float32(np.inf)  # of two poses that cannot be compared
_AT_ONCE = 4096**2  # distances that are held at once: 64 MiB


@dataclass(frozen=True, slots=True)
class PoseSpace:
    """N poses, ready to be compared."""

    joints: NDArray[np.float32]  # (N, 2J) torso lengths, 0 where missing
    present: NDArray[np.float32]  # (N, 2J) 1 where known
    turns: NDArray[np.float32]  # (N, 2) cosine and sine of the orientation's angle, 0 where unknown
    orientations: NDArray[np.int64]  # (N,) index into ORIENTATIONS or UNKNOWN

    @classmethod
    def of(cls, keypoints: Pose, orientations: NDArray[np.integer]) -> Self:
        """Of keypoints (N, J, 2) in pixels and their orientations (N,)."""
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
        lies in the lower ``share``. Farthest-first alone would collect the keypoint detector's mistakes.
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
    Candidates must be ``known``; poses in ``have`` that are not count as nothing. Memory grows with C.
    """
    have = have[have.known]
    counts = np.bincount(have.orientations, minlength=len(ORIENTATIONS))
    nearest = np.full(len(candidates), FAR, np.float32)
    step = max(1, _AT_ONCE // max(1, len(candidates)))
    for start in range(0, len(have), step):
        part = have[np.arange(start, min(start + step, len(have)))]
        np.minimum(nearest, candidates.distance(part).min(1), out=nearest)
    whole = len(candidates) ** 2 <= _AT_ONCE  # small sets round as they always did
    between = candidates.distance(candidates) if whole else None
    free = np.ones(len(candidates), np.bool_)
    taken: list[int] = []
    while len(taken) < min(slots, len(candidates)):
        filled = np.where(free, counts[candidates.orientations], np.iinfo(np.int64).max)
        score = np.where(filled == filled.min(), nearest, -1)
        best = int(score.argmax())
        taken.append(best)
        free[best] = False
        counts[candidates.orientations[best]] += 1
        one = candidates[np.array([best])]
        away = one.distance(candidates)[0] if between is None else between[best]
        np.minimum(nearest, away, out=nearest)
    return np.array(taken, np.int64)


# ---- What somebody wears, as far as a parsing map says it: classes of garments that donors can be matched
# by.
#
# A generator dresses the source in the donor's label areas: where the donor's map has a skirt and the source
# wears trousers, the picture shows a skirt under the label of somebody who wears none. Sleeves are left out
# on purpose: the share of bare arm has no valley on Market-1501, so that any threshold would cut through
# noise.

LOWER = ("not visible", "trousers", "shorts", "skirt", "dress", "jumpsuit")
UPPER = ("not visible", "top", "coat")

# Shares of the person's pixels. On Market-1501's 12,936 training images the largest lower garment has less
# than 5 % in 1 of 60 (cut off below the chest, or hidden by a bicycle).
VISIBLE = 0.05
HAT = 0.02
# Bare leg over bare leg and pants; pants are shorts above it: the valley between Market-1501's two humps.
BARE_LEGS = 0.15

_CHUNK = 2048  # maps counted at once


@dataclass(frozen=True, slots=True)
class Outfits:
    """Classes of N people."""

    lower: NDArray[np.int64]  # (N,) index into LOWER
    upper: NDArray[np.int64]  # (N,) index into UPPER; "top" too where a dress or jumpsuit covers the chest
    hat: NDArray[np.bool_]  # (N,)

    @property
    def classes(self) -> NDArray[np.int64]:
        """(N,) one number for each combination of the three."""
        return (self.lower * len(UPPER) + self.upper) * 2 + self.hat


def outfits(parsing: NDArray[np.uint8], rows: NDArray[np.int64]) -> Outfits:
    """Classes of the LIP-20 maps (all, H, W) at ``rows`` (N,); the maps may be a memory map."""
    areas = np.concatenate(
        [_areas(parsing[rows[i : i + _CHUNK]]) for i in range(0, len(rows), _CHUNK)] or [_areas(parsing[:0])]
    )
    area = dict(zip(LIP_LABELS, areas.T, strict=True))
    person = np.maximum(areas.sum(1) - area["background"], 1)
    legs = area["left-leg"] + area["right-leg"]
    garments = np.stack([area["pants"], area["skirt"], area["dress"], area["jumpsuits"]])
    bare = legs / np.maximum(legs + area["pants"], 1) > BARE_LEGS
    names = np.array([LOWER.index(name) for name in ("trousers", "skirt", "dress", "jumpsuit")])
    lower = names[garments.argmax(0)]
    lower = np.where((lower == LOWER.index("trousers")) & bare, LOWER.index("shorts"), lower)
    lower[garments.max(0) < VISIBLE * person] = LOWER.index("not visible")
    tops = area["upper-clothes"] + area["dress"] + area["jumpsuits"]
    upper = np.where(area["coat"] > tops, UPPER.index("coat"), UPPER.index("top"))
    upper[np.maximum(area["coat"], tops) < VISIBLE * person] = UPPER.index("not visible")
    return Outfits(lower.astype(np.int64), upper.astype(np.int64), area["hat"] > HAT * person)


def _areas(maps: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, H, W) -> (n, S) pixels of each label."""
    count = len(LIP_LABELS)
    pixels = maps.shape[1] * maps.shape[2]
    flat = np.where(maps == MISSING_LABEL, count, maps).reshape(len(maps), pixels).astype(np.int64)
    flat += (count + 1) * np.arange(len(maps))[:, None]
    counts = np.bincount(flat.ravel(), minlength=(count + 1) * len(maps))
    return counts.reshape(len(maps), count + 1)[:, :count].astype(np.float64)
