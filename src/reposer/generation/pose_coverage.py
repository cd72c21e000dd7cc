"""How much of the space of poses the images of each person cover, before and after augmentation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reposer.data.orientation import ORIENTATIONS
from reposer.data.packed import PackedPeople
from reposer.generation.donors import DonorPlan
from reposer.generation.pose_space import FAR, PoseSpace

REFERENCES = 32  # poses of each orientation
_STREAM = 41  # of random numbers


def pose_coverage(
    people: PackedPeople, rows: NDArray[np.int64], extra_donors: DonorPlan | None = None, *, seed: int = 0
) -> dict[str, float]:
    """Orientations and poses that the people of ``rows`` have, each person counting once.

    The reference poses are typical poses among ``rows``, as many of each orientation as there are up to
    REFERENCES; they do not depend on ``extra_donors``, so that figures of one ``rows`` compare.

    Args:
        rows: (N,) real images.
        extra_donors: generated images, taken to have exactly their donor's pose and to show their source's
            person (what a generator makes of that is another question).
        seed: of the choice of references.

    Returns:
        people: P, those with an image in ``rows``;
        images, unknown: images in all, generated ones included, and those whose pose is unknown;
        orientations: mean over people of how many of the 8 orientations they show;
        all_orientations: share of people who show all 8;
        pose_gap: mean over people and references of the distance to the person's nearest pose, in torso
            lengths as in ``pose_space``; people without any known pose are left out. NaN without references;
        worst_pose_gap: the same with the mean over people of their farthest reference.
    """
    rows = np.unique(np.asarray(rows, np.int64))
    pids, donors = people.pids[rows], rows
    if extra_donors is not None:
        pids = np.concatenate([pids, people.pids[extra_donors.source]])
        donors = np.concatenate([donors, extra_donors.donor])
    poses = PoseSpace.of_people(people, rows)
    references = _references(poses, seed)
    shown, place = np.unique(donors, return_inverse=True)  # a donor of many is measured once
    space = PoseSpace.of_people(people, shown)
    names, person = np.unique(pids, return_inverse=True)
    known = space.known[place]
    seen = np.zeros((len(names), len(ORIENTATIONS)), np.bool_)
    seen[person[known], space.orientations[place[known]]] = True
    order = np.flatnonzero(known)[np.argsort(person[known], kind="stable")]
    gap = worst = np.nan
    if len(order) and len(references):
        distance = space.distance(references)  # (shown, R)
        starts = np.flatnonzero(np.diff(person[order], prepend=-1))
        nearest = [distance[place[part]].min(0) for part in np.split(order, starts[1:])]
        gaps = np.ma.masked_equal(np.stack(nearest), FAR)  # (people, R)
        gap, worst = float(gaps.mean()), float(gaps.max(1).mean())
    return {
        "people": len(names),
        "images": len(donors),
        "unknown": int((~known).sum()),
        "orientations": float(seen.sum(1).mean()) if len(names) else np.nan,
        "all_orientations": float(seen.all(1).mean()) if len(names) else np.nan,
        "pose_gap": gap,
        "worst_pose_gap": worst,
    }


def _references(poses: PoseSpace, seed: int) -> PoseSpace:
    """Typical poses, evenly over the orientations."""
    rng = np.random.default_rng([seed, _STREAM])
    typical = np.flatnonzero(poses.typical(rng))
    facing = poses.orientations[typical]
    drawn = [rng.permutation(typical[facing == o])[:REFERENCES] for o in range(len(ORIENTATIONS))]
    return poses[np.concatenate(drawn)]
