"""CUHK03 from its extracted images, by the new and by the classic protocol."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from reposer.bounded import parse_json, read_mat
from reposer.data.layouts.folder_scan import list_names
from reposer.data.layouts.labeled_files import LabeledFile, Listing, Problems, labeled
from reposer.data.layouts.reid_layouts import bad_name
from reposer.errors import UserError
from reposer.paths import RefusedFileError, printable, read_regular

_NAME = re.compile(r"([1-9])_([0-9]{3})_([12])_([0-9]{2})\.(?:png|jpe?g|bmp|webp)", re.ASCII | re.IGNORECASE)
_VARIABLES = ("filelist", "train_idx", "query_idx", "gallery_idx")
_MAX_FILE_BYTES = 200_000_000


def list_cuhk03(root: Path, kind: str = "detected", protocol: str = "new", split: int = 0) -> Listing:
    """CUHK03 from its extracted images, images_{detected,labeled}/P_NNN_V_II.png (pair, person, view, image).

    Identity = 1000 x pair of cameras + person, camera = view.

    Args:
        root: the folder.
        kind: "detected" or "labeled" boxes.
        protocol: "new" (767/700 people, Zhong et al. 2017) reads cuhk03_new_protocol_config_{kind}.mat, as
            published; "classic" (100 test people, 20 splits) reads the test people from
            splits_classic_{kind}.json, as torchreid writes it, since the original list lies in a MATLAB 7.3
            file: queries are their images of view 1, the gallery those of view 2.
        split: number of the classic split, 0 to 19.

    Raises:
        UserError: an unknown kind or protocol, or a missing or damaged list.
    """
    if kind not in ("detected", "labeled") or protocol not in ("new", "classic"):
        raise UserError(
            f"kind {kind}, protocol {protocol}: unknown", "use detected or labeled, new or classic"
        )
    folder = f"images_{kind}"
    if protocol == "new":
        assigned = _new_protocol(root / f"cuhk03_new_protocol_config_{kind}.mat")
    else:
        tested = _classic_test_names(root / f"splits_classic_{kind}.json", split)
        views = {"1": "query", "2": "gallery"}
        names = [name for name in list_names(root, folder) if _NAME.fullmatch(name)]
        assigned = {name: views[name.split("_")[2]] if name in tested else "train" for name in names}
    files: list[LabeledFile] = []
    problems: Problems = []
    for name in list_names(root, folder):
        match = _NAME.fullmatch(name)
        if match is None:
            problems.append(bad_name(f"{folder}/{name}", "1_001_1_01.png"))
        elif name in assigned:  # the new protocol leaves some images out
            pid = 1000 * int(match[1]) + int(match[2])
            files.append(labeled(f"{folder}/{name}", pid, int(match[3]), assigned[name]))
    return files, problems


def _new_protocol(path: Path) -> dict[str, str]:
    """File name -> split of the published configuration (MATLAB 5; indices from 1)."""
    data = read_regular(path, max_bytes=_MAX_FILE_BYTES)
    try:
        content = read_mat(path, data, _VARIABLES)
        names = [str(cell) for cell in content["filelist"].ravel()]
        keys = {"train": "train_idx", "query": "query_idx", "gallery": "gallery_idx"}
        places = {split: np.asarray(content[key]).ravel().astype(np.int64) for split, key in keys.items()}
        if any(len(p) and not (p.min() >= 1 and p.max() <= len(names)) for p in places.values()):
            raise ValueError("an index outside the list")
    except (RefusedFileError, KeyError, ValueError, TypeError, OverflowError) as error:
        reason = error.reason if isinstance(error, RefusedFileError) else str(error)
        raise UserError(
            f"{printable(path)}: not CUHK03's new protocol ({reason})", "get the file again"
        ) from error
    return {names[place - 1]: split for split, rows in places.items() for place in rows.tolist()}


def _classic_test_names(path: Path, split: int) -> set[str]:
    """Names of all images of the test people of one classic split."""
    data = read_regular(path, max_bytes=_MAX_FILE_BYTES)
    try:
        splits = parse_json(data)
        if not 0 <= split < len(splits):
            raise UserError(f"{printable(path)}: holds {len(splits)} splits, {split} is wanted")
        rows = [*splits[split]["query"], *splits[split]["gallery"]]
        return {re.split(r"[/\\]", row[0])[-1] for row in rows}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f"{printable(path)}: not a list of splits", "get the file again") from error
