"""Protocols of Re-ID by name: which queries meet which gallery, how it is sampled, and what does not count.

Every protocol is one dataclass of rules over the labels of a feature set, so that a new data set is a line.
Market-1501's asks all queries once against the whole gallery. Single-shot protocols draw a few images of each
person, several times, and tell means over these trials.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from reposer.errors import UserError, find
from reposer.metrics.retrieval import DISTRACTOR, JUNK, Clothes
from reposer.structures import FeatureSet

Rows = NDArray[np.int64]
MAX_TRIALS = 1_000


@dataclass(frozen=True, slots=True)
class ReidProtocol:
    """Rules of one protocol; camera numbers are the data set's own."""

    words: str  # for the report
    query_cameras: tuple[int, ...] = ()  # queries come from these; none given: from all
    gallery_cameras: tuple[int, ...] = ()
    unseen: tuple[tuple[int, int], ...] = ()  # (query camera, gallery camera) pairs that never meet
    exclude_same_camera: bool = True  # of the query's own person
    clothes: Clothes = "any"  # which images of the query's person are searched for
    shots: int = 0  # gallery images of a person in a trial; 0: all of them, and one trial
    per_camera: bool = False  # so many of each camera
    trials: int = 10
    by_person: bool = False  # CMC counts the persons before the query's, not the images

    @property
    def by_camera(self) -> bool:
        """Whether single cameras have a part in it; otherwise only which images share one counts."""
        return bool(self.query_cameras or self.gallery_cameras or self.unseen)

    @property
    def repeats(self) -> int:
        """Trials that are made."""
        return self.trials if self.shots else 1


_SYSU = ReidProtocol(
    words="SYSU-MM01 (Wu et al., ICCV 2017), all-search: infrared cameras 3 and 6 ask a gallery of the"
    " visible cameras 1, 2, 4, 5; camera 3 never meets camera 2, which sees the same place; CMC counts"
    " persons, mAP images",
    query_cameras=(3, 6),
    gallery_cameras=(1, 2, 4, 5),
    unseen=((3, 2),),
    shots=1,
    per_camera=True,
    by_person=True,
)
_PRCC = "PRCC (Yang et al., TPAMI 2021), {}: camera {} asks a gallery drawn from camera A"
PROTOCOLS: dict[str, ReidProtocol] = {
    "market1501": ReidProtocol("Market-1501 protocol"),
    "single_shot": ReidProtocol(
        "Single-shot (CUHK03 classic, VIPeR): the gallery of a trial is drawn at random from other cameras"
        " than the query's",
        shots=1,
    ),
    "sysu_all": _SYSU,
    "sysu_indoor": replace(
        _SYSU,
        words=_SYSU.words.replace("all-search", "indoor-search").replace("1, 2, 4, 5", "1 and 2"),
        gallery_cameras=(1, 2),
    ),
    "ltcc_standard": ReidProtocol("LTCC (Qian et al., ACCV 2020), standard setting"),
    "ltcc_cloth_changing": ReidProtocol(
        "LTCC (Qian et al., ACCV 2020), cloth-changing setting: images of the query's person in the same"
        " clothes are left out too",
        clothes="changed",
    ),
    "prcc_same_clothes": ReidProtocol(
        _PRCC.format("same clothes", "B"), query_cameras=(2,), gallery_cameras=(1,), shots=1
    ),
    "prcc_cross_clothes": ReidProtocol(
        _PRCC.format("cross-clothes", "C"), query_cameras=(3,), gallery_cameras=(1,), shots=1
    ),
}
MARKET = PROTOCOLS["market1501"]


def find_protocol(name: str, shots: int | None = None, trials: int | None = None) -> ReidProtocol:
    """The protocol of that name, with other numbers of shots and trials where they are given.

    Raises:
        UserError: there is none of that name, or a number that makes no sense for it.
    """
    protocol = find("protocol", name, PROTOCOLS)
    if shots is None and trials is None:
        return protocol
    if not protocol.shots:
        raise UserError(f"protocol {name} draws no samples", "leave --shots and --trials out")
    if shots is not None and shots < 1:
        raise UserError(f"{shots} gallery images of each person", "choose 1 or more")
    if trials is not None and not 1 <= trials <= MAX_TRIALS:
        raise UserError(f"{trials} trials", f"choose 1 to {MAX_TRIALS:,}")
    return replace(protocol, shots=shots or protocol.shots, trials=trials or protocol.trials)


def asked_rows(protocol: ReidProtocol, query: FeatureSet) -> Rows:
    """Positions of the queries that the protocol asks.

    Raises:
        UserError: there is none.
    """
    rows = np.arange(len(query))
    if protocol.query_cameras:
        rows = np.flatnonzero(np.isin(query.camids, protocol.query_cameras))
        if not len(rows):
            raise UserError(
                f"no query is of camera {' or '.join(map(str, protocol.query_cameras))}, which this protocol"
                f" asks (cameras of the queries: {_some(query.camids)})",
                "number the cameras as the data set does, or choose another protocol",
            )
    return rows


