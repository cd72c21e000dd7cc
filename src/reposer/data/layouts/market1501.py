"""Market-1501 (Zheng et al., ICCV 2015) and every data set in its layout and names.

    ROOT/bounding_box_train/  ROOT/query/  ROOT/bounding_box_test/    images PPPP_cCsS_FFFFFF_BB.jpg
    ROOT/parsing/<stem>.png   ROOT/mask/<stem>.png                    LIP-20 maps, binary masks
    ROOT/keypoints.csv  or  ROOT/lists/keypoints.csv                  colon CSV of 18 OpenPose joints

Labels come from the file name alone: the pattern that other readers search in the whole path takes a parent
folder such as run12_c3 for a label. 24 official names end in .jpg.jpg. Pid -1 is junk, 0000 a distractor.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from reposer.data.label_files import PLAIN, MapRules
from reposer.data.layouts.folder_scan import list_names, portable_key
from reposer.data.layouts.labeled_files import (
    LabeledFile,
    Problems,
    Progress,
    hold_out,
    left_out,
    read_labeled,
    unread_problems,
    zero_problems,
)
from reposer.data.preparing.annotation_lookup import Annotations, Places
from reposer.data.records import AnnotationProblem
from reposer.errors import UserError
from reposer.storage.files import sha256_bytes
from reposer.storage.paths import RefusedFileError, no_folder, printable
from reposer.structures import PersonRecord

# ---- File names of Market-1501, ``PPPP_cCsS_FFFFFF_BB.jpg``, and of pictures generated from its images.
#
# The suffix ``_gNN`` of generated pictures, or ``_gNN-CC`` (:func:`with_camera`), is allowed. Imports no
# torch.

_SUFFIXES = r"((?:\.(?:jpe?g|png|webp|bmp))+)"
_NAME = re.compile(
    r"(-1|[0-9]{4,6})_c([1-9][0-9]?)s([1-9][0-9]?)_([0-9]{1,8})_([0-9]{1,3})(?:_g[0-9]{2,3}(?:-[0-9]{1,2})?)?"
    + _SUFFIXES,
    re.ASCII | re.IGNORECASE,
)


class MarketName(NamedTuple):
    """What a file name says."""

    pid: int  # -1 junk, 0 distractor
    camid: int  # from 1
    sequence: int
    frame: int
    box: int


def parse_name(file_name: str) -> MarketName:
    """The labels in ``PPPP_cCsS_FFFFFF_BB.jpg``; a folder in front of the name is not looked at.

    Raises:
        RefusedFileError: rule ``bad-name``: the name has another form.
    """
    match = _NAME.fullmatch(file_name.rpartition("/")[2])
    if match is None:
        advice = "rename it like 0002_c1s1_000451_03.jpg (person, camera, sequence, frame, box)"
        raise RefusedFileError(file_name, "bad-name", "not a Market-1501 image name", advice)
    pid, camid, sequence, frame, box = (int(match[i]) for i in range(1, 6))
    return MarketName(pid, camid, sequence, frame, box)


def stem(file_name: str) -> str:
    """The name without its image extensions, of which 24 official names have two."""
    return re.sub(_SUFFIXES + r"\Z", "", file_name, flags=re.ASCII | re.IGNORECASE)


# ---- Names of generated pictures: ``<stem of the source>_gNN.jpg``, NN the number of the copy, from 01.
#
# So a name keeps person and camera of its source for every program that reads them from names: the
# Market-1501 grammar above and the pattern ``([-\d]+)_c(\d)`` of
# torchreid, fast-reid and others. Siarohin et al. (CVPR 2018) name theirs likewise, without the underscore.

MAX_COPY = 999  # that is_generated knows
MAX_NAME_BYTES = 100  # so that a path still fits everywhere (tar's name field, Windows' 260 characters)

_GENERATED = re.compile(r"(.+)_g([0-9]{2,3})\.(jpg|png)", re.ASCII)
_PORTABLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_LONGEST_STEM = MAX_NAME_BYTES - len("_g01.jpg")


class GeneratedName(NamedTuple):
    """What the name of a generated picture says."""

    stem: str  # of the source's name
    copy: int  # from 1
    file_format: str  # "jpg" or "png"


def generated_name(source: str, copy: int, file_format: str) -> str:
    """Name of copy number ``copy`` (from 1) of the image ``source``."""
    return f"{portable_stem(source)}_g{copy:02d}.{file_format}"


def portable_stem(name: str, dots: bool = True) -> str:
    """:func:`stem` as every system and program holds it: where it has other characters than A-Z a-z 0-9 . _ -
    they become _, a long one is cut, and either then ends in a piece of the hash of the stem.

    Args:
        dots: may stay in it.
    """
    plain = stem(name)
    if _PORTABLE.fullmatch(plain) and len(plain) <= _LONGEST_STEM and (dots or "." not in plain):
        return plain
    safe = re.sub(r"[^A-Za-z0-9._-]" if dots else r"[^A-Za-z0-9_-]", "_", plain).lstrip("._-") or "image"
    tag = sha256_bytes(plain.encode("utf-8", "surrogateescape"))[:8]
    return f"{safe[: _LONGEST_STEM - 1 - len(tag)]}-{tag}"


def with_camera(name: str, camid: int, *, apart: bool = False) -> str:
    """The name with another camera's number, for pictures in its colors; any other kind of name as it is.

    Args:
        apart: with the number that was there behind the copy's (``_gNN-CC``): different names stay different.
    """
    match = re.match(r"(-?\d+_c)(\d+)(?=s\d)", name, flags=re.ASCII)
    if match is None or match[2] == str(camid):
        return name
    there = f"{match[1]}{camid}{name[match.end() :]}"
    plain, dot, suffix = there.rpartition(".")
    return f"{plain}-{match[2]}{dot}{suffix}" if apart else there


def parse_generated(name: str) -> GeneratedName | None:
    """The parts of a generated picture's name; None for a name that is none."""
    match = _GENERATED.fullmatch(name)
    return GeneratedName(match[1], int(match[2]), match[3]) if match else None


