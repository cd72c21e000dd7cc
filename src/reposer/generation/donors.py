"""Donors: whose pose each training image is re-posed into, by policies that the study compares.

A source gets ``factor - 1`` donors, all different. A policy whose pool for a source is smaller gives it fewer
pictures; that is counted in the plan's notes. Sources and donors come from the training split alone. Copy c
of a source is the same for every factor above c: factor 4 contains factor 2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from reposer.data.layouts.market1501 import MAX_COPY, check_names, generated_name
from reposer.data.orientation import ORIENTATIONS
from reposer.data.packed import ROWS, PackedPeople
from reposer.errors import UserError, find
from reposer.generation.poses import Outfits, PoseSpace, cover, outfits
from reposer.storage.tables import read_table

# ---- Drawing donors at random from groups of images, each source's without repetition, for all at once.

_STREAM = 21  # of random numbers


@dataclass(frozen=True, slots=True)
class KeyGroups:
    """N images sorted into groups of equal keys."""

    order: NDArray[np.int64]  # (N,) positions, group by group
    starts: NDArray[np.int64]  # (G,) of each group in ``order``
    sizes: NDArray[np.int64]  # (G,)
    member: NDArray[np.int64]  # (N,) the group of each image
    rank: NDArray[np.int64]  # (N,) its place in the group

    @classmethod
    def of(cls, keys: NDArray[np.int64]) -> Self:
        _, member, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        order = np.argsort(member, kind="stable")
        starts = np.cumsum(sizes) - sizes
        rank = np.empty(len(keys), np.int64)
        rank[order] = np.arange(len(keys)) - starts[member[order]]
        return cls(order, starts, sizes, member, rank)


def same_group(keys: NDArray[np.int64], seed: int, copies: int) -> NDArray[np.int64]:
    """(N, copies) other positions of equal key, different ones, at random."""
    groups = KeyGroups.of(keys)
    picks = distinct(groups.sizes[groups.member] - 1, seed, copies)
    picks += picks >= groups.rank[:, None]  # over the source itself
    found = picks >= 0
    return np.where(found, groups.order[groups.starts[groups.member][:, None] + np.maximum(picks, 0)], -1)


def other_groups(keys: NDArray[np.int64], seed: int, copies: int) -> NDArray[np.int64]:
    """(N, copies) positions of other keys, different ones, at random: what follows the group, in a circle."""
    groups = KeyGroups.of(keys)
    sizes = groups.sizes[groups.member]
    picks = distinct(len(keys) - sizes, seed, copies)
    after = (groups.starts[groups.member] + sizes)[:, None]
    return np.where(picks >= 0, groups.order[(after + picks) % len(keys)], -1)


def distinct(sizes: NDArray[np.int64], seed: int, copies: int) -> NDArray[np.int64]:
    """(N, copies) different numbers below ``sizes`` (N,), uniform without replacement; -1 when used up."""
    picks = np.full((len(sizes), copies), -1, np.int64)
    for copy in range(copies):
        left = sizes - copy
        draws = np.random.default_rng([seed, _STREAM, copy]).random(len(sizes))
        pick = (draws * np.maximum(left, 1)).astype(np.int64)  # among those left, counted without gaps
        for earlier in np.sort(picks[:, :copy], axis=1).T:
            pick += pick >= earlier
        picks[:, copy] = np.where(left > 0, pick, -1)
    return picks


FEWEST_MATCHES = 8  # of the whole outfit; below it only the lower garment must match
CANDIDATES = 64  # of each orientation, drawn for each person (twice its images, if that is more)
CANONICAL_DONORS = 16  # nearest to an orientation's mean pose
_STEP = 3  # orientations from one copy to the next: prime to 8, so eight copies show all eight
_TYPICAL, _COVERAGE, _CANONICAL = 22, 23, 24  # streams of random numbers
_PIECE = 65_536  # numbers that are Python's own at once: they take ten times the memory


@dataclass(frozen=True, slots=True)
class DonorPlan:
    """M pictures to generate, sources ascending, copies of a source one after another."""

    source: NDArray[np.int64]  # (M,) rows of PackedPeople
    donor: NDArray[np.int64]  # (M,) rows of PackedPeople
    copy: NDArray[np.int64]  # (M,) 1 to factor - 1
    notes: list[str]  # what was left out, and why

    def sha256(self) -> str:
        """Of ``canonical_json([source, donor, copy])``, the arrays as lists; never written as a whole."""
        digest = hashlib.sha256()
        for place, array in zip(("[[", "],[", "],["), (self.source, self.donor, self.copy), strict=True):
            digest.update(place.encode())
            for start in range(0, len(array), _PIECE):
                comma = "," if start else ""
                piece = array[start : start + _PIECE].tolist()
                digest.update(f"{comma}{','.join(map(str, piece))}".encode())
        digest.update(b"]]")
        return digest.hexdigest()


class PictureNames(Sequence[str]):
    """The file name of each picture of a plan, made when it is asked for: a million take no memory.

    Args:
        images: names of the people's images, by their rows.
        plan: that has each pair of source and copy once, as ``choose_donors`` gives it.
        file_format: of the pictures.

    Raises:
        UserError: two pictures would share a name, or a name cannot be that of a file everywhere.
    """

    def __init__(self, images: Sequence[str], plan: DonorPlan, file_format: str) -> None:
        self._images, self._plan, self._format = images, plan, file_format
        most = np.zeros(len(images), np.int64)  # copies of each image
        np.maximum.at(most, plan.source, plan.copy)
        for copies in (np.minimum(most, 1), most):  # equal stems, whatever their copies; the longest names
            check_names([self._name(i, copies[i]) for i in np.flatnonzero(most)])

    def __len__(self) -> int:
        return len(self._plan.source)

    @overload
    def __getitem__(self, item: int) -> str: ...
    @overload
    def __getitem__(self, item: slice) -> list[str]: ...
    def __getitem__(self, item: int | slice) -> str | list[str]:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        return self._name(self._plan.source[item], self._plan.copy[item])

    def _name(self, image: SupportsIndex, copy: SupportsIndex) -> str:
        return generated_name(self._images[int(image)], int(copy), self._format)


@dataclass(frozen=True)
class Pool:
    """N usable images, sources and donors at once; positions below count inside ``rows``."""

    people: PackedPeople
    rows: NDArray[np.int64]  # (N,) ascending rows of ``people``
    seed: int
    notes: list[str] = field(default_factory=list)

    @property
    def pids(self) -> NDArray[np.int64]:
        return self.people.pids[self.rows]

    @property
    def camids(self) -> NDArray[np.int64]:
        return self.people.camids[self.rows]

    @cached_property
    def outfits(self) -> Outfits:
        return outfits(self.people.parsing, self.rows)

    @cached_property
    def poses(self) -> PoseSpace:
        return PoseSpace.of_people(self.people, self.rows)

    @cached_property
    def typical(self) -> NDArray[np.int64]:
        """Positions whose pose may be asked for; the others are counted."""
        usable = self.poses.typical(np.random.default_rng([self.seed, _TYPICAL]))
        unknown, odd = int((~self.poses.known).sum()), int((self.poses.known & ~usable).sum())
        if unknown or odd:
            self.notes.append(
                f"{unknown:,} images are no donors: too few keypoints or no orientation; "
                f"{odd:,} are none: an unusual pose or badly placed keypoints"
            )
        return np.flatnonzero(usable)


Policy = Callable[[Pool, int], NDArray[np.int64]]  # pool, copies -> (N, copies) positions, -1 for no donor


def choose_donors(
    people: PackedPeople,
    policy: str,
    factor: int,
    *,
    seed: int = 0,
    rows: NDArray[np.int64] | None = None,
) -> DonorPlan:
    """Donors of all usable images, a pure function of the arguments.

    Args:
        policy: a key of POLICIES.
        factor: images after augmentation per real one (the paper's alpha), at least 2.
        rows: real images that may be source or donor; None: all of split "train".

    Returns:
        A plan of (factor - 1) x usable images, less what its notes count.

    Raises:
        UserError: no such policy, factor below 2 or above what a name holds, a row outside the training
            split, or nothing to choose.
    """
    choose = find("policy", policy, POLICIES)
    if factor < 2:
        reason = "gives no generated image" if factor == 1 else "is impossible"
        raise UserError(f"factor {factor}: {reason}", "factor 2 adds one generated image to each real one")
    copies = factor - 1
    if copies > MAX_COPY:
        raise UserError(
            f"factor {factor}: a name holds {MAX_COPY} copies of an image", f"at most {MAX_COPY + 1}"
        )
    pool = _pool(people, rows, seed)
    chosen = choose(pool, copies)
    found = chosen >= 0
    if not found.any():
        reason = pool.notes[0] if pool.notes else "no image has a fitting donor"
        raise UserError(
            f"{people.folder}: policy {policy} finds no donor for any of {len(found):,} images ({reason})",
            "take the policy any, or prepare more images or annotations",
        )
    without, short = int((~found.any(1)).sum()), int((found.any(1) & ~found.all(1)).sum())
    if without or short:
        pool.notes.append(
            f"policy {policy}: {without:,} of {len(found):,} images have no donor and are not re-posed, "
            f"{short:,} have fewer than {copies}: {int((~found).sum()):,} pictures fewer than asked for"
        )
    source, copy = np.nonzero(found)
    return DonorPlan(pool.rows[source], pool.rows[chosen[source, copy]], copy + 1, pool.notes)


# ---- policies


def any_donor(pool: Pool, copies: int) -> NDArray[np.int64]:
    """Any other image, uniformly, as Siarohin et al. (CVPR 2018) and SAN draw them."""
    return same_group(np.zeros(len(pool.rows), np.int64), pool.seed, copies)


def same_camera(pool: Pool, copies: int) -> NDArray[np.int64]:
    """Any other image of the source's camera."""
    return same_group(pool.camids, pool.seed, copies)


def other_camera(pool: Pool, copies: int) -> NDArray[np.int64]:
    """Any image of another camera."""
    return other_groups(pool.camids, pool.seed, copies)


def same_identity(pool: Pool, copies: int) -> NDArray[np.int64]:
    """Another image of the same person; a person with one image has none."""
    return same_group(pool.pids, pool.seed, copies)


def compatible(pool: Pool, copies: int) -> NDArray[np.int64]:
    """An image of the same outfit: lower garment, coat or not, hat or not (``outfits``).

    A source with fewer than FEWEST_MATCHES such images takes those of the same lower garment instead.
    """
    classes, lower = pool.outfits.classes, pool.outfits.lower
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    rare = counts[inverse] - 1 < FEWEST_MATCHES
    if rare.any():
        pool.notes.append(
            f"policy compatible: {int(rare.sum()):,} rare outfits matched by lower garment only"
        )
    chosen = same_group(classes, pool.seed, copies)
    return np.where(rare[:, None], same_group(lower, pool.seed, copies), chosen)


def coverage(pool: Pool, copies: int) -> NDArray[np.int64]:
    """The orientations and poses that a person lacks, its real images and earlier choices counted.

    For each person a random set of other people's typical poses is drawn, as many of each orientation; then
    ``poses.cover`` takes them one by one. The first copies of all its images come first.
    """
    chosen = np.full((len(pool.rows), copies), -1, np.int64)
    facing, pids = pool.poses.orientations, pool.pids
    by_orientation = [pool.typical[facing[pool.typical] == o] for o in range(len(ORIENTATIONS))]
    for pid in np.unique(pids).tolist():
        rng = np.random.default_rng([pool.seed, _COVERAGE, pid])
        own = np.flatnonzero(pids == pid)
        wanted = max(CANDIDATES, 2 * len(own))
        drawn = [rng.permutation(group[pids[group] != pid])[:wanted] for group in by_orientation]
        candidates = np.concatenate(drawn)
        taken = candidates[cover(pool.poses[own], pool.poses[candidates], copies * len(own))]
        order = rng.permutation(own)  # which image of the person takes which pose is left to chance
        for copy in range(copies):
            part = taken[copy * len(own) : (copy + 1) * len(own)]
            chosen[order[: len(part)], copy] = part
    return chosen


def canonical(pool: Pool, copies: int) -> NDArray[np.int64]:
    """The eight orientations in turn, each by a real image among the nearest to the orientation's mean pose.

    After PN-GAN's eight canonical poses (Qian et al., ECCV 2018), with orientations in place of clusters.
    Images of a person start at different orientations. An orientation nobody shows is skipped.
    """
    donors, sizes = _canonical_donors(pool)  # (L, K), (L,) of the L orientations that somebody shows
    kinds, count = len(donors), len(pool.rows)
    chosen = np.full((count, copies), -1, np.int64)
    if not kinds:
        return chosen
    rng = np.random.default_rng([pool.seed, _CANONICAL])
    groups = KeyGroups.of(pool.pids)
    first = rng.integers(kinds, size=len(groups.starts))[groups.member] + groups.rank
    draws = rng.random(count)
    lap = kinds // math.gcd(_STEP, kinds)  # copies until an orientation returns
    for copy in range(copies):
        turn = (first + _STEP * copy) % kinds
        mine = donors[turn] == np.arange(count)[:, None]  # (N, K) nobody is an own donor
        own = np.where(mine.any(1), mine.argmax(1), donors.shape[1])
        room = sizes[turn] - mine.any(1)
        pick = ((draws * room).astype(np.int64) + copy // lap) % np.maximum(room, 1)
        pick += pick >= own
        chosen[:, copy] = np.where(copy // lap < room, donors[turn, np.minimum(pick, sizes[turn] - 1)], -1)
    return chosen


POLICIES: dict[str, Policy] = {
    "any": any_donor,
    "same_camera": same_camera,
    "other_camera": other_camera,
    "compatible": compatible,
    "same_identity": same_identity,
    "coverage": coverage,
    "canonical": canonical,
}


# ---- helpers


def _pool(people: PackedPeople, rows: NDArray[np.int64] | None, seed: int) -> Pool:
    """The usable images among ``rows``."""
    training = people.splits == "train"
    wanted = np.flatnonzero(training) if rows is None else np.unique(np.asarray(rows, np.int64))
    if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < len(people):
        raise UserError(f"{people.folder}: has {len(people):,} rows, not {wanted[[0, -1]].tolist()}")
    outside = wanted[~training[wanted]]
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"{people.folder}, row {row} ({people.names[row]}): is of split {people.splits[row]}",
            "donors and sources must be training images",
        )
    has_parsing = read_table(people.folder / ROWS, columns=["has_parsing"])["has_parsing"].to_numpy()
    usable = wanted[has_parsing[wanted]]
    pool = Pool(people, usable, seed)
    if len(usable) < len(wanted):
        pool.notes.append(
            f"{len(wanted) - len(usable):,} of {len(wanted):,} images have no parsing map and are left out"
        )
    return pool


def _canonical_donors(pool: Pool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(L, K) positions near the mean pose of each orientation that somebody shows, -1 beyond (L,) sizes."""
    rows: list[NDArray[np.int64]] = []
    lacking = []
    for number, name in enumerate(ORIENTATIONS):
        here = pool.typical[pool.poses.orientations[pool.typical] == number]
        if len(here):
            group = pool.poses[here]
            distance = group.distance(group.mean())[:, 0]
            rows.append(here[np.argsort(distance, kind="stable")[:CANONICAL_DONORS]])
        else:
            lacking.append(name)
    if lacking:
        pool.notes.append(f"policy canonical: nobody shows {', '.join(lacking)}")
    donors = np.full((len(rows), CANONICAL_DONORS), -1, np.int64)
    for line, found in zip(donors, rows, strict=True):
        line[: len(found)] = found
    return donors, np.array([len(found) for found in rows], np.int64)
