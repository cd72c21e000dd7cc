"""Photographs of rendered people with exact annotations: picture, LIP-20 parsing, mask, 18 visible joints.

Every image is computed by itself from its own arguments, so it does not depend on the batch.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from reposer.rendered.accessories import add_bag, add_glasses, add_hair, add_hat, add_scarf
from reposer.rendered.body import Pose
from reposer.rendered.cameras import CAMERAS, Camera, background, expose, occluder
from reposer.rendered.clothing import add_head, dress_up
from reposer.rendered.figure import Builder, Figure
from reposer.rendered.painting import Light, Surfaces, paint, surfaces_of
from reposer.rendered.poses import Posed, frame_person, pose_figure, sample_pose, to_pixels, visible_joints
from reposer.rendered.raycast import Grid, cast
from reposer.rendered.wardrobe import Identity, sample_identity

Single = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RenderedPeople:
    """N rendered images with what is known about them."""

    images: NDArray[np.uint8]  # (N, H, W, 3) RGB
    parsing: NDArray[np.uint8]  # (N, H, W) LIP-20 labels, 0 where an occluder hides the person
    masks: NDArray[np.bool_]  # (N, H, W) parsing > 0
    keypoints: Single  # (N, 18, 2) x, y; pixel centers have whole coordinates; NaN: hidden or outside
    pids: NDArray[np.int64]  # (N,)
    camids: NDArray[np.int64]  # (N,)
    poses: tuple[Pose, ...]

    def __len__(self) -> int:
        return len(self.images)


@lru_cache(maxsize=512)
def figure_of(identity: Identity) -> tuple[Figure, Surfaces]:
    """The dressed body of a person and its materials."""
    builder = Builder(identity)
    add_head(builder)
    dress_up(builder)
    for add in (add_hair, add_hat, add_glasses, add_scarf, add_bag):
        add(builder)
    figure = builder.build()
    return figure, surfaces_of(figure)


def render_people(
    identities: Sequence[Identity],
    poses: Sequence[Pose],
    cameras: Sequence[Camera],
    size: tuple[int, int] = (128, 64),
    *,
    seeds: Sequence[Sequence[int]] | None = None,
    samples: int = 2,
) -> RenderedPeople:
    """Photograph N people.

    Args:
        identities, poses, cameras: N each; image n shows ``identities[n]`` in ``poses[n]`` seen by
            ``cameras[n]``.
        size: height and width in pixels.
        seeds: N tuples of non-negative integers for what a photograph leaves to chance (framing, place in the
            scene, exposure, noise, occluder); all zero by default.
        samples: samples a pixel along each axis, 1, 2 or 4.

    Raises:
        ValueError: on unequal lengths or an impossible size or number of samples.
    """
    seeds = [(0,)] * len(identities) if seeds is None else seeds
    if not len(identities) == len(poses) == len(cameras) == len(seeds):
        raise ValueError("identities, poses, cameras and seeds must be equally many")
    if samples not in (1, 2, 4) or min(size) < 8:
        raise ValueError(f"samples {samples} must be 1, 2 or 4 and size {size} at least 8 x 8")
    results = [
        _photograph(identity, pose, camera, seed, size, samples)
        for identity, pose, camera, seed in zip(identities, poses, cameras, seeds, strict=True)
    ]
    height, width = size
    images = np.array([r[0] for r in results], np.uint8).reshape(-1, height, width, 3)
    parsing = np.array([r[1] for r in results], np.uint8).reshape(-1, height, width)
    return RenderedPeople(
        images=images,
        parsing=parsing,
        masks=parsing > 0,
        keypoints=np.array([r[2] for r in results], np.float32).reshape(-1, 18, 2),
        pids=np.array([p.pid for p in identities], np.int64),
        camids=np.array([c.camid for c in cameras], np.int64),
        poses=tuple(poses),
    )


def _photograph(
    identity: Identity, pose: Pose, camera: Camera, seed: Sequence[int], size: tuple[int, int], samples: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], Single]:
    """One image, its parsing and keypoints."""
    rng = np.random.default_rng([*seed, 1])
    figure, surfaces = figure_of(identity)
    posed = pose_figure(figure, pose, camera.pitch + rng.normal(0.0, 1.5), rng.normal(0.0, 1.2))
    grid = frame_person(figure, posed, camera, size, samples, rng)
    scene = background(camera, size, rng)
    hits = cast(posed.cones, grid)
    person = paint(figure, surfaces, posed, hits, grid, _light(camera, rng), size, samples)
    _contact_shadow(scene, posed, grid, samples)
    scene *= (np.float32(1.0) - person.cover)[..., None]
    scene += person.color
    parsing, depth = person.parsing, person.depth
    hidden = occluder(camera, size, rng)
    if hidden is not None:
        where, thing = hidden
        scene = np.where(where[..., None], thing, scene)
        parsing[where] = 0
        depth[where] = -np.inf
    return expose(camera, scene, rng), parsing, visible_joints(posed, grid, depth, samples)


def _light(camera: Camera, rng: np.random.Generator) -> Light:
    azimuth = math.radians(camera.sun_azimuth + rng.normal(0, 20))
    sun = np.array([0.62 * math.sin(azimuth), 0.72, 0.62 * math.cos(azimuth)])
    sun /= np.sqrt((sun**2).sum())
    return Light(
        (sun[0], sun[1], sun[2]),
        camera.sun * rng.uniform(0.8, 1.2),
        camera.ambient,
        0.10 * (1 if sun[0] < 0 else -1),
    )


def _contact_shadow(scene: Single, posed: Posed, grid: Grid, samples: int) -> None:
    """Darken the ground around the feet, in place."""
    height, width = scene.shape[:2]
    x, y = to_pixels(posed.joints[[10, 13]], grid, samples).T
    scale = grid.sy / samples
    wide, high = 0.5 * abs(x[0] - x[1]) + 0.26 * scale, 0.5 * abs(y[0] - y[1]) + 0.10 * scale
    center = y.max() + 0.05 * scale
    top, bottom = (int(np.clip(edge, 0, height)) for edge in (center - high, center + high + 1))
    u = (np.arange(width)[None, :] - x.mean()) / wide
    v = (np.arange(top, bottom)[:, None] - center) / high
    dark = np.maximum(1.0 - u * u - v * v, 0.0).astype(np.float32)
    scene[top:bottom] *= (np.float32(1.0) - np.float32(0.45) * dark)[..., None]


# ---- Processes that render: NumPy holds the interpreter between its many small steps, so threads would gain
# nothing.
#
# A worker is ``python -m reposer.rendered.renderer``. It reads one JSON line for each batch, the keys of
# the images, and answers with one JSON line and the raw arrays. Images are pure functions of their keys, so
# nothing else has to travel, and it does not matter who renders which.

Key: TypeAlias = tuple[int, int, int]  # seed, pid, index
Arrays: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]


class RenderWorkers:
    """A few rendering processes; a context manager that ends them."""

    def __init__(self, count: int) -> None:
        source = str(Path(__file__).parents[2])  # so that a worker finds this very package
        paths = [source, os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OMP_NUM_THREADS": "1",
        }
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            for _ in range(count)
        ]
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(count)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()  # it holds nothing that is worth an orderly end
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._threads.shutdown(cancel_futures=True)

    def render(
        self, batches: Sequence[Sequence[Key]], size: tuple[int, int], samples: int
    ) -> Iterator[Arrays]:
        """images (N, H, W, 3), parsing (N, H, W) and keypoints (N, 18, 2) of each batch, in order.

        Raises:
            RuntimeError: a worker failed; its own message went to the error output.
        """
        ahead: deque[Future[Arrays]] = deque()
        waiting = iter(batches)
        for batch in waiting:
            ahead.append(self._threads.submit(self._ask, batch, size, samples))
            if len(ahead) > 2 * len(self._processes):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _ask(self, batch: Sequence[Key], size: tuple[int, int], samples: int) -> Arrays:
        process = self._idle.get()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            request = {"keys": [list(key) for key in batch], "size": list(size), "samples": samples}
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            except OSError as error:
                raise RuntimeError(f"a rendering process ended early: {error}") from error
            n, (height, width) = len(batch), size
            images = _read(process.stdout, n * height * width * 3).reshape(n, height, width, 3)
            parsing = _read(process.stdout, n * height * width).reshape(n, height, width)
            keypoints = _read(process.stdout, n * 18 * 2 * 4).view(np.float32).reshape(n, 18, 2)
            return images, parsing, keypoints
        finally:
            self._idle.put(process)


def _read(stream: IO[bytes], count: int) -> NDArray[np.uint8]:
    data = bytearray(stream.read(count))
    if len(data) != count:
        raise RuntimeError("a rendering process ended early")
    return np.frombuffer(data, np.uint8)


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""

    for line in requests:
        request = json.loads(line)
        shots = [plan_shot(*key) for key in request["keys"]]
        batch = render_shots(shots, tuple(request["size"]), samples=request["samples"])
        for array in (batch.images, batch.parsing, batch.keypoints):
            answers.write(array.tobytes())
        answers.flush()


# ---- Data sets of rendered people in memory: who each image shows, how and where, and batches of them.
#
# Image i of person p under a seed is a pure function of (seed, p, i): person, pose, camera and every byte of
# the picture, whatever the number of people, images, workers, or the batch size.


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


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
