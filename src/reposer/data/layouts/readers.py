"""Data sets by the name of their layout: one dict, one way from a folder to what `reposer prepare` writes.

A layout is a function that lists files with their labels; images, annotations and pairs are then read and
made in the same way for all. One that needs more (rules, pairs or a split of its own) reads itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from reposer.data.label_files import PLAIN, MapRules
from reposer.data.layouts.deepfashion import read_deepfashion
from reposer.data.layouts.identity_folders import list_folders
from reposer.data.layouts.labeled_files import (
    NO_CAMERA,
    Listing,
    Problems,
    Progress,
    hold_out,
    read_labeled,
    unread_problems,
    zero_problems,
)
from reposer.data.layouts.market1501 import read_market1501
from reposer.data.layouts.reid_layouts import (
    list_cuhk03,
    list_cuhk03_np,
    list_dukemtmc,
    list_ltcc,
    list_msmt17,
    list_prcc,
    list_veri,
    list_viper,
)
from reposer.data.layouts.tables import list_table
from reposer.data.pairs import development_pairs, official_train_pairs
from reposer.data.preparing.annotation_lookup import Annotations, Places
from reposer.data.preparing.report import TRAINING
from reposer.data.records import DECISIONS, AnnotationProblem, kept_by_hand
from reposer.errors import UserError, find, known
from reposer.storage.paths import no_folder, printable
from reposer.structures import NUM_JOINTS, PersonRecord

# torso: images that show both shoulders and hips, the official rule; parsing: images with a parsing map
PairRule = Literal["torso", "parsing"]
PAIR_RULES: tuple[PairRule, ...] = ("torso", "parsing")

Place = str | Path | None


@dataclass(frozen=True, slots=True)
class Found:
    """A data set as it was read."""

    records: list[PersonRecord]
    problems: Problems
    pairs: dict[str, list[tuple[str, str]]]  # "train", "val" -> names of source and target
    notes: list[str] = field(default_factory=list)  # for the summary
    training: tuple[str, ...] = TRAINING  # splits whose people may be trained on or chosen by


@dataclass(frozen=True, slots=True)
class Reading:
    """How a data set is read, whatever its layout; see the readers."""

    pairs: PairRule  # which images make pairs
    holdout: int
    parsing: Place
    mask: Place
    keypoints: Places
    rules: MapRules
    on_progress: Progress | None
    look_only: bool

    def of_readers(self) -> dict[str, Any]:
        """All but the pairs, as keywords."""
        return {name: getattr(self, name) for name in self.__slots__ if name != "pairs"}


# ---- The two layouts that read themselves.


@dataclass(frozen=True, slots=True)
class Whole:
    """A layout that reads itself: called with the folder, how to read it, and the layout's own options."""

    read: Callable[..., Found]


def _market1501(root: Path, reading: Reading) -> Found:
    return _with_pairs(read_market1501(root, **reading.of_readers()), reading)


def _deepfashion(
    root: Path, reading: Reading, images: str | None = None, lists: str | None = None, frame: str = "auto"
) -> Found:
    if reading.holdout or reading.pairs != "torso":
        problem = "deepfashion has its own test images and pair rule"
        raise UserError(f"{problem}: holdout and pairs cannot be chosen", "leave them out")
    shared = reading.of_readers()
    del shared["holdout"]
    people = read_deepfashion(root, images=images, lists=lists, frame=frame, **shared)
    notes = [f"identities    overlap of the official split: {people.overlap}"]
    return Found(people.records, people.problems, people.pairs, notes, training=("train",))


# What lists a data set's files: a folder and keywords to files with labels, and problems. The keywords with
# a default are options of `reposer prepare NAME`.
LAYOUTS: dict[str, Callable[..., Listing] | Whole] = {
    "market1501": Whole(_market1501),
    "dukemtmc": list_dukemtmc,
    "cuhk03": list_cuhk03,
    "cuhk03_np": list_cuhk03_np,
    "msmt17": list_msmt17,
    "viper": list_viper,
    "veri": list_veri,
    "ltcc": list_ltcc,
    "prcc": list_prcc,
    "folders": list_folders,
    "table": list_table,
    "deepfashion": Whole(_deepfashion),
}

