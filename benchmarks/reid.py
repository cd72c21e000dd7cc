"""Re-ID search, scores, metric learning and re-ranking at Market-1501's size, beside the bare product.

Seeded unit features and labels: 3,368 queries, 15,913 gallery images, 2,048 numbers each, 12,936 for
training. Seconds are the machine's, so every bar is a ratio to what is timed in turn in the same run: the
float32 product of all features, a full argsort, the forward pass, or what a fit cannot do without (two
float64 Gram matrices and an eigenproblem of their size). Memory is the peak above the inputs (Linux: VmHWM,
reset before each part). Usage:
OMP_NUM_THREADS=2 python benchmarks/reid.py [--quick] [--repeats N] [--skip-rerank]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from reposer.evaluation.reidentification import evaluate_reid
from reposer.metrics.retrieval import RetrievalProtocol, cmc_curve, mean_values
from reposer.models.embedding import Embedding
from reposer.reid.distances import euclidean
from reposer.reid.features import embed_images
from reposer.reid.metric_learners import KISSME, XQDA
from reposer.reid.rerank import k_reciprocal
from reposer.structures import FeatureSet

SEED = 0
# queries, gallery, training images, features, people on each side
MARKET = (
    3_368,
    15_913,
    12_936,
    2_048,
    750,
)
QUICK = (300, 1_500, 1_200, 128, 70)
BARS = {
    "ranking_over_argsort": 0.5,
    "chunked_over_gemm": 1.3,
    "chunked_extra_gb": 0.5,
    "rerank_over_gemm": 1.5,
    "rerank_extra_gb": 2.0,
    "xqda_over_grams": 2.5,
    "kissme_over_grams": 2.5,
    "extract_fraction_of_forward": 0.85,
}


class Part(NamedTuple):
    """One timed piece of work."""

    seconds: list[float]
    processor: list[float]  # seconds of all threads together: what a busy machine disturbs least
    extra_gb: float  # largest over the repeats


def unit_people(rng: np.random.Generator, count: int, size: int, low: int, high: int) -> FeatureSet:
    """Unit float32 features of people ``low`` to ``high`` - 1 with seeded labels from six cameras."""
    pids, camids = rng.integers(low, high, count), rng.integers(1, 7, count)
    features = rng.standard_normal((count, size), np.float32)
    centers = np.random.default_rng(SEED).standard_normal((high, size), np.float32)
    for start in range(0, count, 1_024):
        features[start : start + 1_024] += 0.5 * centers[pids[start : start + 1_024]]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return FeatureSet(features, pids, camids, tuple(map(str, range(count))))


def memory_gb(field: str) -> float:
    """VmRSS or VmHWM of this process."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024 / 1e9


