"""What the maps and masks of a set seem to mean, which their files cannot say: all together, and each alone.

A label is a number, and a mask says nothing about which of its two values is the person. But people stand in
the middle of their crops, and somebody wears shoes: a set of files betrays another meaning. A file that
differs from the rest, or that holds nobody at all, is told by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from reposer.data.parsing import LABEL_SETS, known_labels

MIN_FILES = 5  # fewer say nothing about their set
_CLEARLY = 0.1  # by how much more of the border than of the middle must be the person, to doubt a set
_CERTAINLY = 0.5  # the same for one file, whose person may fill the picture or lean out of it


@dataclass(slots=True)
class _Seen:
    """What all maps or masks of a set have in common, and those that hold nobody, or everybody."""

    files: int = 0
    border: float = 0.0  # sum over files of the share of the border that is not background
    middle: float = 0.0  # the same of the middle
    empty: list[str] = field(default_factory=list)  # nothing is the person
    outward: list[str] = field(default_factory=list)  # the person is at the border, certainly
    inward: list[str] = field(default_factory=list)  # the person is in the middle, certainly

    def _look(self, file: str, person: NDArray[np.bool_]) -> None:
        height, width = person.shape
        inner = person[height // 4 : -(height // 4) or None, width // 4 : -(width // 4) or None]
        edge = np.concatenate([person[0], person[-1], person[:, 0], person[:, -1]])
        border, middle = float(edge.mean()), float(inner.mean())
        self.files += 1
        self.border, self.middle = self.border + border, self.middle + middle
        if not person.any():
            self.empty.append(file)
        elif border > middle + _CERTAINLY:
            self.outward.append(file)
        elif middle > border + _CERTAINLY:
            self.inward.append(file)

    @property
    def inside_out(self) -> bool:
        """Whether people are at the borders of their pictures rather than in the middle."""
        return self.files >= MIN_FILES and self.border > self.middle + _CLEARLY * self.files


@dataclass(slots=True)
class SeenMasks(_Seen):
    """The masks of a set."""

    full: list[str] = field(default_factory=list)  # everything is the person

    def add(self, file: str, person: NDArray[np.bool_]) -> None:
        """One mask (H, W), True on the person."""
        self._look(file, person)
        if person.all():
            self.full.append(file)

    def doubt(self, advice: str) -> str:
        """What is odd about all of them; "" where nothing is. ``advice``: what turns them round."""
        if not self.inside_out:
            return ""
        return (
            f"{self.files:,} masks have people at the border rather than in the middle, on the whole: if they"
            f" mark the background, {advice}"
        )

    def odd(self) -> Iterator[tuple[str, str]]:
        """(file, what is odd about it) of single masks, by kind and in the order of ``add``."""
        advice = "kept as it is: mend it, or delete it"
        yield from _each(self.empty, f"marks nobody, no pixel is the person; {advice}")
        yield from _each(self.full, f"marks every pixel as the person; {advice}")
        if self.inside_out:
            message = "has the person in the middle, but most others at the border"
            yield from _each(self.inward, f"{message}; {advice}")
        else:
            message = "has the person at the border and not in the middle, as an inverted mask has"
            yield from _each(self.outward, f"{message}; {advice}")


@dataclass(slots=True)
class SeenMaps(_Seen):
    """The parsing maps of a set."""

    with_zero: int = 0  # files that hold a 0
    values: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(256, np.bool_))
    two: list[str] = field(default_factory=list)  # files that hold the first two labels and no other

    def add(self, file: str, values: NDArray[np.uint8], lip: NDArray[np.uint8], first: int) -> None:
        """One map: its stored values (H, W), as LIP-20 (H, W), and the number of its first label."""
        self._look(file, lip != 0)
        self.with_zero += int(not values.all())
        found = np.unique(values)
        self.values[found] = True
        if found[-1] == first + 1:
            self.two.append(file)

    def doubt(self, labels: str) -> str:
        """What the labels of all maps look like instead of ``labels``; "" where all fits."""
        if self.files < MIN_FILES:
            return ""
        name, first = known_labels(labels)
        top = int(np.flatnonzero(self.values)[-1]) - first
        told = f"{self.files:,} maps hold no label above {top + first}"
        if top <= 1:
            return (
                f"{told}: these are masks, not parsing maps. Give the folder as --mask and none as --parsing"
            )
        if not first and not self.with_zero:
            return (
                f"none of {self.files:,} maps holds the label 0, the background: if labels are counted from"
                f" 1, give --label-set {name}+1"
            )
        if top < len(LABEL_SETS["merged8"]):
            return f"{told}: PASCAL's 7 parts or 8 merged ones are coarser than LIP-20 and cannot be used"
        if name != "atr18" and top < len(LABEL_SETS["atr18"]):
            return (
                f"{told}, and the shoes of {name} are {18 + first} and {19 + first}: if these are ATR's 18,"
                f" give --label-set atr18{'+1' if first else ''}"
            )
        if self.inside_out:
            told = f"the middle of {self.files:,} maps is background more than their border"
            return f"{told}: is 0 the background?"
        return ""

    def odd(self, labels: str) -> Iterator[tuple[str, str]]:
        """(file, what is odd about it) of single maps, by kind and in the order of ``add``."""
        _, first = known_labels(labels)
        advice = "kept as it is: mend it, or delete it"
        yield from _each(self.empty, f"holds background alone, nobody; {advice}")
        if self.doubt(labels) and len(self.two) == self.files:
            return  # told of all
        message = f"holds the labels {first} and {first + 1} alone, as a mask does that is no parsing map"
        yield from _each(self.two, f"{message}; {advice}")
        message = "has the person at the border and not in the middle"
        if not self.inside_out:
            yield from _each(self.outward, f"{message}; {advice}")


def _each(files: Iterable[str], message: str) -> Iterator[tuple[str, str]]:
    """Every file once, with what is odd about it."""
    return ((file, message) for file in dict.fromkeys(files))
