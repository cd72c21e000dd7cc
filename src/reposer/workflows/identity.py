"""Is it still the same person? Generated images as queries against real images, under a Re-ID network.

The protocol is Market-1501's: single query, the query's own camera left out for its identity. A generated
query keeps the identity and the camera of its source. Three rows: the real queries; the same queries
re-posed by another image of the same person; re-posed by an image of another person, whose garment classes
come along. The second row is told apart, too, by whether source and target face the same way: what a source
does not show nobody can carry.

No picture is found by what it was made of: further sources are of the query's camera, and where the
background is the donor's, the person's images in the donor's camera do not count either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from reposer.data.orientation import UNKNOWN, face_share, orientation
from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.data.sources import FurtherSources
from reposer.errors import UserError
from reposer.evaluation.reidentification import ReidResult, evaluate_reid
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer, with_predicted_maps, with_read_maps
from reposer.metrics.retrieval import per_query
from reposer.models.embedding import Embedding, EmbeddingInfo
from reposer.progress import Stages
from reposer.reid.features import embed_images, extract_features
from reposer.reid.search import with_cameras
from reposer.storage.outputs import claim_outputs, holds_keys, is_older, write_output
from reposer.storage.paths import made_folder
from reposer.trained.networks import Trained
from reposer.workflows.reid_features import tested_rows

REAL, OWN_POSE, OTHER_POSE = "real queries", "generated, own pose", "generated, another person's pose"
ALIKE, TURNED = ", facing alike", ", turned"  # of the own pose, where both ways are known
BATCH = 64
IDENTITY = "identity.json"
NO_MAPS = ("queries_without_map", "lenders_without_map")  # counts of generated rows, where they are not 0


def identity_kept(
    model: PoseTransfer,
    embedding: nn.Module,
    people: PackedPeople,
    *,
    background: str = "generated",
    sources: int = 1,
    seed: int = 0,
    predictor: MapPredictor | None = None,
) -> dict[str, ReidResult]:
    """Scores of real and generated queries, by row.

    Args:
        model: the generator.
        embedding: a Re-ID network that was trained on other people, on real (or rendered) images only.
        people: with the splits query and gallery, or with held-out people (val), whose first image in each
            camera is a query then.
        background: of the generated queries.
        sources: images of the person in the query's camera that it is made from, at most.
        seed: of the choice of donors.
        predictor: adds both generated rows with target maps that it makes of the donor's pose and the
            source's garments, if the model reads any.

    Images whose label map is read and missing are left out; the counts of the generated rows say how many.

    Raises:
        UserError: nobody to test on, nobody whose pose can be lent, or no query with a map that is read.
    """
    query, gallery = tested_rows(people)
    against = extract_features(embedding, people, gallery)
    real = extract_features(embedding, people, query)
    (real, against), _ = with_cameras(real, against)
    test, cameras = np.concatenate([query, gallery]), people.camids.copy()
    cameras[test] = np.concatenate([real.camids, against.camids])
    results, told = {REAL: evaluate_reid(real, against)}, Stages()
    for one, maps in ((model, ""), (with_predicted_maps(model, predictor), ", predicted maps")):
        if one is None:
            continue
        makers, targets = with_read_maps(one, people, test, background)
        asking, lenders = np.isin(query, makers), _lenders(one, people, targets)
        mapless = int((people.pids[test] > 0).sum() - (people.pids[targets] > 0).sum())
        without = dict(zip(NO_MAPS, (int((~asking).sum()), mapless), strict=True))
        further = FurtherSources(people, makers, cameras=cameras)
        for row, same in ((OWN_POSE, True), (OTHER_POSE, False)):
            donors = _donors(people.pids, query, lenders, same, np.random.default_rng([seed, same]))
            told(f"queries, {row + maps}", 0, len(query))
            asked = np.flatnonzero((donors >= 0) & asking)
            if not len(asked):
                raise UserError(f"{row + maps}: no query with a label map is lent a pose", "annotate more")
            images = _generate(one, further, query[asked], donors[asked], background, sources)
            features = replace(real.rows(asked), features=embed_images(embedding, images))
            scenes = cameras[donors[asked]] if background == "donor" else None
            result = evaluate_reid(features, against, scenes=scenes)
            left_out = {name: count for name, count in without.items() if count}
            results[row + maps] = replace(result, counts=result.counts | left_out)
            apart = _turned(people, query[asked], donors[asked]) if same else {}
            for name, chosen in apart.items():
                if (result.scores.hits[chosen] > 0).any():
                    there = None if scenes is None else scenes[chosen]
                    results[row + maps + name] = evaluate_reid(features.rows(chosen), against, scenes=there)
    return results


def measure_identity(
    model: PoseTransfer,
    judge: Trained[Embedding, EmbeddingInfo],
    prepared: Path,
    out: Path,
    background: str = "generated",
    sources: int = 1,
    *,
    predictor: MapPredictor | None = None,
) -> str:
    """Measure under a Re-ID network on a prepared folder; writes ``out``/identity.json.

    Args:
        model, background, sources, predictor: as for :func:`identity_kept`.
        judge: of ``reid_features.open_judge``.
        prepared, out: folders of the people, and of what is written.

    Returns:
        the table, as Markdown.

    Raises:
        UserError: as :func:`identity_kept` and :func:`claim_identity`.
    """
    claim_identity(out)
    people = PackedPeople.open(prepared / PACKED)
    model = model.at_size(people.size)
    results = identity_kept(
        model, judge.network, people, background=background, sources=sources, predictor=predictor
    )
    return write_identity(out, results, judge.info, sources)


def claim_identity(out: Path) -> None:
    """Refuse, before any work, to replace an identity.json that no evaluation wrote.

    Raises:
        UserError: as ``outputs.claim_outputs``.
    """
    claim_outputs(out, [IDENTITY], older=is_older(out / IDENTITY, holds_keys("embedding", "rows")))


def write_identity(out: Path, results: dict[str, ReidResult], info: EmbeddingInfo, sources: int = 1) -> str:
    """Write identity.json, with the number of sources where it is not 1, and return the table as Markdown."""
    counts, real = results[REAL].counts, {row: _real_rank1(results[REAL], r) for row, r in results.items()}
    lines = [
        *identity_table({row: (r.values.rank1, r.values.mAP_step, real[row]) for row, r in results.items()}),
        "",
        f"Re-ID network: {info.embedding['backbone']}, trained on {info.trained_on}; counts: {counts}.",
    ]
    for row, result in results.items():
        queries, lenders = (result.counts.get(name, 0) for name in NO_MAPS)
        if queries or lenders:
            lines.append(f"{row}: without a label map, left out: {queries:,} queries, {lenders:,} lenders.")
    document: dict[str, Any] = {
        "embedding": info.model_dump(mode="json"),
        "rows": {r: v.to_json() | {"real_rank1": real[r]} for r, v in results.items()},
    }
    if sources != 1:
        lines.append(f"Generated queries are made of up to {sources} images of the person.")
        document["sources"] = sources
    made_folder(out)
    claim_identity(out)
    write_output(out / IDENTITY, json.dumps(document, indent=1).encode())
    return "\n".join(lines)


def identity_table(scores: Mapping[str, tuple[float, float, float]]) -> list[str]:
    """Rank-1 and mAP of each row as Markdown, and its share of the third number: rank-1 of real queries."""
    lines = ["| queries | rank-1 | mAP (step) | of real rank-1 |", "| --- | ---: | ---: | ---: |"]
    for row, (rank1, mean, real) in scores.items():
        share = rank1 / real if real else float("nan")
        lines.append(f"| {row} | {rank1:.1%} | {mean:.1%} | {share:.1%} |")
    return lines


def _real_rank1(real: ReidResult, one: ReidResult) -> float:
    """Rank-1 of the real queries of which this row counts generated ones."""
    names = np.array(one.asked.names)[one.scores.hits > 0]
    counted = np.isin(real.asked.names, names) & (real.scores.hits > 0)
    return float(per_query(real.scores.worst)["rank1"][counted].mean()) if counted.any() else float("nan")


def _turned(
    people: PackedPeople, sources: NDArray[np.int64], targets: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """Places of the pairs (B,) that face alike, to an eighth of a turn, and of those that do not."""
    own, asked = (
        orientation(people.keypoints[rows], face_share(people.parsing[rows])).astype(np.int64)
        for rows in (sources, targets)
    )
    apart = np.minimum((own - asked) % 8, (asked - own) % 8)
    known = (own != UNKNOWN) & (asked != UNKNOWN)
    return {ALIKE: np.flatnonzero(known & (apart <= 1)), TURNED: np.flatnonzero(known & (apart > 1))}


def _lenders(model: PoseTransfer, people: PackedPeople, test: NDArray[np.int64]) -> NDArray[np.int64]:
    """The test images that can lend a pose: of people, no distractors or junk; where maps are predicted
    from keypoints, those with one."""
    test = test[people.pids[test] > 0]
    if not len(test):
        raise UserError("no image of a test person has a label map", "annotate the test images too")
    if getattr(model, "maps", "given") == "predicted":
        test = test[np.isfinite(people.keypoints[test].sum(axis=2)).any(axis=1)]  # NaN: a missing joint
    if not len(test):
        raise UserError("no test image has keypoints to predict label maps from", "leave out --predictor")
    return test


def _donors(
    pids: NDArray[np.int64],
    query: NDArray[np.int64],
    lenders: NDArray[np.int64],
    same: bool,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Lenders of poses: of the same person (another image, else itself) or of another person; -1: nobody.

    Raises:
        UserError: nobody lends anybody a pose.
    """
    donors = []
    for source in query.tolist():
        choice = lenders[((pids[lenders] == pids[source]) == same) & (lenders != source)]
        if len(choice):
            donors.append(rng.choice(choice))
        else:
            donors.append(source if same and source in lenders else -1)
    if max(donors) < 0:
        whose = "the same person" if same else "another person"
        raise UserError(f"no test image can lend {whose} its pose", "add test images of more people")
    return np.array(donors, np.int64)


def _generate(
    model: PoseTransfer,
    further: FurtherSources,
    sources: NDArray[np.int64],
    donors: NDArray[np.int64],
    background: str,
    sources_each: int,
) -> NDArray[np.uint8]:
    """(N, H, W, 3) generated images."""
    parts = []
    for start in range(0, len(sources), BATCH):
        chosen = slice(start, start + BATCH)
        batch = further.pair_batch(sources[chosen], donors[chosen], sources_each)
        parts.append(model(batch, background).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)
