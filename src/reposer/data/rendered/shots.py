"""Data sets of rendered people in memory: which image shows whom, how and where, and batches of them.

Image i of person p under a seed is a pure function of (seed, p, i): person, pose, camera and every byte of
the picture, whatever the number of people, images, workers, or the batch size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from reposer.data.rendered.body import Pose
from reposer.data.rendered.cameras import CAMERAS, Camera
from reposer.data.rendered.poses import sample_pose
from reposer.data.rendered.renderer import RenderedPeople, render_people
from reposer.data.rendered.wardrobe import Identity, sample_identity
from reposer.data.rendered.workers import Key, RenderWorkers


@dataclass(frozen=True, slots=True)
class Shot:
    """One image of the data set before it is rendered."""

    identity: Identity
    pose: Pose
    camera: Camera
    key: Key  # (seed, pid, index)

    @property
    def stem(self) -> str:
        """Market-1501's name without extension: the frame number is the image's index; 00 is an exact box."""
        return f"{self.identity.pid:04d}_c{self.camera.camid}s1_{self.key[2]:06d}_00"


def plan_shot(seed: int, pid: int, index: int) -> Shot:
    """Who, how and where of image ``index`` of person ``pid``.

    A person passes the six cameras in an own order, two images in each before the next.
    """
    order = np.random.default_rng([seed, pid, 1]).permutation(len(CAMERAS))
    camera = CAMERAS[order[index // 2 % len(CAMERAS)]]
    pose = sample_pose(np.random.default_rng([seed, pid, index, 2]))
    return Shot(sample_identity(seed, pid), pose, camera, (seed, pid, index))


def render_shots(
    shots: Sequence[Shot], size: tuple[int, int] = (128, 64), *, samples: int = 2
) -> RenderedPeople:
    """The pictures and annotations of planned images, rendered in this process."""
    return render_people(
        [s.identity for s in shots],
        [s.pose for s in shots],
        [s.camera for s in shots],
        size,
        seeds=[s.key for s in shots],
        samples=samples,
    )


def iterate_rendered(
    pids: Sequence[int],
    images_per_identity: int,
    size: tuple[int, int] = (128, 64),
    *,
    seed: int = 0,
    samples: int = 2,
    workers: int = 1,
    batch_size: int = 32,
) -> Iterator[tuple[list[Shot], RenderedPeople]]:
    """Batches in the order of ``pids``, each person's images by index.

    Args:
        workers: processes that render; 1 renders in this one. Does not change a byte.
    """
    keys = [(seed, pid, index) for pid in pids for index in range(images_per_identity)]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    if workers <= 1 or len(batches) <= 1:
        for batch in batches:
            shots = [plan_shot(*key) for key in batch]
            yield shots, render_shots(shots, size, samples=samples)
        return
    with RenderWorkers(min(workers, len(batches))) as pool:
        for batch, (images, parsing, keypoints) in zip(
            batches, pool.render(batches, size, samples), strict=True
        ):
            shots = [plan_shot(*key) for key in batch]
            yield (
                shots,
                RenderedPeople(
                    images=images,
                    parsing=parsing,
                    masks=parsing > 0,
                    keypoints=keypoints,
                    pids=np.array([s.identity.pid for s in shots], np.int64),
                    camids=np.array([s.camera.camid for s in shots], np.int64),
                    poses=tuple(s.pose for s in shots),
                ),
            )
