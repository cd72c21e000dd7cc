"""Filters: which generated pictures are good enough to train on, by thresholds that real pictures set.

    identity    distance to the nearest other real image of the source's person, under a Re-ID embedding that
                was trained on real images of the training people only
    pose        how well a parser's map of the picture agrees with the donor's map
    sharpness   variance of the Laplacian on the person

Each threshold is a quantile of the same quantity on the real training images: their distance to the nearest
other image of their person, the parser's agreement with their own maps, their own sharpness. No test image
and no generated one takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from reposer.config import Config, foreign_values, read_json
from reposer.data.packed import PackedPeople
from reposer.data.parsing import LABEL_SETS, convert
from reposer.errors import UserError
from reposer.reid.features import embed_images, extract_features
from reposer.storage import checkpoint
from reposer.structures import MISSING_LABEL, PairBatch
from reposer.trained.networks import EMBEDDING, of_run

# ---- Scores of generated pictures that need no true picture: sharpness, and agreement with the donor's pose.

SHAPES = ("merged8", "mask")  # what a pose is compared by
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in JPEG
_FEWEST_PIXELS = 32  # fewer say nothing about sharpness


def sharpness(pictures: Tensor, mask: Tensor) -> NDArray[np.float64]:
    """(B,) variance of the Laplacian on the person, in squared gray levels of 0 to 255; higher is sharper.

    The 4-neighbor Laplacian of the BT.601 gray picture, over the pixels whose four neighbors are all on the
    person, so that neither the outline nor the background counts (Pech-Pacheco et al., ICPR 2000, takes the
    whole picture). It depends on the size of the picture. NaN where fewer than 32 such pixels are left.

    Args:
        pictures: (B, 3, H, W) uint8 RGB.
        mask: (B, H, W) bool, True on the person.
    """
    gray = torch.einsum("bchw,c->bhw", pictures.double(), torch.tensor(_LUMA, dtype=torch.float64))
    middle = gray[:, 1:-1, 1:-1]
    around = gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    laplacian = around - 4 * middle
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    inside = (F.conv2d(mask[:, None].float(), cross)[:, 0] > 4.5).double()  # all five pixels
    count = inside.sum((1, 2))
    mean = (laplacian * inside).sum((1, 2)) / count.clamp(min=1)
    variance = ((laplacian - mean[:, None, None]) ** 2 * inside).sum((1, 2)) / count.clamp(min=1)
    return np.asarray(torch.where(count < _FEWEST_PIXELS, torch.nan, variance).numpy())


def pose_agreement(
    predicted: NDArray[np.uint8], wanted: NDArray[np.uint8], shape: str = "merged8"
) -> NDArray[np.float64]:
    """(B,) mean intersection over union of two LIP-20 maps (B, H, W), in [0, 1]; higher is better.

    Over the labels that either map shows, without the background; pixels that one map does not label are
    left out. NaN where neither map shows a person.

    Args:
        shape: "merged8": label for label, in the merged8 set; "mask": the person as a whole.
    """
    first, second = (convert(np.asarray(maps), "lip20", "merged8") for maps in (predicted, wanted))
    labeled = (first != MISSING_LABEL) & (second != MISSING_LABEL)
    if shape == "mask":
        first, second = np.minimum(first, 1), np.minimum(second, 1)
    shares = np.full((len(first), len(LABEL_SETS["merged8"]) - 1), np.nan)
    for label in range(1, len(LABEL_SETS["merged8"])):
        here, there = (first == label) & labeled, (second == label) & labeled
        union = (here | there).sum((1, 2))
        both = (here & there).sum((1, 2))
        shares[:, label - 1] = np.where(union > 0, both / np.maximum(union, 1), np.nan)
    shown = ~np.isnan(shares)
    total = np.where(shown, shares, 0).sum(1)
    return np.asarray(np.where(shown.any(1), total / np.maximum(shown.sum(1), 1), np.nan))


Parser = Callable[[Tensor], Tensor]  # (B, 3, H, W) uint8 RGB -> (B, H, W) uint8 LIP-20

# Score -> whether large values are bad; also the order in which reasons are named.
SCORES = {"identity_distance": True, "pose_agreement": False, "sharpness": False}
REASONS = {"identity_distance": "identity", "pose_agreement": "pose", "sharpness": "sharpness"}
PARSED_IMAGES = 1024  # real images that the threshold of the pose is taken from, evenly spaced
_CHUNK = 64


class FilterOptions(Config):
    """Which filters judge, and which share of real images would pass each of them."""

    identity: Path | None = None  # Re-ID run; None: identity is not judged
    pose: Literal["merged8", "mask"] | None = None  # what is compared; needs a parser
    sharpness: bool = False
    identity_quantile: float = Field(default=0.95, gt=0, le=1)  # of real distances; farther ones fall
    pose_quantile: float = Field(default=0.05, ge=0, lt=1)  # of real agreements; lower ones fall
    sharpness_quantile: float = Field(default=0.05, ge=0, lt=1)  # of real sharpness; lower ones fall

    @model_validator(mode="after")
    def _something_is_asked(self) -> Self:
        if self.identity is None and self.pose is None and not self.sharpness:
            raise ValueError("no filter is chosen: name identity, pose or sharpness")
        return self


class PictureFilter:
    """Fitted thresholds; made by :meth:`fit`.

    Attributes:
        thresholds: score -> limit; a picture at the limit passes.
    """

    def __init__(
        self,
        people: PackedPeople,
        options: FilterOptions,
        thresholds: dict[str, float],
        identity: _Identity | None,
        parser: Parser | None,
        images: int,
    ) -> None:
        self.thresholds = thresholds
        self._people, self._options, self._images = people, options, images
        self._identity, self._parser = identity, parser

    @classmethod
    def fit(
        cls,
        people: PackedPeople,
        rows: NDArray[np.int64],
        options: FilterOptions,
        *,
        parser: Parser | None = None,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Take the thresholds from real training images.

        Args:
            rows: (N,) rows of ``people``, all of split "train": every image the filter may see.
            parser: for ``options.pose``.
            device: of the embedding.

        Raises:
            UserError: a row outside the training split; an embedding of other people, or one that saw
                generated images; no parser; or nothing to take a threshold from.
        """
        rows = np.unique(np.asarray(rows, np.int64))
        outside = rows[people.splits[rows] != "train"]
        if len(outside) or not len(rows):
            what = f"row {outside[0]} is of split {people.splits[outside[0]]}" if len(outside) else "no row"
            raise UserError(f"{people.folder}: {what}", "thresholds are taken from images of the split train")
        identity = _Identity(people, rows, options.identity, device) if options.identity else None
        if (options.pose is None) != (parser is None):
            raise UserError(
                "filter pose: a parser and the option pose belong together", "give both or neither"
            )
        real: dict[str, tuple[NDArray[np.float64], float]] = {}
        if identity is not None:
            real["identity_distance"] = (identity.real_distances(), options.identity_quantile)
        if options.pose is not None and parser is not None:
            real["pose_agreement"] = (
                _real_agreement(people, rows, parser, options.pose),
                options.pose_quantile,
            )
        if options.sharpness:
            real["sharpness"] = (_real_sharpness(people, rows), options.sharpness_quantile)
        thresholds = {name: _quantile(name, *values) for name, values in real.items()}
        return cls(people, options, thresholds, identity, parser, len(rows))

    def score(
        self,
        pictures: Tensor,
        batch: PairBatch,
        source_rows: NDArray[np.int64],
    ) -> dict[str, NDArray[np.float64]]:
        """(B,) of each score that was asked for, NaN where it cannot be known.

        Args:
            pictures: (B, 3, H, W) uint8 RGB, generated.
            batch: what they were generated from; its target maps are what the pose is compared with.
            source_rows: (B,) rows of the packed people.
        """
        pictures = pictures.cpu()
        scores: dict[str, NDArray[np.float64]] = {}
        if self._identity is not None:
            scores["identity_distance"] = self._identity.distances(pictures, source_rows)
        if self._parser is not None and self._options.pose is not None:
            wanted = batch.target_parsing.cpu().numpy()
            scores["pose_agreement"] = _agreement(self._parser, pictures, wanted, self._options.pose)
        if self._options.sharpness:
            scores["sharpness"] = sharpness(pictures, batch.target_mask.cpu())
        return scores

    def decide(self, scores: dict[str, NDArray[np.float64]]) -> list[str | None]:
        """(B,) None for a picture that is kept, else why it falls: "identity", "pose", "sharpness" or several
        of them joined by "+". An unknown score falls.
        """
        fallen: dict[str, NDArray[np.bool_]] = {}
        for name, threshold in self.thresholds.items():
            passes = scores[name] <= threshold if SCORES[name] else scores[name] >= threshold
            fallen[REASONS[name]] = ~passes  # NaN passes no comparison
        columns = zip(*fallen.values(), strict=True)
        reasons = ([r for r, falls in zip(fallen, column, strict=True) if falls] for column in columns)
        return ["+".join(names) or None for names in reasons]

    def describe(self) -> dict[str, Any]:
        """What the decisions depend on; JSON."""
        described: dict[str, Any] = {
            "options": self._options.model_dump(mode="json", exclude={"identity"}),
            "thresholds": self.thresholds,
            "real_images": self._images,
        }
        if self._identity is not None:
            described["embedding"] = self._identity.description
        return described


