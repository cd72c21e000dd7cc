"""Market-1501 (Zheng et al., ICCV 2015) and every data set in its layout and names.

    ROOT/bounding_box_train/  ROOT/query/  ROOT/bounding_box_test/    images PPPP_cCsS_FFFFFF_BB.jpg
    ROOT/parsing/<stem>.png   ROOT/mask/<stem>.png                    LIP-20 maps, binary masks
    ROOT/keypoints.csv  or  ROOT/lists/keypoints.csv                  colon CSV of 18 OpenPose joints

Labels come from the file name alone: the pattern that other readers search in the whole path takes a parent
folder such as run12_c3 for a label. 24 official names end in .jpg.jpg. Pid -1 is junk, 0000 a distractor.
"""

from __future__ import annotations

from pathlib import Path

from reposer.data.label_files import PLAIN, MapRules
from reposer.data.layouts.folder_scan import list_names
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
from reposer.data.layouts.market_names import is_generated, parse_name, stem
from reposer.data.preparing.annotation_lookup import Annotations, Places
from reposer.data.problems import AnnotationProblem
from reposer.errors import UserError
from reposer.storage.paths import RefusedFileError, printable
from reposer.structures import PersonRecord

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
        data/preparing/annotation_lookup.py. holdout: the training people with this many highest pids get the
        split "val". on_progress: called after each image.
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
        raise UserError(f"{printable(root)}: no such folder", "check the path")
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
