"""`reposer prepare`: index a data set, check all of it, pack it for training; the originals are only read.

A prepared folder holds manifest.parquet, report.json, problems.csv, pairs_train.csv, pairs_val.csv, packed/.
It is built beside its place and renamed: complete or not there. Preparing again gives the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reposer.data.leaks import find_leaks
from reposer.data.market1501 import read_market1501
from reposer.data.packing import claimed, pack, remove_remains
from reposer.data.pairs import Pairs, development_pairs, official_train_pairs, write_pairs_csv
from reposer.data.prepare_report import PrepareReport, count_annotations, count_problems, count_splits
from reposer.data.problems import AnnotationProblem, problems_csv
from reposer.data.records import write_manifest
from reposer.data.reid_readers import read_people
from reposer.errors import UserError
from reposer.files import atomic_folder, replaced_name, sha256_file, write_new
from reposer.paths import printable
from reposer.structures import NUM_JOINTS, PersonRecord

REPORT, MANIFEST, PROBLEMS, PACKED = "report.json", "manifest.parquet", "problems.csv", "packed"
PAIRS = {"train": "pairs_train.csv", "val": "pairs_val.csv"}

Progress = Callable[[str, int, int], None]  # ("checking" or "packing", images done, images in all)


def prepare_market1501(
    root: str | Path,
    out: str | Path,
    *,
    holdout: int = 0,
    size: tuple[int, int] = (128, 64),
    parsing: str | Path | None = None,
    mask: str | Path | None = None,
    keypoints: str | Path | None = None,
    on_progress: Progress | None = None,
) -> PrepareReport:
    """Read a data set in Market-1501's layout (see market1501.py) and write the prepared folder ``out``.

    Good rows are kept; everything else is a line of problems.csv: file, row, field, rule, message.

    Args:
        root: the data set's folder.
        out: folder to write; replaced when it was prepared with the same arguments, else refused.
        holdout: people of the training folder to hold out for validation, those with the highest pids.
        size: (H, W) of the packed images.
        parsing: folder of label maps, inside ``root``.
        mask: folder of masks, inside ``root``.
        keypoints: colon CSV of joints.
        on_progress: called after each image.

    Raises:
        UserError: an unusable data set or argument, an ``out`` of another configuration, a full disk. Nothing
            is written then.
    """
    root, out = Path(root), Path(os.path.abspath(out))
    config = _config(root, holdout, size, parsing, mask, keypoints)
    return _prepare(
        root,
        out,
        config,
        lambda: read_market1501(root, parsing, mask, keypoints, holdout, _stage(on_progress, "checking")),
        on_progress,
    )


def prepare_people(
    layout: str,
    root: str | Path,
    out: str | Path,
    *,
    options: dict[str, Any] | None = None,
    holdout: int = 0,
    size: tuple[int, int] = (128, 64),
    parsing: str | Path | None = None,
    mask: str | Path | None = None,
    keypoints: str | Path | None = None,
    on_progress: Progress | None = None,
) -> PrepareReport:
    """As :func:`prepare_market1501`, for the other layouts (see reid_readers.py).

    Args:
        layout: a key of ``reid_readers.LAYOUTS``.
        options: keywords of that layout, JSON values.
        root, out, holdout, size, parsing, mask, keypoints, on_progress: as there.

    Raises:
        UserError: as there; an unknown layout or option.
    """
    root, out = Path(root), Path(os.path.abspath(out))
    config = _config(root, holdout, size, parsing, mask, keypoints)
    config |= {"layout": layout, "options": options or {}}
    return _prepare(
        root,
        out,
        config,
        lambda: read_people(
            layout,
            root,
            options=options,
            parsing=parsing,
            mask=mask,
            keypoints=keypoints,
            holdout=holdout,
            on_progress=_stage(on_progress, "checking"),
        ),
        on_progress,
    )


def _prepare(
    root: Path,
    out: Path,
    config: dict[str, Any],
    read: Callable[[], tuple[list[PersonRecord], list[AnnotationProblem]]],
    on_progress: Progress | None,
) -> PrepareReport:
    """Read, check for leaks, write; ``config`` is what decides the result."""
    _check_out(root, out, config)
    records, problems = read()
    problems += find_leaks(records)
    size = (config["size"][0], config["size"][1])
    remove_remains(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as folder, claimed(folder):
        write_manifest(folder / MANIFEST, records)
        pairs = {split: _write_pairs(records, split, folder / PAIRS[split]) for split in PAIRS}
        write_new(folder / PROBLEMS, problems_csv(problems))
        report = _report(root, out, config, records, problems, pairs, sha256_file(folder / MANIFEST))
        packed = pack(records, root, folder / PACKED, size, on_progress=_stage(on_progress, "packing"))
        if packed.problems:
            raise UserError(f"{packed.problems[0]}", "the data set changed while it was read; prepare again")
        write_new(folder / REPORT, report.to_json())
    return report


def _config(
    root: Path, holdout: int, size: tuple[int, int], *annotations: str | Path | None
) -> dict[str, Any]:
    places = [None if place is None else os.path.abspath(place) for place in annotations]
    config = {"data_set": os.path.abspath(root), "holdout": holdout, "size": list(size)}
    return {**config, **dict(zip(("parsing", "mask", "keypoints"), places, strict=True))}


def _check_out(root: Path, out: Path, config: dict[str, Any]) -> None:
    """Refuse to write into the data set, over a foreign folder, or over another configuration's."""
    real_root, real_out = os.path.realpath(root), os.path.realpath(out)
    if os.path.commonpath((real_root, real_out)) in (real_root, real_out):
        advice = "give a folder outside the data set, which is never changed"
        raise UserError(f"{printable(out)}: overlaps with the data set {printable(root)}", advice)
    aside = replaced_name(out)
    if aside.is_dir() and not out.exists():
        os.rename(aside, out)  # a kill between the two renames of an earlier run
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        before = json.loads((out / REPORT).read_bytes())["config"]
        changed = [key for key in config | before if before.get(key) != config.get(key)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{printable(out)}: exists and is no prepared folder"
        raise UserError(problem, "give another folder") from error
    if changed:
        values = ", ".join(f"{key} {before.get(key)} (now {config.get(key)})" for key in changed)
        advice = "give another folder, or delete this one"
        raise UserError(f"{printable(out)}: was prepared with other arguments: {values}", advice)


def _write_pairs(records: Sequence[PersonRecord], split: str, path: Path) -> int:
    """The official rule for training; for validation the fixed sample on which results are compared."""
    chosen = [record for record in records if record.split == split]
    names = [record.name for record in chosen]
    missing = np.full((NUM_JOINTS, 2), np.nan, np.float32)
    poses = [missing if record.keypoints is None else record.keypoints for record in chosen]
    keypoints = np.stack(poses) if poses else np.empty((0, NUM_JOINTS, 2), np.float32)
    pairs: Pairs = (official_train_pairs if split == "train" else development_pairs)(names, keypoints)
    write_pairs_csv(path, ((names[source], names[target]) for source, target in pairs.tolist()))
    return len(pairs)


def _report(
    root: Path,
    out: Path,
    config: dict[str, Any],
    records: Sequence[PersonRecord],
    problems: Sequence[AnnotationProblem],
    pairs: dict[str, int],
    manifest_sha256: str,
) -> PrepareReport:
    counts, examples = count_problems(problems)
    return PrepareReport(
        root=printable(root),
        out=printable(out),
        config=config,
        splits=count_splits(records),
        annotations=count_annotations(records),
        pairs=pairs,
        problems=counts,
        examples=examples,
        manifest_sha256=manifest_sha256,
    )


def _stage(on_progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(stage, done, total)
