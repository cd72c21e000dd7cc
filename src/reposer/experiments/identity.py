"""Is it still the same person? Generated images as queries against real images, under a Re-ID network.

The protocol is Market-1501's: single query, the query's own camera left out for its identity. A generated
query keeps the identity and the camera of its source. Three rows: the real queries; the same queries re-posed
by another image of the same person; re-posed by an image of another person, whose garment classes come along.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from reposer.data.packed import PackedPeople
from reposer.data.preparing.prepare import PACKED
from reposer.errors import UserError
from reposer.evaluation.reidentification import ReidResult, evaluate_reid
from reposer.experiments.reid_rows import GALLERY, QUERY, check_data, tested_rows, training_note
from reposer.files import claim_outputs, holds_keys, is_older, write_output
from reposer.generation.pose_transfer import PoseTransfer
from reposer.models.embedding_files import embedding_from_run
from reposer.models.pretrained import EmbeddingInfo
from reposer.reid.features import embed_images, extract_features
from reposer.structures import FeatureSet

REAL, OWN_POSE, OTHER_POSE = "real queries", "generated, own pose", "generated, another person's pose"
BATCH = 64
IDENTITY = "identity.json"


def identity_kept(
    model: PoseTransfer,
    embedding: nn.Module,
    people: PackedPeople,
    *,
    background: str = "generated",
    seed: int = 0,
) -> dict[str, ReidResult]:
    """Scores of real and generated queries, by row.

    Args:
        model: the generator.
        embedding: a Re-ID network that was trained on other people, on real (or rendered) images only.
        people: with the splits query and gallery, or with held-out people (val), whose first image in each
            camera is a query then.
        background: of the generated queries.
        seed: of the choice of donors.

    Raises:
        UserError: nobody to test on, or nobody whose pose can be lent.
    """
    query, gallery = tested_rows(people)
    against = extract_features(embedding, people, gallery)
    real = extract_features(embedding, people, query)
    results = {REAL: evaluate_reid(real, against)}
    test = _lenders(model, people, np.concatenate([query, gallery]))
    for row, same in ((OWN_POSE, True), (OTHER_POSE, False)):
        donors = _donors(people.pids, query, test, same, np.random.default_rng([seed, same]))
        images = _generate(model, people, query, donors, background)
        features = FeatureSet(embed_images(embedding, images), real.pids, real.camids, real.names)
        results[row] = evaluate_reid(features, against)
    return results


def measure_identity(
    model: PoseTransfer, reid_run: Path, prepared: Path, out: Path, *, background: str = "generated"
) -> str:
    """Measure under the network of a Re-ID run on a prepared folder; writes ``out``/identity.json.

    Returns:
        the table, as Markdown.

    Raises:
        UserError: as :func:`identity_kept`; the network was trained on the people it is tested on, or the
            folder was prepared anew since.
    """
    claim_identity(out)
    embedding, info = embedding_from_run(reid_run)
    people = PackedPeople.open(prepared / PACKED)
    check_data(people, reid_run)
    query, gallery = tested_rows(people)
    training_note(info, people, {QUERY: query, GALLERY: gallery})  # refuses test people that it has learned
    results = identity_kept(model, embedding, people, background=background)
    return write_identity(out, results, info)


def claim_identity(out: Path) -> None:
    """Refuse, before any work, to replace an identity.json that no evaluation wrote.

    Raises:
        UserError: as ``files.claim_outputs``.
    """
    claim_outputs(out, [IDENTITY], older=is_older(out / IDENTITY, holds_keys("embedding", "rows")))


def write_identity(out: Path, results: dict[str, ReidResult], info: EmbeddingInfo) -> str:
    """Write identity.json and return the table as Markdown."""
    lines = ["| queries | rank-1 | mAP (step) | of real rank-1 |", "| --- | ---: | ---: | ---: |"]
    top = results[REAL].values.rank1
    for row, result in results.items():
        values, share = result.values, result.values.rank1 / top if top else float("nan")
        lines.append(f"| {row} | {values.rank1:.1%} | {values.mAP_step:.1%} | {share:.1%} |")
    counts = results[REAL].counts
    lines += [
        "",
        f"Re-ID network: {info.embedding['backbone']}, trained on {info.trained_on}; counts: {counts}.",
    ]
    document = {
        "embedding": info.model_dump(mode="json"),
        "rows": {r: v.to_json() for r, v in results.items()},
    }
    out.mkdir(parents=True, exist_ok=True)
    claim_identity(out)
    write_output(out / IDENTITY, json.dumps(document, indent=1).encode())
    return "\n".join(lines)


def _lenders(model: PoseTransfer, people: PackedPeople, test: NDArray[np.int64]) -> NDArray[np.int64]:
    """The test images that can lend a pose: those with a key-point, where maps are predicted from them."""
    if getattr(model, "maps", "given") == "predicted":
        test = test[np.isfinite(people.keypoints[test].sum(axis=2)).any(axis=1)]  # NaN: a missing joint
    if not len(test):
        raise UserError("no test image has key-points to predict maps from", "leave out --predictor")
    return test


def _donors(
    pids: NDArray[np.int64],
    query: NDArray[np.int64],
    lenders: NDArray[np.int64],
    same: bool,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """A lender for each query: of the same person (another image, else itself) or of another person."""
    donors = []
    for source in query.tolist():
        choice = lenders[((pids[lenders] == pids[source]) == same) & (lenders != source)]
        if not len(choice) and source in lenders:
            donors.append(source)
        else:
            donors.append(rng.choice(choice if len(choice) else lenders))
    return np.array(donors, np.int64)


def _generate(
    model: PoseTransfer,
    people: PackedPeople,
    sources: NDArray[np.int64],
    donors: NDArray[np.int64],
    background: str,
) -> NDArray[np.uint8]:
    """(N, H, W, 3) generated images."""
    parts = []
    for start in range(0, len(sources), BATCH):
        batch = people.pair_batch(sources[start : start + BATCH], donors[start : start + BATCH])
        parts.append(model(batch, background).permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)
