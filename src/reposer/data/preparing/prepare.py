"""`reposer prepare`: index a data set, check all of it, pack it for training; the originals are only read.

A prepared folder holds manifest.parquet, report.json, problems.csv, pairs_train.csv, pairs_val.csv, packed/.
It is built beside its place and renamed: complete or not there. Preparing again gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypedDict, Unpack

from reposer.config import read_json
from reposer.data.label_files import MapRules
from reposer.data.layouts.readers import Found, PairRule, Reading, read_layout
from reposer.data.layouts.tables import LIST, unpack_set
from reposer.data.packed import ARRAYS, HEADER, ROWS, PackedPeople
from reposer.data.pairs import read_pairs_csv, write_pairs_csv
from reposer.data.parsing import known_labels
from reposer.data.preparing.annotation_lookup import Places, each_place
from reposer.data.preparing.packing import MASK_SOURCES, Fit, MaskSource, Packing, known_fit, pack
from reposer.data.preparing.report import (
    PrepareReport,
    count_annotations,
    count_problems,
    count_splits,
    find_leaks,
    query_notes,
    refuse_synthetic,
)
from reposer.data.records import AnnotationProblem, problems_csv, write_manifest
from reposer.errors import UserError, known
from reposer.storage.files import (
    atomic_folder,
    clean_up_after_killed,
    is_remote,
    refuse_foreign,
    remove_tree,
    replaced_name,
    sha256_file,
    write_new,
)
from reposer.storage.outputs import MARK, SEAL, seal_faults, write_seal
from reposer.storage.paths import foreign_names, made_folder, printable
from reposer.structures import PersonRecord

MARKET1501 = "market1501"  # the layout that older prepared folders do not name
PACKED_SET = "packed"  # a set of `reposer export-set`: unpacked for the time, and then read as a table
REPORT, MANIFEST, PROBLEMS, PACKED = "report.json", "manifest.parquet", "problems.csv", "packed"
PAIRS = {"train": "pairs_train.csv", "val": "pairs_val.csv"}

Progress = Callable[[str, int, int], None]  # ("checking" or "packing", images done, images in all)


class PrepareArguments(TypedDict, total=False):
    """Options of every layout; the defaults are in DEFAULTS."""

    holdout: int  # people of the training split to hold out for validation, those with the highest pids
    size: tuple[int, int]  # (H, W) of the packed images
    fit: Fit  # how pictures of another size get there, see packing.py
    pairs: PairRule  # who makes a pair, see layouts/readers.py
    parsing: str | Path | None  # folder of label maps, inside the root
    mask: str | Path | None  # folder of masks, inside the root
    keypoints: Places  # one colon CSV of joints, or several
    mask_source: MaskSource  # what the packed masks are made of, see packing.py
    soft_masks: bool  # masks of more than two values are cut at half instead of refused
    inverted_masks: bool  # 0 is the person
    label_set: str  # what the parsing maps count, see parsing.known_labels
    single_camera: bool  # of each training person the images of one camera are kept, see keep_one_camera


DEFAULTS: PrepareArguments = {
    "holdout": 0,
    "size": (128, 64),
    "fit": "resize",
    "pairs": "torso",
    "parsing": None,
    "mask": None,
    "keypoints": None,
    "mask_source": "mask",
    "soft_masks": False,
    "inverted_masks": False,
    "label_set": "lip20",
    "single_camera": False,
}
_PLACES: tuple[Literal["parsing"], Literal["mask"], Literal["keypoints"]] = ("parsing", "mask", "keypoints")
_NEARLY_ALL = 0.9
_FILES = {
    *(MANIFEST, PROBLEMS, REPORT, SEAL, *PAIRS.values(), PACKED),
    *(f"{PACKED}/{name}" for name in (HEADER, ROWS, *(f"{array}.npy" for array in ARRAYS))),
}
# written where they differ from the default
_LATER = ("fit", "pairs", "mask_source", "soft_masks", "inverted_masks", "label_set", "single_camera")


def prepare_market1501(
    root: str | Path,
    out: str | Path,
    *,
    on_progress: Progress | None = None,
    **arguments: Unpack[PrepareArguments],
) -> PrepareReport:
    """:func:`prepare_people` for a data set in Market-1501's layout and names (see
    data/layouts/market1501.py)."""
    return prepare_people(MARKET1501, root, out, on_progress=on_progress, **arguments)


def prepare_people(
    layout: str,
    root: str | Path,
    out: str | Path,
    *,
    options: dict[str, Any] | None = None,
    on_progress: Progress | None = None,
    **arguments: Unpack[PrepareArguments],
) -> PrepareReport:
    """Read a data set and write the prepared folder ``out``.

    Good rows are kept; everything else is a line of problems.csv: file, row, field, rule, message.

    Args:
        layout: a key of ``layouts.readers.LAYOUTS``, or PACKED_SET.
        root: the data set's folder; of a packed set also its place in a bucket (``s3://``).
        out: folder to write; replaced when it was prepared with the same arguments, else refused.
        options: keywords of the layout, JSON values; of a packed set ``split``, which all of it is ("train").
        on_progress: called after each image.
        arguments: see PrepareArguments.

    Raises:
        UserError: an unusable data set, layout, option or argument, an ``out`` of another configuration, a
            full disk. Nothing is written then.
    """
    out = Path(os.path.abspath(out))
    chosen: PrepareArguments = {**DEFAULTS, **arguments}
    if unknown := chosen.keys() - DEFAULTS.keys():
        raise TypeError(f"prepare_people() got an unexpected keyword argument {min(unknown)!r}")
    how = _packing(chosen)
    config = _config(layout, root, options or {}, chosen)
    _check_out(root, out, config)
    clean_up_after_killed(out, always=True)
    made_folder(out.parent)
    with (
        atomic_folder(out, lambda there: _check_out(root, there, config)) as folder,
        _as_files(layout, root, options or {}, folder) as (reader, files, keywords),
    ):
        checking = _stage(on_progress, "checking")
        found = _read(reader, files, keywords, chosen, how, on_progress=checking)
        refuse_synthetic(files, found.records)
        found.problems.extend(find_leaks(found.records, found.training))
        found.problems.extend(_swapped_sides(found.records, how.size, printable(str(root))))
        report = _report(found, config, printable(str(root)), printable(out))
        return _write(folder, files, report, found, how, _stage(on_progress, "packing"))


def _swapped_sides(
    records: Sequence[PersonRecord], size: tuple[int, int], root: str
) -> list[AnnotationProblem]:
    """A warning where nearly all pictures stand and ``size`` (H, W) lies, or the other way round."""
    lying = sum(record.width > record.height for record in records)
    standing = sum(record.width < record.height for record in records)
    height, width = size
    turned = standing if width > height else lying if height > width else 0
    if not records or turned < _NEARLY_ALL * len(records):
        return []
    form = "higher than wide" if width > height else "wider than high"
    message = (
        f"{turned:,} of {len(records):,} pictures are {form}"
        f" and are packed at {height}x{width} (height x width): people would be distorted; if the two are"
        f" exchanged, give --size {width}x{height}"
    )
    return [AnnotationProblem(root, 0, "size", message, "sides-swapped")]


def look_at_people(
    layout: str,
    root: str | Path,
    *,
    options: dict[str, Any] | None = None,
    **arguments: Unpack[PrepareArguments],
) -> PrepareReport:
    """What :func:`prepare_people` would take from a folder, judged by names alone; nothing is written.

    No image, map or mask is decoded: damaged files and copies are found by preparing only. No pairs are made.

    Args:
        layout, root, options, arguments: as for :func:`prepare_people`.

    Raises:
        UserError: an unusable data set, layout or option.
    """
    chosen: PrepareArguments = {**DEFAULTS, **arguments}
    with (
        TemporaryDirectory() as folder,
        _as_files(layout, root, options or {}, Path(folder)) as (reader, files, keywords),
    ):
        found = _read(reader, files, keywords, chosen, _packing(chosen), look_only=True)
    found.problems.extend(
        p for p in find_leaks(found.records, found.training) if p.rule.startswith("person-")
    )
    config = _config(layout, root, options or {}, chosen) | {"dry_run": True}
    report = _report(found, config, printable(str(root)), "")
    return replace(report, pairs=dict.fromkeys(PAIRS, 0))  # none was made


@contextmanager
def _as_files(
    layout: str, root: str | Path, options: dict[str, Any], folder: Path
) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """The layout, folder and options by which a data set is read; one that is packed lies in ``folder`` then.

    Raises:
        UserError: no packed set, or a damaged one; what the block raises names the set, not ``folder``.
    """
    if layout != PACKED_SET:
        yield layout, Path(root), options
        return
    files = folder / "files"
    try:
        unpack_set(root, files)
        yield "table", files, {"split": "train", **options, "table": str(files / LIST)}
    except UserError as error:
        raise UserError(str(error).replace(printable(files), printable(str(root)))) from error
    remove_tree(files)


def _read(
    layout: str,
    root: Path,
    options: dict[str, Any],
    chosen: PrepareArguments,
    how: Packing,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    look_only: bool = False,
) -> Found:
    places = (chosen["parsing"], chosen["mask"], chosen["keypoints"])
    reading = Reading(chosen["pairs"], chosen["holdout"], *places, how.rules, on_progress, look_only)
    found = read_layout(layout, root, options, reading)
    return keep_one_camera(found) if chosen["single_camera"] else found


def keep_one_camera(found: Found) -> Found:
    """The data set as if each training person had been seen by one camera ("single-camera training", Zhang et
    al., AAAI 2020): who is who is then told apart by the camera, too, which generated pictures can undo.

    Of the n cameras that saw the k-th training person (k from 0, by pid), the (k mod n)-th is kept, so that
    all cameras have a part. Pairs that lose an image go; held-out and test people stay as they are.
    """
    cameras: dict[int, set[int]] = {}
    for one in found.records:
        if one.split == "train" and one.pid > 0:  # junk and distractors are trained on by nobody
            cameras.setdefault(one.pid, set()).add(one.camid)
    kept = {
        pid: sorted(cameras[pid])[number % len(cameras[pid])] for number, pid in enumerate(sorted(cameras))
    }
    records = [r for r in found.records if r.split != "train" or kept.get(r.pid, r.camid) == r.camid]
    names = {one.name for one in records}
    pairs = {split: [pair for pair in of if names.issuperset(pair)] for split, of in found.pairs.items()}
    left_out = f"{len(found.records) - len(records):,} training images of people's other cameras left out"
    return replace(found, records=records, pairs=pairs, notes=[*found.notes, left_out])


def _report(found: Found, config: dict[str, Any], root: str, out: str) -> PrepareReport:
    """What is known of a data set before anything is written."""
    counts, examples = count_problems(found.problems)
    return PrepareReport(
        root=root,
        out=out,
        config=config,
        splits=count_splits(found.records),
        annotations=count_annotations(found.records),
        pairs={split: len(found.pairs[split]) for split in PAIRS},
        problems=counts,
        examples=examples,
        manifest_sha256="",
        notes=[*found.notes, *query_notes(found.records)],
    )


def _write(
    folder: Path,
    root: Path,
    report: PrepareReport,
    found: Found,
    how: Packing,
    on_progress: Callable[[int, int], None] | None,
) -> PrepareReport:
    """The files of a prepared folder; ``root``: where the images are."""
    write_manifest(folder / MANIFEST, found.records)
    for split, name in PAIRS.items():
        write_pairs_csv(folder / name, found.pairs[split])
    write_new(folder / PROBLEMS, problems_csv(found.problems))
    report = replace(report, manifest_sha256=sha256_file(folder / MANIFEST))
    packed = pack(found.records, root, folder / PACKED, how, on_progress=on_progress)
    if packed.problems:
        raise UserError(f"{packed.problems[0]}", "the data set changed while it was read; prepare again")
    write_new(folder / REPORT, report.to_json())
    write_seal(folder, (REPORT, MANIFEST, PROBLEMS, *PAIRS.values(), f"{PACKED}/{HEADER}"))
    return report


def prepared_faults(folder: Path) -> list[str]:
    """Everything in a prepared folder that is not as it was written, a line each: by the seal, and packed/.

    Of a folder from before there were seals the manifest is compared with report.json, pairs are counted.
    """
    try:
        report = read_json(folder / REPORT)
    except UserError as error:
        return [str(error), *_packed_faults(folder)]
    faults = seal_faults(folder, report)
    if not faults and MARK not in report:
        manifest = folder / MANIFEST
        if not manifest.is_file() or sha256_file(manifest) != report.get("manifest_sha256"):
            faults.append(f"{manifest}: is missing, or differs from the sha256 in {REPORT}")
        counts = report.get("pairs")
        for split, name in PAIRS.items():
            faults += _counted(folder / name, counts.get(split) if isinstance(counts, dict) else None)
    faults += _packed_faults(folder)
    strange = foreign_names(folder, _is_own)
    return faults + [
        f"{printable(folder / name)}: does not belong to the prepared folder" for name in strange
    ]


def _counted(path: Path, wanted: object) -> list[str]:
    try:
        pairs, problems = read_pairs_csv(path)
    except UserError as error:
        return [str(error)]
    lines = [str(problem) for problem in problems]
    return lines + [f"{path}: {len(pairs):,} pairs, {wanted} in {REPORT}"] * (len(pairs) != wanted)


def _packed_faults(folder: Path) -> list[str]:
    try:
        PackedPeople.open(folder / PACKED, verify=True)
    except UserError as error:
        return [str(error)]
    return []


def _packing(chosen: PrepareArguments) -> Packing:
    source = known("mask source", chosen["mask_source"], MASK_SOURCES)
    known_labels(chosen["label_set"])
    rules = MapRules(chosen["label_set"], chosen["soft_masks"], chosen["inverted_masks"])
    return Packing(chosen["size"], known_fit(chosen["fit"]), source, rules)


def _config(
    layout: str, root: str | Path, options: dict[str, Any], chosen: PrepareArguments
) -> dict[str, Any]:
    """What decides the result, as JSON; arguments that came later are there only where they are used."""
    config: dict[str, Any] = {
        "data_set": str(root) if is_remote(root) else os.path.abspath(root),
        "holdout": chosen["holdout"],
        "size": list(chosen["size"]),
    }
    for name in _PLACES:
        places = [os.path.abspath(place) for place in each_place(chosen[name])]
        config[name] = places if len(places) > 1 else places[0] if places else None
    given: dict[str, Any] = {**chosen}
    defaults: dict[str, Any] = {**DEFAULTS}
    config |= {name: given[name] for name in _LATER if given[name] != defaults[name]}
    return config if layout == MARKET1501 else config | {"layout": layout, "options": options}


def _check_out(root: str | Path, out: Path, config: dict[str, Any]) -> None:
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
        before = read_json(out / REPORT)["config"]
        changed = [key for key in config | before if before.get(key) != config.get(key)]
    except (UserError, KeyError, TypeError, AttributeError) as error:
        problem = f"{printable(out)}: exists and is no prepared folder"
        raise UserError(problem, "give another folder") from error
    if changed:
        values = ", ".join(f"{key} {before.get(key)} (now {config.get(key)})" for key in changed)
        advice = "give another folder, or delete this one"
        raise UserError(f"{printable(out)}: was prepared with other arguments: {values}", advice)
    refuse_foreign(out, _is_own, "a prepared folder")


def _is_own(name: str) -> bool:
    """Whether a relative path is of what is written here; anything else, a run or a note, is the user's."""
    return name in _FILES


def _stage(on_progress: Progress | None, stage: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else lambda done, total: on_progress(stage, done, total)
