"""Filters: which generated pictures are good enough to train on, by thresholds that real pictures set.

    identity    distance to the nearest other real image of the source's person, under a Re-ID embedding that
                was trained on real images of the training people only
    pose        how well a parser's map of the picture agrees with the donor's map
    sharpness   variance of the Laplacian on the person
    margin      how much nearer the source's person is than anybody else, under that embedding

Each threshold is a quantile of the same quantity on the real training images: their distance to the nearest
other image of their person, the parser's agreement with their own maps, their own sharpness, their margin. No
test image and no generated one takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from reposer.config import Config, apply_overrides
from reposer.data.packed import PackedPeople
from reposer.errors import UserError, unknown
from reposer.generation.picture_scores import SHAPES, Given, Identity, Judge, Margin, Parser, Pose, Sharpness
from reposer.structures import PairBatch

Need = Literal["reid_run", "parser"]
_NEEDED: dict[Need, tuple[str, str]] = {
    "reid_run": ("a Re-ID run", "name one (--reid RUN)"),
    "parser": ("a parser", "name one (--parser FILE)"),
}


@dataclass(frozen=True, slots=True)
class Filter:
    """One reason to drop a picture.

    Attributes:
        column: the score's, in the manifest.
        judge: called with what is given and the choice that turned the filter on.
        large_is_bad: whether pictures above the threshold fall, not those below it.
        quantile: of the real images' scores, where the threshold lies if nothing else is said.
            In (0, 1] where large scores are bad, else in [0, 1).
        choices: what its option may say, beside false; the first is that of its bare name.
        needs: what the user must name for it.
    """

    column: str
    judge: Callable[[Given, Any], Judge]
    large_is_bad: bool = False
    quantile: float = 0.05
    choices: tuple[bool | str, ...] = (True,)
    needs: Need | None = None


FILTERS: dict[str, Filter] = {  # in the order in which reasons are named
    "identity": Filter("identity_distance", Identity, large_is_bad=True, quantile=0.95, needs="reid_run"),
    "pose": Filter("pose_agreement", Pose, choices=SHAPES, needs="parser"),
    "sharpness": Filter("sharpness", Sharpness),
    "margin": Filter("identity_margin", Margin, needs="reid_run"),
}


class FilterOptions(Config):
    """Which filters judge, and which share of real images would pass each of them.

    Any other key of FILTERS is an option too, and NAME_quantile; a filter that is not named does not judge.
    """

    model_config = ConfigDict(extra="allow")
    later: ClassVar[frozenset[str]] = frozenset({"margin", "margin_quantile"})

    identity: bool = False  # near enough to its person, under a network of real images alone
    sharpness: bool = False  # as sharp as real images; a small generator's pictures are hardly ever
    pose: Literal["merged8", "mask"] | None = None  # shows the map, or silhouette, that was asked for
    margin: bool = False  # nearer to its person than to anybody else, under that network
    # of the real images' scores
    identity_quantile: float = Field(default=FILTERS["identity"].quantile, gt=0, le=1)
    sharpness_quantile: float = Field(default=FILTERS["sharpness"].quantile, ge=0, lt=1)
    pose_quantile: float = Field(default=FILTERS["pose"].quantile, ge=0, lt=1)
    margin_quantile: float = Field(default=FILTERS["margin"].quantile, ge=0, lt=1)

    @classmethod
    def further_keys(cls) -> Collection[str]:
        """The filters without a field of their own, and their quantiles."""
        further = [name for name in FILTERS if name not in cls.model_fields]
        return [*further, *map(_quantile_key, further)]

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if not self.asked:
            raise ValueError(f"no filter is chosen: name {', '.join(FILTERS)}, or several of them")
        for name, choice in self.asked.items():
            kind, share = FILTERS[name], self.quantile(name)
            if choice not in kind.choices:
                raise ValueError(unknown(name, str(choice), map(str, kind.choices)))
            number = isinstance(share, int | float) and not isinstance(share, bool)
            if not number or not (0 < share <= 1 if kind.large_is_bad else 0 <= share < 1):
                raise ValueError(f"{_quantile_key(name)}: {share!r} is no share of the real images")
        return self

    @property
    def asked(self) -> dict[str, Any]:
        """The filters that judge, and the choice of each."""
        values = self.model_dump()
        return {name: values[name] for name in FILTERS if values.get(name)}

    def quantile(self, name: str) -> float:
        """Of the real images' scores, where the threshold of a filter lies."""
        return self.model_dump().get(_quantile_key(name), FILTERS[name].quantile)  # type: ignore[no-any-return]

    def need(self, what: Need) -> bool:
        """Whether a filter that judges needs it."""
        return any(FILTERS[name].needs == what for name in self.asked)