class _Identity:
    """Real images of each person under an embedding.

    Args:
        people, rows: the real images, split "train".
        run: Re-ID run.
        device: of the embedding.
    """

    def __init__(
        self, people: PackedPeople, rows: NDArray[np.int64], run: Path, device: str | torch.device
    ) -> None:
        self.description = _check_training(run, people)
        trained = of_run(EMBEDDING, run)
        self.description["step"] = trained.info.step
        self._embedding = trained.network.to(device)
        self._people, self._rows = people, rows
        self._features = extract_features(self._embedding, people, rows, _CHUNK).features  # (N, D)
        order = np.argsort(people.pids[rows], kind="stable")
        pids, starts = np.unique(people.pids[rows][order], return_index=True)
        self._own = dict(zip(pids.tolist(), np.split(order, starts[1:]), strict=True))

    def real_distances(self) -> NDArray[np.float64]:
        """(N,) of the real images themselves; NaN for a person with one image."""
        return self._nearest(self._features, self._rows)

    def distances(self, pictures: Tensor, source_rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B,) of pictures (B, 3, H, W) uint8 of the people at ``source_rows``."""
        images = pictures.permute(0, 2, 3, 1).numpy()
        return self._nearest(embed_images(self._embedding, images, _CHUNK), source_rows)

    def _nearest(self, features: NDArray[np.float32], sources: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B,) Euclidean distance of (B, D) to the nearest image of the source's person, the source aside."""
        nearest = np.full(len(features), np.nan)
        nobody = np.empty(0, np.int64)
        for i, source in enumerate(np.asarray(sources).tolist()):
            own = self._own.get(int(self._people.pids[source]), nobody)
            others = own[self._rows[own] != source]
            if len(others):
                nearest[i] = np.linalg.norm(self._features[others] - features[i], axis=1).min()
        return nearest


