"""DeepFashion In-shop Clothes Retrieval (Liu et al., CVPR 2016) as the pose-transfer literature splits it.

    ROOT/img/WOMEN/Dresses/id_00000002/02_1_front.jpg          the download (or img_highres/)
    ROOT/train/fashionWOMENDressesid0000000202_1front.jpg      the same as PATN, GFLA and others rename it
    ROOT/train.lst, test.lst                                   48,674 and 4,038 names, one a line
    ROOT/fasion-resize-annotation-{train,test}.csv             keypoints (inshop.py)
    ROOT/fasion-resize-pairs-{train,test}.csv                  pairs; made by the official rule where absent

Both spellings may stand in every file, mixed. The identity is the garment (item and variant), which the split
keeps apart. Items are not: 503 of them (2,266 of the 4,038 test images) are trained on as other variants;
papers that say the identities do not overlap mean garments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from reposer.data.keypoints import Pose
from reposer.data.label_files import PLAIN, MapRules
from reposer.data.layouts.inshop import (
    FILES,
    InshopName,
    SplitOverlap,
    add_keypoints,
    frame_of,
    parse_inshop_name,
    split_overlap,
)
from reposer.data.layouts.labeled_files import (
    NO_CAMERA,
    LabeledFile,
    Problems,
    Progress,
    left_out,
    read_labeled,
    unread_problems,
)
from reposer.data.pairs import numbered_pairs, official_train_pairs
from reposer.data.preparing.annotation_lookup import Annotations, Places
from reposer.data.records import AnnotationProblem, text_lines
from reposer.errors import UserError
from reposer.storage.paths import RefusedFileError, no_folder, printable, require_inside
from reposer.structures import NUM_JOINTS, PersonRecord

SPLITS = {"test": "val", "train": "train"}  # list -> split; test first: an image of both lists is tested on
IMAGE_FOLDERS = ("img", "img_highres", "fashion", "fashion_resize")  # the first that exists
LIST_FOLDERS = ("", "lists", "fashion_data")  # where the lists are looked for
PAIR_FILES = tuple(
    f"{fashion}{resized}-pairs-{{}}.csv" for resized in ("-resize", "") for fashion in ("fasion", "fashion")
)

Pairs = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class InshopPeople:
    """What was read."""

    records: list[PersonRecord]  # in the order of the keypoint files, from which the official pairs follow
    problems: Problems
    overlap: SplitOverlap  # of the two lists, whichever images are here
    pairs: dict[str, Pairs] = field(default_factory=dict)  # "train", "val" -> names of source and target


def read_deepfashion(
    root: str | Path,
    parsing: str | Path | None = None,
    mask: str | Path | None = None,
    keypoints: Places = None,
    *,
    images: str | None = None,
    lists: str | None = None,
    frame: str = "auto",
    rules: MapRules = PLAIN,
    look_only: bool = False,
    on_progress: Progress | None = None,
) -> InshopPeople:
    """Decode every listed image and read every annotation once; good rows become records, the rest is listed.

    The images of test.lst get the split "val". Nobody knows a camera: camid 0.

    Args:
        root: the data set's folder; only read.
        parsing: folder of label maps inside ``root``; None: root/parsing where there is one.
        mask: folder of masks inside ``root``; None: root/mask where there is one.
        keypoints: CSV; None: the published ones beside the lists, else root/keypoints.csv.
        images: folder of the images below ``root``; None: the first of IMAGE_FOLDERS, else ``root`` itself.
        lists: folder of the lists, anywhere; None: the first of LIST_FOLDERS below ``root`` that has one.
        frame: of the keypoints, see ``inshop.frame_of``.
        rules: what maps and masks mean.
        look_only: a dry run: nothing is decoded, records have no size and no hash, and joints
            stay in their frame.
        on_progress: called after each image.

    Raises:
        UserError: no such folder, no list, no usable image, or a keypoint or pair file that cannot be
            used as a whole.
    """
    root = Path(root)
    if not root.is_dir():
        raise no_folder(root)
    annotations = Annotations.find(root, parsing, mask, keypoints, rules=rules, look_only=look_only)
    problems: Problems = []
    where = _list_folder(root, lists)
    names = _read_lists(where, problems)
    overlap = split_overlap(names["train"], names["test"])
    files = [
        LabeledFile(_image(root, images, name, kind), name.flat, name.pid, NO_CAMERA, split)
        for kind, split in SPLITS.items()
        for name in names[kind]
    ]
    records = read_labeled(root, files, problems, replace(annotations, keypoints=()), on_progress)
    published = [_first(where, FILES, kind) for kind in SPLITS]
    sources = [path for path in published if path is not None and keypoints is None]
    if not sources:
        sources = list(annotations.keypoints)
    problems += _overlap_problems(overlap, names["test"])
    problems += unread_problems(root, records, problems, annotations, *map(str, sources))
    records, order = add_keypoints(records, [(path, frame_of(path, frame)) for path in sources], problems)
    place = {name: number for number, name in enumerate(order)}
    records.sort(key=lambda record: place.get(record.name, len(place)))  # stable: else as listed
    pairs = {split: _pairs(where, kind, records, problems) for kind, split in SPLITS.items()}
    return InshopPeople(records, problems, overlap, pairs)


def inshop_pairs(names: Sequence[str], keypoints: Pose, split: str) -> Pairs:
    """The official rule: ordered pairs of a garment whose images show both shoulders and hips.

    Of "val" all pairs in the order of the published list: a sample of 8,570 out of 8,570, by pandas with
    random_state 0, when names come in the order of the annotation file. Of "train" in that order itself.

    Args:
        names: (N,) flat names.
        keypoints: (N, J, 2) of the same images.
    """
    garments = [parse_inshop_name(name).garment.replace("_", "") for name in names]  # as the rule cuts names
    pairs = official_train_pairs(garments, keypoints)
    if split != "train":
        pairs = pairs[np.random.RandomState(0).choice(len(pairs), len(pairs), replace=False)]
    return [(names[source], names[target]) for source, target in pairs.tolist()]


def _list_folder(root: Path, lists: str | None) -> Path:
    places = [root / place for place in LIST_FOLDERS] if lists is None else [Path(lists)]
    for place in places:
        if lists is None:
            require_inside(place, root)
        if any((place / f"{kind}.lst").exists() for kind in SPLITS):
            return place
    advice = (
        "put train.lst and test.lst of the pose-transfer literature there, or name their folder by --lists"
    )
    raise UserError(f"{printable(places[0])}: holds neither train.lst nor test.lst", advice)


def _read_lists(folder: Path, problems: Problems) -> dict[str, list[InshopName]]:
    """The names of each list, each image once."""
    found: dict[str, list[InshopName]] = {}
    rows: dict[InshopName, tuple[str, int]] = {}
    for kind in SPLITS:
        found[kind] = []
        file = f"{kind}.lst"
        if not (folder / file).exists():
            problems.append(AnnotationProblem(file, 0, "file", "no such list", "missing-list"))
            continue
        for row, line in enumerate(text_lines(folder / file, folder), start=1):
            text = line.decode("utf-8", "backslashreplace").strip()
            if not text:
                continue
            try:
                name = parse_inshop_name(text)
            except RefusedFileError as error:
                problem = left_out(file, "name", error)
                message = f"{printable(text[:80])}: {problem.message}"
                problems.append(AnnotationProblem(file, row, "name", message, error.rule))
                continue
            if name in rows:
                message = (
                    f"{printable(text)} stands in {rows[name][0]}, row {rows[name][1]} already; left out"
                )
                problems.append(AnnotationProblem(file, row, "name", message, "repeated-path"))
                continue
            rows[name] = (file, row)
            found[kind].append(name)
    return found


def _overlap_problems(overlap: SplitOverlap, tested: Sequence[InshopName]) -> Problems:
    """A warning for each item that is both trained and tested on."""
    first: dict[str, str] = {}
    for name in tested:
        first.setdefault(name.product, name.flat)
    return [
        AnnotationProblem(
            *("test.lst", 0, "item"),
            f"{product} is in train.lst too, as another variant (here {first[product]})",
            "item-train-test",
        )
        for product in overlap.products
    ]


def _image(root: Path, images: str | None, name: InshopName, kind: str) -> str:
    """Path of the image relative to ``root``: the first spelling that exists, else the download's."""
    folders = [images] if images is not None else [f for f in IMAGE_FOLDERS if (root / f).is_dir()][:1]
    bases = [f"{folder.strip('/')}/" for folder in folders] or [""]
    if images is None:
        bases = list(dict.fromkeys([*bases, ""]))
    spellings = (name.original, name.flat, f"{kind}/{name.flat}")
    paths = [base + spelling for base in bases for spelling in spellings]
    return next((path for path in paths if (root / path).exists()), paths[0])


