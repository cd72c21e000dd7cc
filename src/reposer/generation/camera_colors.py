"""Colors of one camera as another shows them: a person over the donor's background in the donor's light.

Images of the same training people by two cameras tell how a color of one looks in the other. For each pair
of cameras and each channel a line is fitted, gain and offset, robust against people who changed or whose
masks are wrong (Theil and Sen's median of slopes). Nothing of test people takes part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reposer.data.packed import PackedPeople
from reposer.errors import UserError, known

CAMERAS = ("source", "donor")  # whose colors, and whose number, a picture has
FEWEST_PEOPLE = 8  # seen by both cameras; fewer tell nothing
_MOST_PEOPLE = 400  # slopes are of all pairs of people
_GAINS = (0.5, 2.0)
_CHUNK = 512  # images averaged at once

Line = tuple[NDArray[np.float64], NDArray[np.float64]]  # gain and offset (3,)


@dataclass(frozen=True)
class CameraColors:
    """Lines from camera to camera, on values in [0, 255]."""

    lines: dict[tuple[int, int], Line]

    @classmethod
    def fit(cls, people: PackedPeople, rows: NDArray[np.int64]) -> Self:
        """By the images ``rows`` (N,) of packed people.

        A person's color in a camera is the median over its images there of the mean inside the mask.

        Raises:
            UserError: no two cameras have FEWEST_PEOPLE people in common.
        """
        colors = _colors(people, rows)
        cameras = sorted({camera for _, camera in colors})
        lines: dict[tuple[int, int], Line] = {}
        for start in cameras:
            for end in cameras:
                if start != end and (line := _line(colors, start, end)) is not None:
                    lines[start, end] = line
        if not lines:
            raise UserError(
                f"{people.folder}: no two cameras show {FEWEST_PEOPLE} people in common",
                "use --camera source",
            )
        return cls(lines)

    def of_rows(self, rows: Iterable[Mapping[str, Any]]) -> tuple[Tensor, Tensor]:
        """Gain and offset (B, 3) of pictures by the rows of their manifest."""
        pairs = [(row["source_camid"], row["donor_camid"]) for row in rows]
        return self.between(*zip(*pairs, strict=True))

    def notes(self, start: Iterable[int], end: Iterable[int]) -> list[str]:
        """What somebody should know who makes N pictures from cameras (N,) to cameras (N,)."""
        pairs = list(zip(start, end, strict=True))
        unknown = sum(a != b and (a, b) not in self.lines for a, b in pairs)
        notes = [f"people get the colors of their donor's camera, by {len(self.lines)} pairs of cameras"]
        if unknown:
            notes.append(
                f"{unknown:,} of {len(pairs):,} pictures keep the source's colors: fewer than"
                f" {FEWEST_PEOPLE} training people were seen by both cameras"
            )
        return notes

    def between(self, start: Iterable[int], end: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Gain and offset (B, 3) from camera to camera; 1 and 0 within one, or where none is known."""
        same: Line = (np.ones(3), np.zeros(3))
        chosen = [self.lines.get((a, b), same) for a, b in zip(start, end, strict=True)]
        gain, offset = (
            torch.tensor(np.stack(part), dtype=torch.float32) for part in zip(*chosen, strict=True)
        )
        return gain, offset

    def document(self) -> list[list[float]]:
        """Everything, rounded so that machines agree: what a job's settings hash."""
        return [
            [a, b, *np.round(np.concatenate(line), 4).tolist()] for (a, b), line in sorted(self.lines.items())
        ]


def check_camera(camera: str, background: str) -> str:
    """``camera`` itself if pictures over that background can be in its colors.

    Raises:
        UserError: it is not one of CAMERAS, or the donor's without its background.
    """
    if known("camera", camera, CAMERAS) == "donor" and background != "donor":
        raise UserError("camera donor: its colors belong to its background", "add --background donor")
    return camera


def camera_settings(colors: CameraColors | None) -> dict[str, Any]:
    """What a job's pictures depend on where they are in the donor's colors; empty where they are not."""
    return {} if colors is None else {"camera": "donor", "colors": colors.document()}


def recolor(images: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 with a gain and an offset (B, 3) for each channel."""
    gain, offset = (value.to(images.device)[..., None, None] for value in (gain, offset))
    return torch.addcmul(offset, images.float(), gain).round_().clamp_(0, 255).to(torch.uint8)


def _colors(people: PackedPeople, rows: NDArray[np.int64]) -> dict[tuple[int, int], NDArray[np.float64]]:
    """(3,) color of each person in each camera."""
    found: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        mask = people.mask[part].astype(np.float32)  # (n, H, W)
        total = np.einsum("nhwc,nhw->nc", people.images[part].astype(np.float32), mask)
        pixels = mask.sum((1, 2))
        for row, color, count in zip(part.tolist(), total, pixels, strict=True):
            if count:
                key = int(people.pids[row]), int(people.camids[row])
                found.setdefault(key, []).append(np.asarray(color / count, np.float64))
    return {key: np.median(values, axis=0) for key, values in found.items()}


def _line(colors: dict[tuple[int, int], NDArray[np.float64]], start: int, end: int) -> Line | None:
    """From camera to camera, by the people of both; None for too few."""
    both = sorted(pid for pid, camera in colors if camera == start and (pid, end) in colors)
    if len(both) < FEWEST_PEOPLE:
        return None
    from scipy import stats  # here: 50 MB that only this needs

    both = [both[i] for i in np.unique(np.linspace(0, len(both) - 1, _MOST_PEOPLE).astype(int)).tolist()]
    here, there = (np.stack([colors[pid, camera] for pid in both]) for camera in (start, end))
    gain = np.array([stats.theilslopes(there[:, c], here[:, c])[0] for c in range(3)]).clip(*_GAINS)
    return gain, np.median(there - gain * here, axis=0)