# Images of train, query, gallery as published; another count is a warning, since subsets are in use too.
OFFICIAL_COUNTS: dict[str, dict[str, int]] = {
    "dukemtmc": {"train": 16_522, "query": 2_228, "gallery": 17_661},
    "msmt17": {"train": 32_621, "query": 11_659, "gallery": 82_161},
    "viper": {"train": 632, "query": 316, "gallery": 316},
    "cuhk03 new detected": {"train": 7_365, "query": 1_400, "gallery": 5_332},
    "cuhk03 new labeled": {"train": 7_368, "query": 1_400, "gallery": 5_328},
}


def read_layout(layout: str, root: Path, options: dict[str, Any], reading: Reading) -> Found:
    """Read a data set of any layout.

    Args:
        options: keywords of the layout.
        reading: how, whatever the layout.

    Raises:
        UserError: an unknown layout, option or pair rule, and all that the readers raise.
    """
    known("pairs", reading.pairs, PAIR_RULES)
    reader = find("layout", layout, LAYOUTS)
    if isinstance(reader, Whole):
        _check_options(layout, options)
        return _without_dropped(reader.read(root, reading, **options), root)
    people = read_people(layout, root, options=options, **reading.of_readers())
    found = _with_pairs(people, reading, anonymous=bool(options.get("anonymous")))
    return _without_dropped(found, root)


def _without_dropped(found: Found, root: Path) -> Found:
    """Without the images that somebody dropped by hand in ``reposer serve``, and without their pairs."""
    records = found.records
    names, digests = [record.path for record in records], [record.sha256 for record in records]
    kept = kept_by_hand(root, names, digests, np.ones(len(records), np.bool_))
    if kept.all():
        return found
    if not kept.any():
        raise UserError(f"{printable(root)}: every image was dropped by hand", f"look at {DECISIONS}")
    gone = {record.name for record, keep in zip(records, kept, strict=True) if not keep}
    message = f"dropped by hand, see {DECISIONS}; left out"
    problems = [
        AnnotationProblem(printable(record.path), 0, "image", message, "dropped-by-hand")
        for record in records
        if record.name in gone
    ]
    left = [record for record in records if record.name not in gone]
    pairs = {
        split: [pair for pair in listed if gone.isdisjoint(pair)] for split, listed in found.pairs.items()
    }
    return replace(found, records=left, problems=[*found.problems, *problems], pairs=pairs)


def options_of(layout: str) -> list[inspect.Parameter]:
    """The keywords of a layout.

    Raises:
        UserError: an unknown layout.
    """
    reader = find("layout", layout, LAYOUTS)
    function, before = (reader.read, 2) if isinstance(reader, Whole) else (reader, 1)
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())[before:]
    return [parameter for parameter in parameters if parameter.name != "skip"]  # given by read_people


def _check_options(layout: str, options: dict[str, Any]) -> None:
    parameters = options_of(layout)
    for name in options:
        known(f"layout {layout}: option", name, [parameter.name for parameter in parameters])
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise UserError(f"layout {layout}: needs the option {parameter.name}", "name it")


def read_people(
    layout: str,
    root: str | Path,
    *,
    options: dict[str, Any] | None = None,
    parsing: str | Path | None = None,
    mask: str | Path | None = None,
    keypoints: Places = None,
    rules: MapRules = PLAIN,
    look_only: bool = False,
    holdout: int = 0,
    on_progress: Progress | None = None,
) -> tuple[list[PersonRecord], Problems]:
    """Decode every image and read every annotation once, of a layout that lists its files.

    Records are in the order of the layout's lists or of folders and names. Counts other than the published
    ones are a warning; copies and people on both sides of the split are found by ``report.find_leaks``.

    Args:
        layout: a key of LAYOUTS whose value is a function.
        root: the data set's folder; only read.
        options: keywords of the layout's function: ``split`` of VIPeR; ``kind``, ``protocol`` and ``split``
            of CUHK03; ``camera``, ``identity``, ``labels``, ``anonymous``, ``zero_based`` of folders;
            ``table``, ``zero_based`` of a table.
        parsing: folder of label maps inside ``root``; None: root/parsing where there is one.
        mask: folder of masks inside ``root``; None: root/mask where there is one.
        keypoints: one CSV or several; None: those in ``root`` or root/lists, see
            data/preparing/annotation_lookup.py.
        rules: what maps and masks mean.
        look_only: a dry run: nothing is decoded, records have no size and no hash.
        holdout: the training people with this many highest pids get the split "val".
        on_progress: called after each image.

    Raises:
        UserError: unknown layout or option, no such folder, no usable image, a holdout of everybody.
    """
    list_files = find("layout", layout, LAYOUTS)
    assert not isinstance(list_files, Whole), f"{layout} reads itself, see read_layout"
    root = Path(root)
    if not root.is_dir():
        raise no_folder(root)
    annotations = Annotations.find(root, parsing, mask, keypoints, rules=rules, look_only=look_only)
    places = {"skip": tuple(annotations.folders.values())} if layout == "folders" else {}
    _check_options(layout, options or {})
    files, problems = list_files(root, **(options or {}), **places)
    problems += zero_problems(files, "add 1 to every number (--zero-based does)")
    usable = [file for file in files if not (file.split in ("train", "val") and file.pid < 1)]
    message = "junk and distractors are no people to train on; left out"
    problems += [
        AnnotationProblem(printable(file.path), 0, "pid", message, "no-identity")
        for file in files
        if file.split in ("train", "val") and file.pid < 1
    ]
    records = hold_out(root, read_labeled(root, usable, problems, annotations, on_progress), holdout)
    problems += check_counts(_official_name(layout, options or {}), records, str(root))
    tables = [str(value) for key, value in (options or {}).items() if key in ("labels", "table") and value]
    return records, problems + unread_problems(root, records, problems, annotations, *tables)