def timed(work: Callable[[], object]) -> Part:
    """Run once; time and peak memory above what was there."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before = memory_gb("VmRSS")
    start, processor = time.perf_counter(), time.process_time()
    work()
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    return Part([seconds], [processor], memory_gb("VmHWM") - before)


def in_turn(arms: dict[str, Callable[[], object]], repeats: int) -> dict[str, Part]:
    """Every arm ``repeats`` times, alternating, so that a busy moment of the machine hits all of them."""
    parts: dict[str, Part] = {}
    for _ in range(repeats):
        for name, work in arms.items():
            part, old = timed(work), parts.get(name, Part([], [], 0.0))
            extra_gb = max(old.extra_gb, part.extra_gb)
            parts[name] = Part(old.seconds + part.seconds, old.processor + part.processor, extra_gb)
    return parts


def bare_product(left: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    """left @ right.T in float32, in blocks of rows into one buffer."""
    a, b = torch.from_numpy(left), torch.from_numpy(right)
    step = max(1, (32 << 20) // (4 * len(right)))
    buffer = torch.empty(step, len(right))
    for start in range(0, len(left), step):
        rows = a[start : start + step]
        torch.mm(rows, b.T, out=buffer[: len(rows)])


def score_matrix(protocol: RetrievalProtocol, distance: NDArray[np.float32]) -> None:
    """All metrics of a distance matrix that is already there."""
    scores = protocol.score(distance)
    mean_values(scores), mean_values(scores, "best"), cmc_curve(scores)


def search_parts(query: FeatureSet, gallery: FeatureSet, repeats: int) -> dict[str, Part]:
    """Ranking from a matrix, the whole evaluation in blocks, and what they are compared with."""
    parts = in_turn(
        {
            "gemm": lambda: bare_product(query.features, gallery.features),
            "chunked": lambda: evaluate_reid(query, gallery),
        },
        repeats,
    )
    protocol = RetrievalProtocol(query.pids, query.camids, gallery.pids, gallery.camids)
    distance = euclidean(query.features, gallery.features).matrix()
    return parts | in_turn(
        {
            "ranking": lambda: score_matrix(protocol, distance),
            "argsort": lambda: sum(int(np.argsort(row)[0]) for row in distance),  # no index matrix
        },
        repeats,
    )


def rerank_parts(query: FeatureSet, gallery: FeatureSet, repeats: int) -> dict[str, Part]:
    """Re-ranking beside the product of all images with all images."""
    everything = np.concatenate([query.features, gallery.features])
    return in_turn(
        {
            "gemm_all": lambda: bare_product(everything, everything),
            "rerank": lambda: k_reciprocal(query.features, gallery.features),
        },
        repeats,
    )


def fit_parts(train: FeatureSet, repeats: int) -> dict[str, Part]:
    """Fits beside two float64 Gram matrices and an eigenproblem of their size, which each of them needs."""
    labels = train.pids, train.camids
    wide = train.features.astype(np.float64)

    def grams() -> None:
        for _ in range(2):
            gram = wide.T @ wide
        np.linalg.eigvalsh(gram)

    return in_turn(
        {
            "grams": grams,
            "xqda_fit": lambda: XQDA().fit(train.features, *labels),
            "kissme_fit": lambda: KISSME().fit(train.features, *labels),
        },
        repeats,
    )


def extraction_parts(images: int, repeats: int) -> dict[str, Part]:
    """Features of stored images beside the bare forward pass on batches that lie ready."""
    torch.manual_seed(SEED)
    embedding = Embedding("mobilenet_v2", neck="none").eval()
    pictures = np.random.default_rng(SEED).integers(0, 256, (images, 128, 64, 3), dtype=np.uint8)
    batches = [torch.from_numpy(part).permute(0, 3, 1, 2) for part in np.split(pictures, images // 64)]

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                embedding(batch)

    return in_turn({"forward": forward, "extract": lambda: embed_images(embedding, pictures)}, repeats)


def rounding(query: FeatureSet, gallery: FeatureSet, train: FeatureSet) -> dict[str, float]:
    """Largest differences of float32 results from float64 ones on a sample of queries, unit features."""
    q, g = query.features[:50].astype(np.float64), gallery.features.astype(np.float64)
    exact = np.sqrt(np.maximum((q**2).sum(1)[:, None] + (g**2).sum(1) - 2 * q @ g.T, 0))
    euclid = np.abs(euclidean(query.features[:50], gallery.features).matrix() - exact).max()
    metric = KISSME().fit(train.features, train.pids, train.camids)
    z_q, z_g = ((x @ metric.components_) * np.sqrt(metric.weights_) for x in (q, g))
    exact = (z_q**2).sum(1)[:, None] + (z_g**2).sum(1) - 2 * z_q @ z_g.T
    learned = np.abs(metric.distance(query.features[:50], gallery.features) - exact).max() / exact.max()
    return {"euclidean_max_difference": float(euclid), "kissme_max_relative_difference": float(learned)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run")
    parser.add_argument("--repeats", type=int, default=3, help="of every part but re-ranking")
    parser.add_argument("--rerank-repeats", type=int, default=1)
    parser.add_argument("--skip-rerank", action="store_true")
    arguments = parser.parse_args()
    queries, gallery_size, train_size, size, people = QUICK if arguments.quick else MARKET
    rng = np.random.default_rng(SEED)
    query = unit_people(rng, queries, size, 1, people + 1)
    gallery = unit_people(rng, gallery_size, size, 0, people + 1)
    train = unit_people(rng, train_size, size, people + 1, 2 * people + 1)
    parts = search_parts(query, gallery, arguments.repeats)
    parts |= fit_parts(train, arguments.repeats)
    parts |= extraction_parts(128 if arguments.quick else 512, arguments.repeats)
    if not arguments.skip_rerank:
        parts |= rerank_parts(query, gallery, arguments.rerank_repeats)
    result = summarize(parts)
    result |= rounding(query, gallery, train)
    report(
        parts,
        result,
        f"{queries} x {gallery_size} x {size}, {torch.get_num_threads()} threads",
        not arguments.quick,
    )
    print(json.dumps(result))


def summarize(parts: dict[str, Part]) -> dict[str, float | None]:
    """The numbers that the bars speak of; null for a part that was skipped."""
    median = {name: statistics.median(part.seconds) for name, part in parts.items()}
    processor = {name: statistics.median(part.processor) for name, part in parts.items()}
    result: dict[str, float | None] = {
        "ranking_over_argsort": median["ranking"] / median["argsort"],
        "ranking_s": median["ranking"],
        "argsort_s": median["argsort"],
        "gemm_s": median["gemm"],
        "chunked_over_gemm": median["chunked"] / median["gemm"],
        "chunked_over_gemm_processor": processor["chunked"] / processor["gemm"],
        "chunked_extra_gb": parts["chunked"].extra_gb,
        "xqda_over_grams": median["xqda_fit"] / median["grams"],
        "kissme_over_grams": median["kissme_fit"] / median["grams"],
        "xqda_fit_s": median["xqda_fit"],
        "kissme_fit_s": median["kissme_fit"],
        "extract_fraction_of_forward": median["forward"] / median["extract"],
        "extract_fraction_of_forward_processor": processor["forward"] / processor["extract"],
        "rerank_over_gemm": None,
        "rerank_over_gemm_processor": None,
        "rerank_extra_gb": None,
    }
    if "rerank" in parts:
        result["rerank_over_gemm"] = median["rerank"] / median["gemm_all"]
        result["rerank_over_gemm_processor"] = processor["rerank"] / processor["gemm_all"]
        result["rerank_extra_gb"] = parts["rerank"].extra_gb
    return {name: value if value is None else round(value, 3) for name, value in result.items()}


def report(parts: dict[str, Part], result: dict[str, float | None], title: str, judge: bool) -> None:
    """The table for people; ``judge`` holds the numbers against the bars, which speak of the full size."""
    print(title)
    print(f"{'part':<14}{'seconds':>10}{'min':>10}{'max':>10}{'processor':>10}{'extra GB':>10}")
    for name, part in parts.items():
        seconds = statistics.median(part.seconds), min(part.seconds), max(part.seconds)
        columns = (*seconds, statistics.median(part.processor), part.extra_gb)
        print(f"{name:<14}" + "".join(f"{value:>10.3f}" for value in columns))
    for name, bar in BARS.items():
        value = result[name]
        if judge and value is not None:
            met = value >= bar if name == "extract_fraction_of_forward" else value <= bar
            print(f"{name:<30}{value:>8.3f}   bar {bar}: {'met' if met else 'missed'}")


if __name__ == "__main__":
    main()