def is_generated(name: str) -> bool:
    """Whether a file name, whatever its extensions, has the suffix of a generated picture."""
    plain = re.sub(r"-[0-9]{1,2}\Z", "", stem(name), flags=re.ASCII)  # of with_camera
    return parse_generated(f"{plain}.jpg") is not None


def check_names(names: Sequence[str]) -> None:
    """Refuse names of which two are one file somewhere, or that some system cannot hold.

    Raises:
        UserError: two names are equal under Unicode NFC and case folding, a name is longer than 100 bytes or
            holds other characters than A-Z a-z 0-9 . _ -; names the first.
    """
    bad = next((name for name in names if not _PORTABLE.fullmatch(name)), None)
    long = next((name for name in names if len(name.encode()) > MAX_NAME_BYTES), None)
    if bad is not None or long is not None:
        problem = "holds other characters than A-Z a-z 0-9 . _ -" if bad is not None else "is too long"
        raise UserError(f"{bad or long}: the name {problem}", "rename the image, then prepare again")
    same = collisions(names)
    if same:
        raise UserError(
            f"{same[0]}: two files would have this name", "rename one of them, then prepare again"
        )


def collisions(names: Iterable[str]) -> list[str]:
    """Names, folded, that occur more than once on a disk that ignores case or Unicode form."""
    times = Counter(map(portable_key, names))
    return [name for name, count in times.items() if count > 1]


FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
OFFICIAL_COUNTS = {"train": 12_936, "query": 3_368, "gallery": 19_732}
JUNK, DISTRACTOR = -1, 0  # pids


def read_market1501(
    root: str | Path,
    parsing: str | Path | None = None,
    mask: str | Path | None = None,
    keypoints: Places = None,
    holdout: int = 0,
    on_progress: Progress | None = None,
    *,
    rules: MapRules = PLAIN,
    look_only: bool = False,
) -> tuple[list[PersonRecord], Problems]:
    """Decode every image and read every annotation once; good rows become records, the rest is listed.

    Records are sorted by folder and name, whatever order the disk lists them in. A record is kept without an
    annotation that is missing or bad. What cannot be used has one problem each, and so has what was used by
    one of the rules in image_rules.ACCEPTED.

    Args:
        root: folder that holds at least one of FOLDERS; only read.
        parsing: folder of label maps inside ``root``; None: root/parsing where there is one.
        mask: folder of masks inside ``root``; None: root/mask where there is one.
        keypoints: one CSV or several; None: those in ``root`` or root/lists, see
            data/preparing/annotation_lookup.py.
        holdout: the training people with this many highest pids get the split "val".
        on_progress: called after each image.
        rules: what maps and masks mean.
        look_only: a dry run: nothing is decoded, records have no size and no hash.

    Raises:
        UserError: no such folder, no usable image, an unusable keypoint file, a holdout of everybody.
    """
    root = Path(root)
    annotations = Annotations.find(root, parsing, mask, keypoints, rules=rules, look_only=look_only)
    files, problems = _list_images(root)
    problems += zero_problems(files, "rename the files to begin with 0001")
    records = hold_out(root, read_labeled(root, files, problems, annotations, on_progress, stem), holdout)
    records = _without_generated_tests(records, problems)
    return records, problems + unread_problems(root, records, problems, annotations)


def _without_generated_tests(records: list[PersonRecord], problems: Problems) -> list[PersonRecord]:
    """Generated pictures may be trained on, never tested on: those of the other splits become problems."""
    synthetic = [record for record in records if record.split != "train" and is_generated(record.name)]
    message = "a generated picture is nothing to test on; left out"
    problems += [AnnotationProblem(r.path, 0, "name", message, "generated-test") for r in synthetic]
    left = {record.path for record in synthetic}
    return [record for record in records if record.path not in left]


def _list_images(root: Path) -> tuple[list[LabeledFile], Problems]:
    """Every file with a Market-1501 name, and a problem for everything else."""
    if not root.is_dir():
        raise no_folder(root)
    if not any((root / folder).is_dir() for folder in FOLDERS):
        raise UserError(
            f"{printable(root)}: holds none of {', '.join(FOLDERS)}", "give the folder that holds them"
        )
    files: list[LabeledFile] = []
    problems: Problems = []
    for folder, split in FOLDERS.items():
        for name in list_names(root, folder):
            path = f"{folder}/{name}"
            try:
                label = parse_name(name)
            except RefusedFileError as error:
                problems.append(left_out(path, "name", error))
                continue
            if split == "train" and label.pid in (JUNK, DISTRACTOR):
                message = "junk and distractors are no people to train on; left out"
                problems.append(AnnotationProblem(path, 0, "name", message, "no-identity"))
                continue
            files.append(LabeledFile(path, name, label.pid, label.camid, split))
    return files, problems
