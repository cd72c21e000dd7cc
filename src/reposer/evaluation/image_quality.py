"""How good are generated images? Every wanted metric for every method, per image first and means with
intervals last.

Trivial baselines stand beside the model in every table, and the real-against-real floor beside every Frechet
distance. Images stream through in batches; the result does not depend on their size (networks: up to float32
rounding).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reposer.annotation.interfaces import KeypointDetector
from reposer.data.keypoints import Pose, pose_distance
from reposer.data.packed import PackedPeople
from reposer.data.sources import FurtherSources
from reposer.errors import UserError
from reposer.evaluation.image_sets import ImageQualityReport, RealImages, image_batches
from reposer.evaluation.measurement import MeasuredRow, MeasurementOptions, Measuring, evaluate
from reposer.metrics.protocols import ImageBatch, find_metric
from reposer.structures import PairBatch

# ---- The trivial baselines that stand beside every model: copying the source, and the nearest training pose.
#
# A generator that is worse than the picture of somebody else in a similar pose has learned nothing worth
# having; one that is worse than the unchanged source has done harm.

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


COPY, NEAREST = "copy the source", "nearest pose"
DEFAULT_METRICS = ("ssim", "mask_ssim", "psnr", "l1", "mask_l1")  # those that need no weights

Method = Callable[[PairBatch], Tensor]  # -> uint8 (B, 3, H, W), any device


def evaluate_pairs(
    methods: Mapping[str, Method],
    people: PackedPeople,
    pairs: NDArray[np.int64],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    training: NDArray[np.int64] | None = None,
    reference: Literal["training", "targets"] | None = None,
    detector: KeypointDetector | None = None,
    batch_size: int = 32,
    sources: int = 1,
    beside: bool = True,
    on_progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    **options: Unpack[Measuring],
) -> ImageQualityReport:
    """Measure methods on pairs of prepared people, with "copy the source" and "nearest pose" beside them.

    Args:
        methods: by name; each takes a PairBatch (uint8, CPU) and returns uint8 images (B, 3, H, W).
        pairs: (P, 2) positions of source and target in ``people``.
        metrics: names in ``protocols.METRICS``.
        training: positions of the training people's images: donors of the nearest pose and the reference of
            Frechet distances; None leaves both out.
        reference: of Frechet distances whose protocol leaves it open: all training images, or the distinct
            target images; None takes the former if they are given. The report names it.
        detector: finds the keypoints of generated images, for ``pckh``.
        sources: images of the source person that a batch brings at most, see ``data.sources``.
        beside: false: the methods alone, without trivial rows and the floor.
        on_progress: called with a row's name, its pairs that are done, and all of them.
        options: see ``measurement.Measuring``.

    Raises:
        UserError: an unknown metric, no pairs, or a method that returns something else than such images.
    """
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    source, target = pairs[:, 0], pairs[:, 1]
    every = np.arange(len(pairs))
    measured_poses = any("generated_keypoints" in getattr(find_metric(name), "needs", ()) for name in metrics)
    further = FurtherSources(people)

    def run(
        name: str, method: Method, first: NDArray[np.int64], rows: NDArray[np.int64], sources: int = 1
    ) -> MeasuredRow:
        def batches() -> Iterator[ImageBatch]:
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                batch = further.pair_batch(first[part], target[part], sources)
                images = _checked(name, method(batch), batch.target_image)
                found = torch.from_numpy(detector(images).keypoints) if measured_poses and detector else None
                truth = (batch.target_image, batch.target_mask, batch.target_parsing, batch.target_keypoints)
                yield ImageBatch(images, *truth, found, batch)
                on_progress(name, start + len(part), len(rows))

        return MeasuredRow(rows, batches)

    runs = {name: run(name, method, source, every, sources) for name, method in methods.items()}
    if beside:
        runs[COPY] = run(COPY, _source_image, source, every)
    if beside and training is not None:
        donors = nearest_donors(people, target, np.asarray(training, np.int64))
        runs[NEAREST] = run(NEAREST, _source_image, donors, np.flatnonzero(donors >= 0))

    def real(name: str, indices: NDArray[np.int64]) -> RealImages:
        batches = partial(image_batches, people.images, indices, batch_size)
        return RealImages(f"{name} ({len(indices)})", batches, people.pids[indices])

    sets = {"targets": real("the distinct target images", np.unique(target))}
    if training is not None:
        sets["training"] = real("all training images", np.asarray(training, np.int64))
    names = np.array(people.names)
    columns = {"source": names[source], "target": names[target], "pid": people.pids[target]}
    shared = MeasurementOptions.of(**options)
    known = {"mask", "parsing", "keypoints", *(field.name for field in dataclasses.fields(PairBatch))}
    known |= {"generated_keypoints"} if detector else set()
    chosen = reference or ("targets" if training is None else "training")
    report = evaluate(runs, metrics, columns, people.pids[target], sets, chosen, known, shared, floors=beside)
    if detector is not None and measured_poses:
        report.settings["keypoint_detector"] = f"{detector.info.name} {detector.info.sha256[:12]}".strip()
    return report


def evaluate_images(
    generated: Mapping[str, NDArray[np.uint8]],
    target: NDArray[np.uint8],
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    source: NDArray[np.uint8] | None = None,
    masks: NDArray[np.bool_] | None = None,
    parsing: NDArray[np.uint8] | None = None,
    keypoints: NDArray[np.float32] | None = None,
    names: Sequence[str] | None = None,
    pids: NDArray[np.int64] | None = None,
    reference: NDArray[np.uint8] | None = None,
    batch_size: int = 32,
    **options: Unpack[Measuring],
) -> ImageQualityReport:
    """Measure images that exist already against their true targets; arrays may be memory-mapped.

    Args:
        generated: images (N, H, W, 3) uint8 RGB by method; target i belongs to image i of each.
        source: (N, H, W, 3) adds the row "copy the source".
        masks, parsing: (N, H, W) of the targets. keypoints: (N, J, 2) of the targets.
        names: of the targets. pids: (N,) identities, for intervals over people.
        reference: real training images (M, H, W, 3) for Frechet distances; the targets by default.
        metrics, options: as in ``evaluate_pairs``.

    Raises:
        UserError: an unknown metric, no images, arrays that do not fit together or are no uint8 RGB images,
            bool masks, uint8 parsing maps and float keypoints (N, 18, 2).
    """
    images = dict(generated) | ({COPY: source} if source is not None else {})
    for label, pictures in (("target", target), *images.items(), ("reference", reference)):
        if pictures is not None:
            _check_images(label, pictures)
    every = np.arange(len(target))
    optional = {"mask": masks, "parsing": parsing, "keypoints": keypoints}
    given = {field: np.asarray(array) for field, array in optional.items() if array is not None}
    for label, array in (*images.items(), *given.items(), ("names", names), ("pids", pids)):
        if array is not None and len(array) != len(target):
            raise UserError(
                f"{label} has {len(array)} rows, the targets have {len(target)}", "give one for each target"
            )
    for label, truth in given.items():
        _check_truth(label, truth, target.shape[1:3])

    def run(name: str) -> MeasuredRow:
        def batches() -> Iterator[ImageBatch]:
            for start in range(0, len(target), batch_size):
                part = slice(start, start + batch_size)
                truth = _tensor(target[part])
                fields: dict[str, Any] = {
                    field: torch.from_numpy(np.array(array[part])) for field, array in given.items()
                }
                yield ImageBatch(_checked(name, _tensor(images[name][part]), truth), truth, **fields)

        return MeasuredRow(every, batches)

    def real(label: str, array: NDArray[np.uint8], people: NDArray[np.int64] | None) -> RealImages:
        everything = np.arange(len(array))
        return RealImages(
            f"{label} ({len(array)})", lambda: image_batches(array, everything, batch_size), people
        )

    sets = {"targets": real("the target images", target, pids)}
    if reference is not None:
        sets["training"] = real("the reference images", reference, None)
    named = [str(i) for i in every] if names is None else list(names)
    columns: dict[str, Sequence[str] | NDArray[np.int64]] = {"target": named}
    if pids is not None:
        columns["pid"] = np.asarray(pids, np.int64)
    shared = MeasurementOptions.of(**options)
    chosen = "targets" if reference is None else "training"
    return evaluate({n: run(n) for n in images}, metrics, columns, pids, sets, chosen, set(given), shared)


def _check_images(label: str, images: object) -> None:
    """Whatever is no stack of uint8 RGB pictures would be measured wrongly, or fail far from its cause."""
    if not isinstance(images, np.ndarray):
        raise UserError(
            f"{label}: is a {type(images).__name__}, not an array of equally large images",
            "stack images of one size into (N, H, W, 3) uint8",
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise UserError(
            f"{label}: holds {images.dtype} {images.shape}, not uint8 RGB images (N, H, W, 3)",
            "convert floats with reposer.images.to_uint8, repeat a gray channel three times",
        )


def _check_truth(label: str, array: NDArray[Any], size: tuple[int, ...]) -> None:
    """Masks of 0 and 255 would weigh 255-fold; a map of another size belongs to another picture."""
    if label == "keypoints":
        wrong = (
            array.ndim != 3 or array.shape[1:] != (18, 2) or array.dtype.kind != "f" or np.isinf(array).any()
        )
        wanted = "floats (N, 18, 2): x, y of OpenPose's joints, NaN where missing"
    else:
        kind = np.bool_ if label == "mask" else np.uint8
        wrong = array.dtype != kind or array.shape[1:] != size
        wanted = f"{np.dtype(kind).name} (N, {size[0]}, {size[1]})"
    if wrong:
        raise UserError(f"{label}: holds {array.dtype} {array.shape}", f"give {wanted}")


def nearest_donors(
    people: PackedPeople, target: NDArray[np.int64], training: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(P,) training image in the pose nearest to each target's, -1 where there is none."""
    distinct, position = np.unique(target, return_inverse=True)
    nearest = nearest_poses(
        people.keypoints[distinct],
        people.pids[distinct],
        people.keypoints[training],
        people.pids[training],
        [people.names[i] for i in training],
    )
    return np.where(nearest >= 0, training[nearest], -1)[position]


def _source_image(batch: PairBatch) -> Tensor:
    return batch.source_image


def _checked(method: str, images: Tensor, truth: Tensor) -> Tensor:
    if images.dtype != torch.uint8 or images.shape != truth.shape:
        raise UserError(
            f"method {method}: gave {images.dtype} {tuple(images.shape)}, not uint8 {tuple(truth.shape)}",
            "convert its images with reposer.images.to_uint8",
        )
    return images


def _tensor(images: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) -> (B, 3, H, W)."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)
