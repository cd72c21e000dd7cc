"""Re-ID data sets by layout name: one dict, one way from a folder to records, counts checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from reposer.data.label_files import PLAIN, MapRules
from reposer.data.layouts.identity_folders import list_folders
from reposer.data.layouts.labeled_files import (
    Listing,
    Problems,
    Progress,
    hold_out,
    read_labeled,
    unread_problems,
    zero_problems,
)
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
from reposer.data.preparing.annotation_lookup import Annotations, Places
from reposer.data.problems import AnnotationProblem
from reposer.errors import UserError, find
from reposer.storage.paths import printable
from reposer.structures import PersonRecord

# What lists a data set's files: a folder and keywords to files with labels, and problems. The keywords with
# a default are options of `reposer prepare NAME`. Market-1501 and DeepFashion are in preparing.by_layout.
LAYOUTS: dict[str, Callable[..., Listing]] = {
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
}

# Images of train, query, gallery as published; another count is a warning, since subsets are in use too.
OFFICIAL_COUNTS: dict[str, dict[str, int]] = {
    "dukemtmc": {"train": 16_522, "query": 2_228, "gallery": 17_661},
    "msmt17": {"train": 32_621, "query": 11_659, "gallery": 82_161},
    "viper": {"train": 632, "query": 316, "gallery": 316},
    "cuhk03 new detected": {"train": 7_365, "query": 1_400, "gallery": 5_332},
    "cuhk03 new labeled": {"train": 7_368, "query": 1_400, "gallery": 5_328},
}


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
    """Decode every image and read every annotation once, as ``read_market1501`` does for its layout.

    Records are in the order of the layout's lists or of folders and names. Counts other than the published
    ones are a warning; copies and people on both sides of the split are found by ``report.find_leaks``.

    Args:
        layout: a key of LAYOUTS.
        root: the data set's folder; only read.
        options: keywords of the layout's function: ``split`` of VIPeR; ``kind``, ``protocol`` and ``split``
            of CUHK03; ``camera``, ``identity``, ``labels``, ``anonymous``, ``zero_based`` of folders;
            ``table``, ``zero_based`` of a table.
        parsing: folder of label maps inside ``root``; None: root/parsing where there is one.
        mask: folder of masks inside ``root``; None: root/mask where there is one.
        keypoints: one CSV or several; None: those in ``root`` or root/lists, see
        data/preparing/annotation_lookup.py. rules: what maps and masks mean.
        look_only: a dry run: nothing is decoded, records have no size and no hash.
        holdout: the training people with this many highest pids get the split "val".
        on_progress: called after each image.

    Raises:
        UserError: unknown layout or option, no such folder, no usable image, a holdout of everybody.
    """
    list_files = find("layout", layout, LAYOUTS, "market1501")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{printable(root)}: no such folder", "check the path")
    annotations = Annotations.find(root, parsing, mask, keypoints, rules=rules, look_only=look_only)
    places = {"skip": tuple(annotations.folders.values())} if layout == "folders" else {}
    try:
        files, problems = list_files(root, **(options or {}), **places)
    except TypeError as error:
        raise UserError(f"layout {layout}: {error}", "correct the options") from error
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
