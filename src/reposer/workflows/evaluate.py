"""What ``reposer evaluate`` does: a generator, a predictor of label maps, the identity of who is shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from reposer.annotation.interfaces import KeypointDetector
from reposer.annotation.keypoints import open_keypoint_detector
from reposer.config import read_json
from reposer.data.packed import PackedPeople
from reposer.data.pairs import load_pairs
from reposer.data.parsing import colorize
from reposer.data.preparing.prepare import PACKED, PAIRS
from reposer.data.sources import FurtherSources, check_sources
from reposer.errors import UserError
from reposer.evaluation.image_quality import DEFAULT_METRICS, Method, evaluate_pairs
from reposer.evaluation.image_sets import ImageQualityReport, claim_quality
from reposer.evaluation.map_quality import MapQualityReport, Maps, claim_maps, evaluate_maps
from reposer.evaluation.reidentification import ReidResult, evaluate_reid
from reposer.generation.pose_transfer import MapPredictor, PoseTransfer, with_read_maps
from reposer.generation.stitching import check_background
from reposer.images import encode_png
from reposer.metrics.protocols import find_metric, weights_in
from reposer.models.embedding import Embedding, EmbeddingInfo
from reposer.models.generators import PREDICTORS
from reposer.progress import Stages
from reposer.reid.features import embed_images, extract_features
from reposer.reid.search import with_cameras
from reposer.sections import draw_grid
from reposer.storage.outputs import claim_outputs, holds_keys, is_older, write_output
from reposer.storage.paths import contained, made_folder
from reposer.structures import PairBatch
from reposer.trained.networks import PREDICTOR, Trained
from reposer.workflows.reid_features import tested_rows

# ---- Measure a trained generator on pairs of a prepared folder: the rows, the table and the pictures.

PREDICTED = "model, predicted maps"
PICTURE = "people.png"
GRID_PEOPLE = 64  # pairs in the picture, evenly spread over the list
GRID_TITLES = ("source", "target map", "generated", "true target")


def open_detector(text: str, accept_license: bool) -> KeypointDetector:
    """ "keypointrcnn", or "keypointrcnn=FILE" and "vitpose=FOLDER" with weights of one's own."""
    name, _, place = text.partition("=")
    return open_keypoint_detector(name, place or None, accept_license=accept_license)


def evaluate_model(
    model: PoseTransfer,
    prepared: Path,
    out: Path,
    *,
    pairs_csv: Path | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    weights: Path | None = None,
    backgrounds: Sequence[str] = ("generated",),
    sources: Sequence[int] = (1,),
    limit: int | None = None,
    predictor: MapPredictor | None = None,
    detector: KeypointDetector | None = None,
) -> ImageQualityReport:
    """Write image_quality.{json,md,parquet} and a grid of 64 people into ``out``.

    Args:
        model: the generator; each background is a row of its own.
        prepared: folder written by ``reposer prepare``.
        out: made if missing.
        pairs_csv: columns from,to; default: the validation pairs of ``prepared``.
        metrics: names in ``metrics.protocols.METRICS``.
        weights: folder with .safetensors files of metric networks; default: the weights folder only.
        backgrounds: of ``generation.stitching.BACKGROUNDS``.
        sources: numbers of images of the source person; each is a row of its own, on the first background.
        limit: the first so many pairs only.
        predictor: adds the model with predicted target maps as a row, if it reads any.
        detector: of keypoints, for pckh.

    Raises:
        UserError: no pairs, unknown names, another image size, or an unknown metric; pckh without a detector,
            or a detector that no metric reads; no background, an unknown one, or no number of sources.
    """
    if not backgrounds or not sources:
        raise UserError("evaluate: no background or no number of sources: nothing to measure", "give one")
    backgrounds = [check_background(name) for name in backgrounds]
    _check_detector(metrics, detector)
    claim_quality(out, PICTURE)
    people = PackedPeople.open(prepared / PACKED)
    model = model.at_size(people.size)
    if people.size != model.size:
        raise UserError(
            f"{prepared}: images are {people.size}, the model works at {model.size}",
            "prepare at the model's size",
        )
    pairs = read_named_pairs(pairs_csv or contained(prepared, PAIRS["val"]), people)[:limit]
    methods: dict[str, Method] = {}
    check_sources(*sources)
    for background in backgrounds:
        label = "model" if background == "generated" else f"model, {background}'s background"
        methods[label] = _method(model, background, sources[0])
    for count in sources[1:]:
        methods[f"model, {count} sources"] = _method(model, backgrounds[0], count)
    if (predicting := _predicting(model, predictor)) is not None:
        methods[PREDICTED] = _method(predicting, "generated", sources[0])
    report = evaluate_pairs(
        methods,
        people,
        pairs,
        metrics,
        training=np.flatnonzero(people.splits == "train"),
        weights=weights_in(weights) if weights else None,
        detector=detector,
        sources=max(sources),
        on_progress=Stages(),
    )
    report.write(out)
    write_output(out / PICTURE, encode_png(pairs_grid(model, people, pairs, sources[0])))
    return report