def _check_training(run: Path, people: PackedPeople) -> dict[str, Any]:
    """Refuse an embedding that saw other people than the training people, or generated images."""
    found = checkpoint.of_run(run)
    if found is None or "pids" not in found.meta:
        raise UserError(f"{run}: holds no checkpoint of a Re-ID training", "choose another run")
    checkpoint.refuse_other_data(run, people.folder.parent, people.content_hash)
    with foreign_values(run / "config.json"):
        settings = _filter_settings(read_json(run / "config.json"), found.meta)
    training = set(np.unique(people.pids[people.splits == "train"]).tolist())
    other = sorted(set(found.meta["pids"]) ^ training)
    if other:
        raise UserError(
            f"{run}: was not trained on the training people of {people.folder} (pid {other[0]} differs)",
            "train the filter's embedding on the split train of the same prepared data",
        )
    if settings.pop("generated") is not None:
        raise UserError(
            f"{run}: was trained on generated images", "choose a run that was trained on real images only"
        )
    return settings


def _filter_settings(config: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """What a filter's scores depend on, of a run's configuration and checkpoint; and "generated": the set."""
    data = config["data"]
    return {
        "identity_hash": meta["identity_hash"],
        "budget": float(data.get("budget", 1.0)),
        "budget_seed": int(data.get("budget_seed", 0)),
        "splits": list(data["splits"]),
        "config_hash": meta["config_hash"],
        "generated": (config.get("generated") or {}).get("folder"),
    }


def _real_sharpness(people: PackedPeople, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    batches = (people.pair_batch(part, part) for part in _parts(rows))
    return np.concatenate([sharpness(batch.source_image, batch.source_mask) for batch in batches])


def _real_agreement(
    people: PackedPeople, rows: NDArray[np.int64], parser: Parser, shape: str
) -> NDArray[np.float64]:
    """(N',) of evenly spaced real images, the parser's map against their own."""
    some = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), PARSED_IMAGES)).round().astype(int))]
    batches = ((people.pair_batch(part, part).source_image, people.parsing[part]) for part in _parts(some))
    return np.concatenate([_agreement(parser, images, maps, shape) for images, maps in batches])


def _agreement(parser: Parser, images: Tensor, wanted: NDArray[np.uint8], shape: str) -> NDArray[np.float64]:
    return pose_agreement(parser(images).cpu().numpy(), wanted, shape)


def _parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]


def _quantile(name: str, values: NDArray[np.float64], share: float) -> float:
    known = values[np.isfinite(values)]
    if not len(known):
        raise UserError(
            f"filter {REASONS[name]}: no real training image tells what is usual",
            "give more images of each person, and their masks and parsing maps",
        )
    return float(np.quantile(known, share))
