"""What generated pictures are judged by without a true picture: identity, margin, pose and sharpness.

A judge is made for the real training images of a set, whose own scores tell what is usual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from reposer.config import foreign_values, read_json
from reposer.data.packed import PackedPeople, by_person
from reposer.data.parsing import LABEL_SETS, convert
from reposer.errors import UserError
from reposer.reid.features import embed_images, extract_features
from reposer.storage import checkpoint
from reposer.structures import MISSING_LABEL, PairBatch
from reposer.trained.networks import EMBEDDING, of_run

Parser = Callable[[Tensor], Tensor]  # (B, 3, H, W) uint8 RGB -> (B, H, W) uint8 LIP-20

PARSED_IMAGES = 1024  # real images that the threshold of the pose is taken from, evenly spaced
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class Given:
    """What a filter may look at before it judges."""

    people: PackedPeople
    rows: NDArray[np.int64]  # (N,) ascending rows of ``people``, all of split "train"
    reid_run: Path | None  # a Re-ID training; there where the filter needs one
    parser: Parser | None  # there where the filter needs one
    device: str | torch.device


class Judge(Protocol):
    """One quantity of pictures; pickled, where several processes generate."""

    description: dict[str, Any]  # what it depends on beside its options; JSON, kept with the set

    def real(self) -> NDArray[np.float64]:
        """(N',) of the real images that the threshold is taken from; NaN where it is not defined."""

    def score(
        self, pictures: Tensor, batch: PairBatch, source_rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(B,) of generated pictures, as :meth:`PictureFilter.score`; NaN where it is not defined."""


# ---- Sharpness, and agreement with the donor's pose.

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


# ---- The judges.


class Identity:
    """Distance to the nearest other real image of the person, under the embedding of a Re-ID run."""

    def __init__(self, given: Given, choice: bool) -> None:
        del choice  # it is on
        assert given.reid_run is not None, "PictureFilter.fit checks it"
        people, rows = given.people, given.rows
        settings = _check_training(given.reid_run, people)
        trained = of_run(EMBEDDING, given.reid_run)
        self.description = {"embedding": settings | {"step": trained.info.step}}
        self._embedding = trained.network.to(given.device)
        self._people, self._rows = people, rows
        self._features = extract_features(self._embedding, people, rows, _CHUNK).features  # (N, D)
        self._own = by_person(people.pids[rows])

    def real(self) -> NDArray[np.float64]:
        """(N,) of the real images themselves; NaN for a person with one image."""
        return self._nearest(self._features, self._rows)

    def score(
        self, pictures: Tensor, batch: PairBatch, source_rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
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


class Margin(Identity):
    """How much nearer the source's person is than anybody else: the distance to the nearest real image of
    another person minus that to the nearest of the source's, the source aside; below 0 it is mistaken."""

    def _nearest(self, features: NDArray[np.float32], sources: NDArray[np.int64]) -> NDArray[np.float64]:
        """(B,) margin of features (B, D); NaN where the person has no other image, or is alone."""
        pids, sources = self._people.pids, np.asarray(sources)
        return margins(features, pids[sources], sources, self._features, pids[self._rows], self._rows)[0]


def margins(
    features: NDArray[np.float32],
    pids: NDArray[np.int64],
    sources: NDArray[np.int64],
    real: NDArray[np.float32],
    real_pids: NDArray[np.int64],
    real_rows: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far the nearest other person is behind one's own, and how near one's own is.

    Args:
        features: (B, D) of pictures.
        pids: (B,) the person each should show.
        sources: (B,) the real image that each was made from, as numbers of ``real_rows``; it is left out.
        real, real_pids, real_rows: (N, D), (N,), (N,) the real images.

    Returns:
        (B,) nearest other person's distance minus the nearest own one's, Euclidean, at most 2 in size for
        features of length 1; NaN without an own image or without another person; (B,) the nearest own one's
        distance, NaN where there is none.
    """
    own, other = np.full(len(features), np.inf), np.full(len(features), np.inf)
    wide = real.astype(np.float64)
    length = (wide**2).sum(1)
    for start in range(0, len(features), _CHUNK):
        part = slice(start, start + _CHUNK)
        mine = features[part].astype(np.float64)
        square = (mine**2).sum(1)[:, None] + length - 2 * mine @ wide.T
        distance = np.sqrt(np.maximum(square, 0))
        distance[sources[part, None] == real_rows] = np.inf
        same = pids[part, None] == real_pids
        own[part] = np.where(same, distance, np.inf).min(1, initial=np.inf)
        other[part] = np.where(same, np.inf, distance).min(1, initial=np.inf)
    own[~np.isfinite(own)] = np.nan
    return np.where(np.isfinite(other), other - own, np.nan), own


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


class Pose:
    """Agreement of a parser's map of the picture with the map that was asked for."""

    def __init__(self, given: Given, choice: str) -> None:
        assert given.parser is not None, "PictureFilter.fit checks it"
        self.description: dict[str, Any] = {}
        self._given, self._parser, self._shape = given, given.parser, choice

    def real(self) -> NDArray[np.float64]:
        """(N',) of evenly spaced real images, the parser's map against their own."""
        people, rows = self._given.people, self._given.rows
        count = min(len(rows), PARSED_IMAGES)
        some = rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]
        return np.concatenate(
            [
                self._agreement(people.pair_batch(part, part).source_image, people.parsing[part])
                for part in _parts(some)
            ]
        )

    def score(
        self, pictures: Tensor, batch: PairBatch, source_rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(B,) against the batch's target maps."""
        return self._agreement(pictures, batch.target_parsing.cpu().numpy())

    def _agreement(self, images: Tensor, wanted: NDArray[np.uint8]) -> NDArray[np.float64]:
        return pose_agreement(self._parser(images).cpu().numpy(), wanted, self._shape)


class Sharpness:
    """Variance of the Laplacian on the person."""

    def __init__(self, given: Given, choice: bool) -> None:
        del choice  # it is on
        self.description: dict[str, Any] = {}
        self._given = given

    def real(self) -> NDArray[np.float64]:
        """(N,) of the real images, on their masks."""
        people, rows = self._given.people, self._given.rows
        batches = (people.pair_batch(part, part) for part in _parts(rows))
        return np.concatenate([sharpness(batch.source_image, batch.source_mask) for batch in batches])

    def score(
        self, pictures: Tensor, batch: PairBatch, source_rows: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """(B,) on the batch's target masks."""
        return sharpness(pictures, batch.target_mask.cpu())


def _parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