def _check_detector(metrics: Sequence[str], detector: KeypointDetector | None) -> None:
    """A metric that was asked for by name is measured, or the call fails: no table without it."""
    readers = [name for name in metrics if "generated_keypoints" in getattr(find_metric(name), "needs", ())]
    if readers and detector is None:
        raise UserError(
            f"{readers[0]}: needs a detector of the keypoints of the generated images",
            "add --keypoint-detector keypointrcnn, or vitpose=FOLDER",
        )
    if detector is not None and not readers:
        raise UserError("--keypoint-detector: no metric reads it", "add pckh to --metrics, or leave it out")


def read_named_pairs(path: Path, people: PackedPeople) -> NDArray[np.int64]:
    """(P, 2) indices of a CSV of pairs; every unknown name is an error.

    Raises:
        UserError: the first row that cannot be used, or no row at all.
    """
    pairs = load_pairs(path, people.name_index())
    if not len(pairs):
        raise UserError(f"{path}: holds no pairs", "give a list with at least one row below from,to")
    return pairs


def pairs_grid(
    model: PoseTransfer, people: PackedPeople, pairs: NDArray[np.int64], sources: int = 1
) -> NDArray[np.uint8]:
    """Source, target map, generated and true target of evenly spread pairs, as one picture."""
    chosen = pairs[np.unique(np.linspace(0, len(pairs) - 1, GRID_PEOPLE).round().astype(int))]
    batch = FurtherSources(people).pair_batch(chosen[:, 0], chosen[:, 1], sources)
    columns = (
        list(people.images[chosen[:, 0]]),
        [colorize(labels) for labels in people.parsing[chosen[:, 1]]],
        list(model(batch).permute(0, 2, 3, 1).numpy()),
        list(people.images[chosen[:, 1]]),
    )
    return draw_grid(list(zip(*columns, strict=True)), GRID_TITLES, scale=1, groups=4)


def _method(model: PoseTransfer, background: str, sources: int) -> Method:
    def method(batch: PairBatch) -> object:
        more = batch.more_sources
        if more is not None:
            more = more.first(sources - 1)
        return model(replace(batch, more_sources=more), background)

    return method  # type: ignore[return-value]


# ---- Measure a predictor of label maps on pairs of a prepared folder: the table and the maps of 64 pairs.

MAP_GRID_TITLES = ("source", "its map", "predicted", "true map", "true target")


def is_predictor(name: str) -> bool:
    """Whether this is a predictor of label maps: the shipped one, a run folder, or an exported folder."""
    if name in PREDICTOR.shipped:
        return True
    path = Path(name) / "config.json"
    if not path.is_file():
        return False
    settings = read_json(path)
    return "predictor" in settings or settings.get("generator") in PREDICTORS


def evaluate_predictor(
    predictor: MapPredictor,
    prepared: Path,
    out: Path,
    *,
    pairs_csv: Path | None = None,
    limit: int | None = None,
) -> MapQualityReport:
    """Write map_quality.{json,md,parquet} and maps.png into ``out``.

    Args:
        prepared: folder written by ``reposer prepare``.
        pairs_csv: columns from,to; default: the validation pairs of ``prepared``.
        limit: the first so many pairs only.

    Raises:
        UserError: no pairs, unknown names, or another image size.
    """
    claim_maps(out, "maps.png")
    people = PackedPeople.open(prepared / PACKED)
    if tuple(people.size) != tuple(predictor.config.size):
        raise UserError(
            f"{prepared}: images are {people.size}, the predictor works at {predictor.config.size}",
            "prepare at its size",
        )
    pairs = read_named_pairs(pairs_csv or contained(prepared, PAIRS["val"]), people)[:limit]

    def predict(batch: PairBatch) -> Maps:
        parsing, mask = predictor(batch)
        return parsing.cpu().numpy(), mask.cpu().numpy()

    training = np.flatnonzero(people.splits == "train")
    report = evaluate_maps({"predictor": predict}, people, pairs, training=training)
    report.write(out)
    write_output(out / "maps.png", encode_png(_grid(predictor, people, pairs)))
    return report