def check_counts(name: str, records: Sequence[PersonRecord], root: str) -> Problems:
    """A warning for each split whose number of images is not the published one; val counts as training."""
    problems: Problems = []
    for split, expected in OFFICIAL_COUNTS.get(name, {}).items():
        found = sum((r.split if r.split != "val" else "train") == split for r in records)
        if found != expected:
            message = f"{found:,} images, {expected:,} are published for {name}"
            problems.append(AnnotationProblem(printable(root), 0, split, message, "official-count"))
    return problems


def _official_name(layout: str, options: dict[str, Any]) -> str:
    if layout != "cuhk03":
        return layout
    return f"cuhk03 {options.get('protocol', 'new')} {options.get('kind', 'detected')}"


def _with_pairs(
    people: tuple[list[PersonRecord], Problems], reading: Reading, *, anonymous: bool = False
) -> Found:
    records, problems = people
    pairs: dict[str, list[tuple[str, str]]] = {"train": [], "val": []}
    if not reading.look_only:
        pairs = {split: _pairs(records, split, reading.pairs) for split in pairs}
    return Found(records, problems, pairs, _notes(records, anonymous))


def _pairs(records: Sequence[PersonRecord], split: str, rule: PairRule) -> list[tuple[str, str]]:
    """The official rule for training; for validation the fixed sample on which results are compared."""
    chosen = [record for record in records if record.split == split]
    if rule == "parsing":
        chosen = [record for record in chosen if record.parsing is not None]
    names = [record.name for record in chosen]
    poses = np.array([_pose(record, rule) for record in chosen], np.float32).reshape(-1, NUM_JOINTS, 2)
    pairs = (official_train_pairs if split == "train" else development_pairs)(names, poses)
    return [(names[source], names[target]) for source, target in pairs.tolist()]


def _pose(record: PersonRecord, rule: PairRule) -> NDArray[np.float32]:
    """What the official rule looks at; where a parsing map is enough, every joint counts as present."""
    if rule == "parsing":
        return np.zeros((NUM_JOINTS, 2), np.float32)
    return np.full((NUM_JOINTS, 2), np.nan, np.float32) if record.keypoints is None else record.keypoints


def _notes(records: Sequence[PersonRecord], anonymous: bool) -> list[str]:
    """What follows for training and measuring from labels that nobody knows."""
    notes = []
    if anonymous:
        notes.append(
            "identities    unknown: every image counts as a person of its own. No pair can be made: re-pose"
            " these people with a trained generator, and do not train Re-ID on them"
        )
    unknown = sum(record.camid == NO_CAMERA for record in records)
    if unknown == len(records):
        notes.append(
            f"cameras       unknown: every image has camera {NO_CAMERA}. Re-ID"
            " scores take every image as a camera of its own; do not compare such numbers"
            " with Market-1501's protocol; nothing tells whether the background is recognized"
        )
    elif unknown:
        notes.append(
            f"cameras       {unknown:,} images have camera {NO_CAMERA} (unknown) and count as one camera: two"
            " of them of one person are never a match"
        )
    return notes
