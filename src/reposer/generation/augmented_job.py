"""The pictures of a donor plan as a job: options, settings, batches, filters, rows of the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from reposer.config import canonical_json
from reposer.data.generated.names import check_names, generated_name
from reposer.data.packed import PackedPeople
from reposer.errors import UserError
from reposer.files import sha256_bytes
from reposer.generation.augmented_rows import COLUMNS, KIND, SCORES
from reposer.generation.batch import encode_batch, environment, predictor_settings
from reposer.generation.donors import DonorPlan
from reposer.generation.filters import FilterOptions, PictureFilter
from reposer.generation.outputs import JPEG_QUALITY
from reposer.generation.pair_sources import PackedPairs
from reposer.generation.pose_transfer import PoseTransfer
from reposer.generation.shards import Job, WorkUnit
from reposer.structures import PairBatch

SPLIT = "train"  # the only people that are sources or donors
# of a file, not of the weights, whose hash is "checkpoint"
_STORAGE = {"weights_dtype", "weights_sha256", "images_hash"}
_PLAIN = {"factor", "policy", "seed", "background", "batch_size", "real", "budget", "budget_seed"}


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """How a training set is enlarged."""

    factor: int = 2  # images afterwards per real one (the paper's alpha): 1 real + factor - 1 generated
    policy: str = "any"  # a key of donors.POLICIES
    seed: int = 0  # of the donors
    background: str = "generated"  # one of stitching.BACKGROUNDS
    batch_size: int = 32  # pairs in one forward pass; part of the job, since it may change low bits
    file_format: str = "jpg"  # one of outputs.FORMATS; other Re-ID programs look for *.jpg only
    real: str = "link"  # one of real_images.PLACEMENTS
    filters: FilterOptions | None = None  # which pictures are dropped; None: none
    budget: float = 1.0  # share of the real images that may be used, in (0, 1]
    budget_seed: int = 0
    shard_items: int = 512  # pictures made durable at once, rounded down to whole batches
    encoders: int = 2  # threads; the bytes do not depend on them


class AugmentedPictures:
    """The pictures of a plan, as the items of a job."""

    def __init__(
        self,
        pose_transfer: PoseTransfer,
        people: PackedPeople,
        options: AugmentOptions,
        plan: DonorPlan,
        picture_filter: PictureFilter | None,
    ) -> None:
        self._model, self._people, self._options = pose_transfer, people, options
        self._plan, self._filter = plan, picture_filter
        self._pairs = PackedPairs(people, np.stack([plan.source, plan.donor], axis=1))
        if self._pairs.problems:
            raise UserError(f"{self._pairs.problems[0]}", "choose donors among images with a parsing map")
        self._names = [
            generated_name(people.names[source], number, options.file_format)
            for source, number in zip(plan.source.tolist(), plan.copy.tolist(), strict=True)
        ]
        check_names(self._names)

    def job(self) -> Job:
        """What :mod:`reposer.generation.shards` writes."""
        options = self._options
        return Job(
            settings=self._settings(),
            environment=environment(self._model),
            items=len(self._names),
            columns=COLUMNS,
            produce=self._produce,
            shard_items=max(1, options.shard_items // options.batch_size) * options.batch_size,
        )

    def _settings(self) -> dict[str, Any]:
        """Everything that the bytes of the job depend on, apart from versions and machine."""
        model, people, options, plan = self._model, self._people, self._options, self._plan
        arrays = (plan.source, plan.donor, plan.copy)
        return {
            "kind": KIND,
            "generator": model.config.model_dump(mode="json", exclude=_STORAGE),
            "checkpoint": model.weights_hash,
            "precision": model.runtime.precision,
            "trained_on": model.config.identity_hash,
            "training_people": people.identity_hash(SPLIT),
            "prepared": people.header["content_hash"],
            "plan": sha256_bytes(canonical_json([array.tolist() for array in arrays])),
            "format": f"jpg {JPEG_QUALITY}" if options.file_format == "jpg" else options.file_format,
            "filters": None if self._filter is None else self._filter.describe(),
            **{key: getattr(options, key) for key in _PLAIN},
            **predictor_settings(model),
        }

    def _produce(self, items: range) -> Iterator[WorkUnit]:
        """The batches of a shard, always cut at the same places; the next is read while the model works."""
        size = self._options.batch_size
        batches = [items[i : i + size] for i in range(0, len(items), size)]
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._pairs.read, batches[0])
            for number, batch in enumerate(batches):
                people = ahead.result()
                if number + 1 < len(batches):
                    ahead = reader.submit(self._pairs.read, batches[number + 1])
                people = self._model.completed(people, self._options.background)
                pictures = self._model.paint(people, self._options.background)
                rows = self._manifest_rows(batch, self._judge(pictures, people, batch))
                files = [self._names[i] for i in batch]
                unit = partial(encode_batch, pictures, files, rows, self._options.file_format)
                yield WorkUnit(len(batch), unit)

    def _judge(self, pictures: Tensor, people: PairBatch, items: range) -> list[dict[str, Any]]:
        """The columns kept to sharpness of a batch; a score that cannot be known is null."""
        if self._filter is None:
            return [{"kept": True, "dropped_because": None, **dict.fromkeys(SCORES)} for _ in items]
        here = slice(items.start, items.stop)
        scores = self._filter.score(pictures, people, self._plan.source[here])
        reasons = self._filter.decide(scores)
        known = {
            name: [float(v) if np.isfinite(v) else None for v in values] for name, values in scores.items()
        }
        return [
            {"kept": reason is None, "dropped_because": reason}
            | {name: known[name][i] if name in known else None for name in SCORES}
            for i, reason in enumerate(reasons)
        ]

    def _manifest_rows(self, items: range, verdicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        options = self._options
        same = {
            "policy": options.policy,
            "background": options.background,
            "checkpoint": self._model.weights_hash,
            "trained_on": self._model.config.identity_hash,
            "seed": options.seed,
            "synthetic": True,
        }
        return [
            pair
            | {"pid": pair["source_pid"], "camid": pair["source_camid"], "copy": int(self._plan.copy[item])}
            | same
            | verdict
            for item, pair, verdict in zip(items, self._pairs.rows(items), verdicts, strict=True)
        ]