def _grid(predictor: MapPredictor, people: PackedPeople, pairs: NDArray[np.int64]) -> NDArray[np.uint8]:
    chosen = pairs[np.unique(np.linspace(0, len(pairs) - 1, GRID_PEOPLE).round().astype(int))]
    sources, targets = chosen.T
    predicted = predictor(people.pair_batch(sources, targets))[0].cpu().numpy()
    columns = (
        list(people.images[sources]),
        [colorize(labels) for labels in people.parsing[sources]],
        [colorize(labels) for labels in predicted],
        [colorize(labels) for labels in people.parsing[targets]],
        list(people.images[targets]),
    )
    return draw_grid(list(zip(*columns, strict=True)), MAP_GRID_TITLES, scale=1, groups=4)


# ---- Is it still the same person? Generated images as queries against real images, under a Re-ID network.
#
# The protocol is Market-1501's: single query, the query's own camera left out for its identity. A generated
# query keeps the identity and the camera of its source. Three rows: the real queries; the same queries
# re-posed by another image of the same person; re-posed by an image of another person, whose garment classes
# come along. No picture is found by what it was made of: further sources are of the query's camera, and where
# the background is the donor's, the person's images in the donor's camera do not count either.

REAL, OWN_POSE, OTHER_POSE = "real queries", "generated, own pose", "generated, another person's pose"
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
    for one, maps in ((model, ""), (_predicting(model, predictor), ", predicted maps")):
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
    return write_identity(out, results, judge.info)


def claim_identity(out: Path) -> None:
    """Refuse, before any work, to replace an identity.json that no evaluation wrote.

    Raises:
        UserError: as ``outputs.claim_outputs``.
    """
    claim_outputs(out, [IDENTITY], older=is_older(out / IDENTITY, holds_keys("embedding", "rows")))


def write_identity(out: Path, results: dict[str, ReidResult], info: EmbeddingInfo) -> str:
    """Write identity.json and return the table as Markdown."""
    counts = results[REAL].counts
    lines = [
        *identity_table({row: (r.values.rank1, r.values.mAP_step) for row, r in results.items()}),
        "",
        f"Re-ID network: {info.embedding['backbone']}, trained on {info.trained_on}; counts: {counts}.",
    ]
    for row, result in results.items():
        queries, lenders = (result.counts.get(name, 0) for name in NO_MAPS)
        if queries or lenders:
            lines.append(f"{row}: without a label map, left out: {queries:,} queries, {lenders:,} lenders.")
    document = {
        "embedding": info.model_dump(mode="json"),
        "rows": {r: v.to_json() for r, v in results.items()},
    }
    made_folder(out)
    claim_identity(out)
    write_output(out / IDENTITY, json.dumps(document, indent=1).encode())
    return "\n".join(lines)


def identity_table(scores: Mapping[str, tuple[float, float]]) -> list[str]:
    """Rank-1 and mAP of each row as Markdown, and the share of the first row's rank-1: of real queries."""
    lines = ["| queries | rank-1 | mAP (step) | of real rank-1 |", "| --- | ---: | ---: | ---: |"]
    top = next(iter(scores.values()))[0]
    for row, (rank1, mean) in scores.items():
        share = rank1 / top if top else float("nan")
        lines.append(f"| {row} | {rank1:.1%} | {mean:.1%} | {share:.1%} |")
    return lines


def _predicting(model: PoseTransfer, predictor: MapPredictor | None) -> PoseTransfer | None:
    """The model with maps of the predictor; None without one, or where the model reads no target maps."""
    if predictor is None or not {"target_parsing", "target_mask"} & set(model.needs()):
        return None
    return model.with_predictor(predictor, "predicted").at_size(model.size)


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