def filter_options(texts: Sequence[str]) -> FilterOptions | None:
    """The options of ``--filter NAME`` and ``--filter KEY=VALUE``; None where nothing is asked.

    Raises:
        UserError: an unknown filter or key (names the nearest), a value that does not fit, or a quantile of a
            filter that does not judge.
    """
    if not texts:
        return None
    bare = {name: f"{name}={str(kind.choices[0]).lower()}" for name, kind in FILTERS.items()}
    pairs = [text if "=" in text else bare.get(text, f"{text}=true") for text in texts]
    options = apply_overrides(FilterOptions.model_construct(), pairs, "--filter")
    given = {text.partition("=")[0].strip() for text in pairs}
    for name in FILTERS:
        if _quantile_key(name) in given and name not in options.asked:
            problem = f"--filter {_quantile_key(name)}: the filter {name} is not chosen"
            raise UserError(problem, f"add --filter {name}, or leave it out")
    return options


def _quantile_key(name: str) -> str:
    return f"{name}_quantile"


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A filter with its limit."""

    name: str
    column: str
    large_is_bad: bool
    limit: float
    judge: Judge

    def falls(self, score: NDArray[np.float64]) -> NDArray[np.bool_]:
        return ~(score <= self.limit if self.large_is_bad else score >= self.limit)  # NaN passes neither


class PictureFilter:
    """Fitted thresholds; made by :meth:`fit`.

    Attributes:
        thresholds: score -> limit; a picture at the limit passes.
    """

    def __init__(self, options: FilterOptions, fitted: Sequence[_Fitted], images: int) -> None:
        self.thresholds = {one.column: one.limit for one in fitted}
        self._options, self._fitted, self._images = options, tuple(fitted), images

    @classmethod
    def fit(
        cls,
        people: PackedPeople,
        rows: NDArray[np.int64],
        options: FilterOptions,
        *,
        reid_run: Path | None = None,
        parser: Parser | None = None,
        device: str | torch.device = "cpu",
    ) -> Self:
        """Take the thresholds from real training images.

        Args:
            rows: (N,) rows of ``people``, all of split "train": every image the filter may see.
            reid_run: a Re-ID training, for a filter that needs one.
            parser: for a filter that needs one.
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
        given = Given(people, rows, reid_run, parser, device)
        _check_needs(options, given)
        fitted = []
        for name, choice in options.asked.items():
            kind = FILTERS[name]
            judge = kind.judge(given, choice)
            limit = _limit(name, judge.real(), options.quantile(name))
            fitted.append(_Fitted(name, kind.column, kind.large_is_bad, limit, judge))
        return cls(options, fitted, len(rows))

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
        return {one.column: one.judge.score(pictures, batch, source_rows) for one in self._fitted}

    def decide(self, scores: dict[str, NDArray[np.float64]]) -> list[str | None]:
        """(B,) None for a picture that is kept, else why it falls: names of FILTERS joined by "+". An unknown
        score falls.
        """
        fallen = {one.name: one.falls(scores[one.column]) for one in self._fitted}
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
        for one in self._fitted:
            described |= one.judge.description
        return described


def _check_needs(options: FilterOptions, given: Given) -> None:
    """Every filter has what it needs, and nothing is named that no filter looks at."""
    for need, (words, advice) in _NEEDED.items():
        takers = [name for name, kind in FILTERS.items() if kind.needs == need]
        asked = [name for name in takers if name in options.asked]
        if asked and getattr(given, need) is None:
            raise UserError(f"filter {asked[0]}: needs {words}", advice)
        if not asked and getattr(given, need) is not None:
            problem = f"{words} is named, and no filter looks at it"
            raise UserError(problem, f"choose the filter {' or '.join(takers)}, or leave it out")


def _limit(name: str, values: NDArray[np.float64], share: float) -> float:
    known = values[np.isfinite(values)]
    if not len(known):
        raise UserError(
            f"filter {name}: no real training image tells what is usual",
            "give more images of each person, and their masks and parsing maps",
        )
    return float(np.quantile(known, share))
