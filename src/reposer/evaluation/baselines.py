"""The trivial baselines that stand beside every model: copying the source, and the nearest training pose.

A generator that is worse than the picture of somebody else in a similar pose has learned nothing worth
having; one that is worse than the unchanged source has done harm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reposer.data.keypoints import Pose, pose_distance

CHUNK = 64  # targets at a time; a chunk of 11,000 candidates takes about 3 MB an array


def nearest_poses(
    targets: Pose,
    target_pids: NDArray[np.int64],
    candidates: Pose,
    candidate_pids: NDArray[np.int64],
    candidate_names: Sequence[str],
) -> NDArray[np.int64]:
    """For every target pose (T, J, 2) the index of another person's nearest candidate pose (N, J, 2).

    The distance is ``pose_distance``: mean over the joints that both have, at least 6, in torso lengths.
    Candidates of the target's own identity are left out; ties go to the smaller name.

    Returns:
        (T,) indices into the candidates, -1 where no candidate has a distance.
    """
    by_name = np.array(sorted(range(len(candidate_names)), key=lambda i: candidate_names[i]), np.int64)
    poses, pids = candidates[by_name], candidate_pids[by_name]
    nearest = np.full(len(targets), -1, np.int64)
    if not len(by_name):
        return nearest
    for start in range(0, len(targets), CHUNK):
        part = slice(start, start + CHUNK)
        distance = pose_distance(targets[part, None], poses[None])  # (C, N)
        distance[np.isnan(distance) | (target_pids[part, None] == pids[None])] = np.inf
        first = distance.argmin(axis=1)  # the first of equals: the smallest name
        found = np.isfinite(distance[np.arange(len(first)), first])
        nearest[part] = np.where(found, by_name[first], -1)
    return nearest