def _first(folder: Path, files: Sequence[str], kind: str) -> Path | None:
    """The first of the published spellings of a file that is there."""
    found = next((path for path in (folder / file.format(kind) for file in files) if path.exists()), None)
    require_inside(found or folder, folder)
    return found


def _pairs(folder: Path, kind: str, records: Sequence[PersonRecord], problems: Problems) -> Pairs:
    """The published list of pairs where it is there, else the rule's."""
    split = SPLITS[kind]
    chosen = [record for record in records if record.split == split]
    names = [record.name for record in chosen]
    published = _first(folder, PAIR_FILES, kind)
    if published is None:
        missing = np.full((NUM_JOINTS, 2), np.nan, np.float32)
        poses = [missing if record.keypoints is None else record.keypoints for record in chosen]
        keypoints = np.stack(poses) if poses else np.empty((0, NUM_JOINTS, 2), np.float32)
        return inshop_pairs(names, keypoints, split)
    known = set(names)
    rows, bad = numbered_pairs(published)
    problems += [AnnotationProblem(p.file, p.row, p.field, p.message, "bad-pair") for p in bad]
    pairs: Pairs = []
    for number, row in rows.items():
        try:
            source, target = (parse_inshop_name(name).flat for name in row)
        except RefusedFileError as error:
            message = f"{error.file}: {error.reason}; left out"
            problems.append(AnnotationProblem(str(published), number, "name", message, "bad-pair"))
            continue
        if source in known and target in known:
            pairs.append((source, target))
        else:
            unknown = source if source not in known else target
            message = f"{unknown} is no usable image of {kind}.lst; the pair is left out"
            problems.append(AnnotationProblem(str(published), number, "name", message, "unknown-pair"))
    return pairs