def trial_parts(
    protocol: ReidProtocol, query: FeatureSet, gallery: FeatureSet, trial: int, seed: int
) -> Iterator[tuple[Rows, Rows]]:
    """Rows of queries and of the gallery that they meet; every asked query is in one part.

    A trial gives every gallery image a random number; the ``shots`` smallest of each person (and camera) are
    drawn. So all parts of a trial see the same draw, except for a query's own camera.

    Raises:
        UserError: nobody to ask, or nobody to be found.
    """
    asked = asked_rows(protocol, query)
    if not protocol.shots and not protocol.by_camera:
        yield asked, np.arange(len(gallery))
        return
    number = np.random.default_rng([seed, trial]).permutation(len(gallery))
    allowed = gallery.pids != JUNK
    if protocol.gallery_cameras:
        allowed &= np.isin(gallery.camids, protocol.gallery_cameras)
    own_camera_out = protocol.shots and protocol.exclude_same_camera and not protocol.per_camera
    places = set(np.unique(gallery.camids).tolist())
    parts: dict[
        tuple[int, ...], list[int]
    ] = {}  # cameras of the gallery that are hidden -> positions of the queries
    for camera in np.unique(query.camids[asked]).tolist():
        hidden = {place for eye, place in protocol.unseen if eye == camera}
        hidden |= {camera} if own_camera_out else set()
        parts.setdefault(tuple(sorted(hidden & places)), []).append(camera)
    for hides, cameras in parts.items():
        rows = np.flatnonzero(allowed & ~np.isin(gallery.camids, hides))
        if not len(rows):
            raise UserError(
                f"queries of camera {cameras[0]} have no gallery (its cameras: {_some(gallery.camids)})",
                "number the cameras as the data set does, or choose another protocol",
            )
        if protocol.shots:
            rows = _drawn(protocol, gallery, rows, number)
        yield asked[np.isin(query.camids[asked], cameras)], rows


def _drawn(protocol: ReidProtocol, gallery: FeatureSet, rows: Rows, number: Rows) -> Rows:
    """The ``shots`` rows of each person (and camera) with the smallest numbers; all distractors."""
    pids = gallery.pids[rows]
    camids = gallery.camids[rows] if protocol.per_camera else np.zeros_like(rows)
    order = np.lexsort((number[rows], camids, pids))
    new = np.ones(len(order), bool)
    new[1:] = (pids[order][1:] != pids[order][:-1]) | (camids[order][1:] != camids[order][:-1])
    starts = np.flatnonzero(new)
    place = np.arange(len(order)) - starts[np.cumsum(new) - 1]
    kept = (place < protocol.shots) | (pids[order] == DISTRACTOR)
    return np.sort(rows[order[kept]])


def _some(camids: NDArray[np.int64]) -> str:
    cameras = np.unique(camids)
    return ", ".join(map(str, cameras[:8])) + (", ..." if len(cameras) > 8 else "")


def fold_sets(
    everybody: FeatureSet, folds: int, seed: int = 0, train_people: int | None = None
) -> list[dict[str, FeatureSet]]:
    """Random splits of people into training and test (VIPeR: 10 halves of 632), for means over them.

    Of the test people the images of the lowest camera number ask, all others are the gallery. Where no camera
    is known (``reid.search.with_cameras``) the first image of each person asks. Junk and distractors are in
    every gallery.

    Args:
        everybody: all images of a data set.
        folds: 1 to 1,000.
        train_people: people who train; default: half of them, rounded down.

    Raises:
        UserError: an impossible number.
    """
    people, first = np.unique(everybody.pids, return_index=True)
    first, people = first[people > 0], people[people > 0]
    known = np.unique(everybody.camids[everybody.camids >= 0])
    count = len(people) // 2 if train_people is None else train_people
    if not 1 <= folds <= MAX_TRIALS:
        raise UserError(f"{folds} folds", f"choose 1 to {MAX_TRIALS:,}")
    if not 1 <= count < len(people):
        raise UserError(f"{count} of {len(people)} people for training", "leave at least one on either side")
    if len(known) > (everybody.camids >= 0).all():
        asks = everybody.camids == known[0]
    else:  # one number for all, or none at all
        asks = np.isin(np.arange(len(everybody)), first)
    sets = []
    for fold in range(folds):
        trained = np.random.default_rng([seed, fold]).permutation(people)[:count]
        train = np.isin(everybody.pids, trained)
        nobody = everybody.pids <= DISTRACTOR
        kinds = {
            "query": ~train & ~nobody & asks,
            "gallery": ~train & (~asks | nobody),
            "train": train,
        }
        sets.append({name: everybody.rows(np.flatnonzero(chosen)) for name, chosen in kinds.items()})
    return sets
